"""One GridState as a plan's steps see it: what is where, what is true, and the way to things."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

from lore.base.types import EMPTY, PORTABLE, UNSEEN, Cell, GridState, Thing, next_cell
from lore.llm.plans.language import AllOf, AnyOf, Not, Predicate, Target, Test
from lore.llm.plans.pathfinding import Ground, Poses, unite

Moves = tuple[str, ...]
"""Actions that are equally good now."""
DOOR_COST = 1
"""A closed door is opened unless an unseen place that needs none is at most this many actions farther."""

_SPOT_COSTS = (0, 2, 8, 16)
_RING = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))


class Stuck(Exception):
    """A step cannot go on in this state, and why. Never leaves the executor."""


class KnownWorld:
    """One state of an agent: what it knows, and which actions lead where. A plan's steps ask this.

    Attributes:
        state: What the agent knows.
        actions: Names of the task's actions.
        hand: What is carried; None for nothing.
        position: The agent's cell.
        direction: Where it faces, 0 to 3: east, south, west, north.
        ahead: The cell that it faces.
    """

    def __init__(self, state: GridState, actions: Collection[str]) -> None:
        """Look at a state.

        Args:
            state: What the agent knows.
            actions: Names of the task's actions.
        """
        self.state, self.actions = state, actions
        self.hand, self.position, self.ahead = state.carrying, state.position, state.ahead
        self.direction = state.direction % 4
        self._truths: dict[Predicate, bool] = {}

    @cached_property
    def ground(self) -> Ground:
        """The floor as it can be walked now, with what is in hand."""
        return Ground(self.state, self.hand, self.actions)

    @cached_property
    def _things(self) -> dict[str, dict[Cell, Thing]]:
        things: dict[str, dict[Cell, Thing]] = defaultdict(dict)
        for cell, thing in self.state.cells.items():
            if thing != EMPTY:
                things[thing.kind][cell] = thing
        return things

    def find(self, target: Target) -> dict[Cell, Thing]:
        """Return the known things that a target names, by their cells.

        Args:
            target: Kind, color and state of the things.
        """
        return {
            cell: thing
            for cell, thing in self._things.get(target.kind, {}).items()
            if target.color in ("", thing.color) and target.state in ("", thing.state)
        }

    def carries(self, target: Target) -> bool:
        """Say whether the agent carries what a target names. The target's state plays no part.

        Args:
            target: Kind and color of the thing.
        """
        hand = self.hand
        return hand is not None and target.kind == hand.kind and target.color in ("", hand.color)

    def satisfies(self, test: Test) -> bool:
        """Say whether a test holds now.

        A thing in hand counts as visible and as reachable. A thing that was seen once counts as visible.

        Args:
            test: A fact about the world, or several joined by not, and, or.
        """
        if isinstance(test, Not):
            return not self.satisfies(test.test)
        if isinstance(test, AllOf):
            return all(self.satisfies(each) for each in test.tests)
        if isinstance(test, AnyOf):
            return any(self.satisfies(each) for each in test.tests)
        if test not in self._truths:
            self._truths[test] = self._look_up(test.word, test.target)
        return self._truths[test]

    def _look_up(self, word: str, target: Target) -> bool:
        if word == "carrying":
            return self.carries(target)
        if word in ("open", "locked"):
            return bool(self.find(Target(target.kind, target.color, word)))
        found = self.find(target)
        if word == "at":
            return self.is_at(found)
        if word == "reachable":
            return self.carries(target) or self.can_reach(found)
        return self.carries(target) or bool(found)

    def is_at(self, things: Mapping[Cell, Thing]) -> bool:
        """Say whether the agent faces one of the things that are solid, or stands on one that is not.

        Args:
            things: Things by their cells.
        """
        here, ahead = things.get(self.position), things.get(self.ahead)
        return (here is not None and here.walkable) or (ahead is not None and not ahead.walkable)

    def can_reach(self, things: Mapping[Cell, Thing]) -> bool:
        """Say whether a way leads to one of the things, with the hand as it is and nothing taken away.

        Args:
            things: Things by their cells.
        """
        return self.ground.find_ways({0: _goals(self.ground, things, face=False)}) is not None

    def could_reach_if_cleared(self, things: Mapping[Cell, Thing], face: bool = False) -> bool:
        """Say whether an agent with empty hands could get there by taking away what is in its way.

        Args:
            things: What to reach, by its cells.
            face: Whether the agent has to face one of the things, and may not stand on it.
        """
        ground = Ground(self.state, None, self.actions, clear=True)
        return ground.find_ways({0: _goals(ground, things, face)}) is not None

    def walk_to(self, things: Mapping[Cell, Thing], face: bool = False) -> Moves | None:
        """Return the actions that set out for one of the things.

        If no other way leads there, an agent with empty hands takes away what is in its way. An agent that
        carries something puts it down first.

        Args:
            things: Where to go, by cells.
            face: Whether the agent has to face one of the things, and may not stand on it.

        Returns:
            Actions that are equally good; none if it is there; None if no way leads there.
        """
        if not things:
            return None
        for ground in self._grounds():
            ways = ground.find_ways({0: _goals(ground, things, face)})
            if ways is not None:
                return ways.first
        return (
            self.put_down() if self.hand is not None and self.could_reach_if_cleared(things, face) else None
        )

    def explore(self, otherwise: str) -> Moves:
        """Return the actions towards the nearest place that was never seen.

        Args:
            otherwise: Why the plan is stuck if no such place can be reached.

        Raises:
            Stuck: No such place can be reached.
        """
        for ground in self._grounds():
            ways = ground.find_ways({0: ground.find_frontier(), DOOR_COST: ground.find_shut_frontier()})
            if ways is None:
                continue
            if not ways.arrived:
                return ways.first
            if not ground.shut & ground.bit_of(self.ahead):
                raise Stuck("what is ahead is not seen")
            return self.act("toggle" if self.state.thing_at(self.ahead).kind == "door" else "pickup")
        raise Stuck(otherwise)

    def _grounds(self) -> Iterator[Ground]:
        yield self.ground
        if self.hand is None:
            yield Ground(self.state, None, self.actions, clear=True)

    def act(self, action: str) -> Moves:
        """Return one action, if the task has it.

        Args:
            action: Name of the action.

        Raises:
            Stuck: The task does not have the action.
        """
        if action not in self.actions:
            raise Stuck(f"this task has no action {action}")
        return (action,)

    def put_down(self, beside: Collection[Cell] | None = None) -> Moves:
        """Return the actions that walk to a good place for what is in hand, and put it down there.

        Args:
            beside: Cells; the place has to be next to one of them. None: where it is least in the way.

        Raises:
            Stuck: No such place can be reached.
        """
        drop = self.act("drop")
        spots: dict[int, list[Cell]] = defaultdict(list)
        for cell, thing in self.state.cells.items():
            if thing != EMPTY:
                continue
            if beside is None:
                spots[_SPOT_COSTS[self._rate_spot(cell)]].append(cell)
            elif any(next_cell(cell, direction) in beside for direction in range(4)):
                spots[0].append(cell)
        ground = self.ground
        ways = ground.find_ways(
            {cost: ground.find_poses_facing(ground.collect_bits(cells)) for cost, cells in spots.items()}
        )
        if ways is None:
            raise Stuck("no place to put down what is in hand")
        return drop if ways.arrived else ways.first

    def _rate_spot(self, cell: Cell) -> int:
        """Rate a cell as a place to put something down.

        0: it is in no way. 1: other things are beside it. 2: it may cut a way. 3: a door is beside it.
        """
        around = [self.state.thing_at((cell[0] + dx, cell[1] + dy)) for dx, dy in _RING]
        passable = [thing.walkable or thing == UNSEEN for thing in around]
        sides, corners = passable[::2], passable[1::2]
        joined = sum(sides[i] and corners[i] and sides[(i + 1) % 4] for i in range(4))
        kinds = {thing.kind for thing in around[::2]}
        if "door" in kinds:
            return 3
        if sum(sides) - joined > 1:
            return 2
        return int(not kinds.isdisjoint((*PORTABLE, "goal")))


def _goals(ground: Ground, things: Mapping[Cell, Thing], face: bool) -> Poses:
    solid = ground.collect_bits(cell for cell, thing in things.items() if face or not thing.walkable)
    flat = ground.collect_bits(cell for cell, thing in things.items() if not face and thing.walkable)
    return unite(ground.find_poses_facing(solid), ground.find_poses_on(flat))

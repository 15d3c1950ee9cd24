"""One GridState as a plan's steps see it: what is where, what is true, and the way to things."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

from lore.base.types import STEPS, Cell, GridState, Thing
from lore.llm.plans.language import PORTABLE, AllOf, AnyOf, Ask, Not, Target, Test
from lore.llm.plans.pathfinding import Ground, Poses, join, walkable

Moves = tuple[str, ...]
"""Actions that are equally good now."""
DOOR_COST = 1
"""A closed door is opened unless an unseen place that needs none is at most this many actions farther."""
UNSEEN = Thing("unseen")

_SPOT_COSTS = (0, 2, 8, 16)
_RING = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))


class Stuck(Exception):
    """A step cannot go on in this state, and why. Never leaves the executor."""


class Scene:
    """actions: the names of those that the task has."""

    def __init__(self, state: GridState, actions: Collection[str]) -> None:
        self.state, self.actions = state, actions
        self.hand, self.position = state.carrying, state.position
        self.direction = state.direction % 4
        dx, dy = STEPS[self.direction]
        self.ahead: Cell = (self.position[0] + dx, self.position[1] + dy)
        self._answers: dict[Ask, bool] = {}
        self.key = self.hand.color if self.hand is not None and self.hand.kind == "key" else None

    @cached_property
    def ground(self) -> Ground:
        return Ground(self.state, self.key, self.actions)

    @cached_property
    def _things(self) -> dict[str, dict[Cell, Thing]]:
        things: dict[str, dict[Cell, Thing]] = defaultdict(dict)
        for cell, thing in self.state.cells.items():
            if thing.kind != "empty":
                things[thing.kind][cell] = thing
        return things

    def thing(self, cell: Cell) -> Thing:
        return self.state.cells.get(cell, UNSEEN)

    def find(self, target: Target) -> dict[Cell, Thing]:
        """The known things that the target names."""
        return {
            cell: thing
            for cell, thing in self._things.get(target.kind, {}).items()
            if target.color in ("", thing.color) and target.state in ("", thing.state)
        }

    def holds(self, target: Target) -> bool:
        """Whether the agent carries what the target names."""
        hand = self.hand
        return hand is not None and target.kind == hand.kind and target.color in ("", hand.color)

    def true(self, test: Test) -> bool:
        """What is carried counts as visible and reachable; what was seen once, as visible."""
        if isinstance(test, Not):
            return not self.true(test.test)
        if isinstance(test, AllOf):
            return all(self.true(each) for each in test.tests)
        if isinstance(test, AnyOf):
            return any(self.true(each) for each in test.tests)
        if test not in self._answers:
            self._answers[test] = self._answer(test.word, test.target)
        return self._answers[test]

    def _answer(self, word: str, target: Target) -> bool:
        if word == "carrying":
            return self.holds(target)
        if word in ("open", "locked"):
            return bool(self.find(Target(target.kind, target.color, word)))
        found = self.find(target)
        if word == "at":
            return self.at(found)
        if word == "reachable":
            return self.holds(target) or self.reaches(found)
        return self.holds(target) or bool(found)

    def at(self, things: Mapping[Cell, Thing]) -> bool:
        """Whether the agent faces a solid one of the things or stands on one that can be stood on."""
        here, ahead = things.get(self.position), things.get(self.ahead)
        return (here is not None and walkable(here)) or (ahead is not None and not walkable(ahead))

    def reaches(self, things: Mapping[Cell, Thing]) -> bool:
        """Whether there is a way to be `at` one of the things."""
        return self.ground.ways({0: _goals(self.ground, things, face=False)}) is not None

    def clears(self, things: Mapping[Cell, Thing], face: bool = False) -> bool:
        """Whether there would be one with an empty hand that takes away what is in the way."""
        ground = Ground(self.state, None, self.actions, clear=True)
        return ground.ways({0: _goals(ground, things, face)}) is not None

    def walk(self, things: Mapping[Cell, Thing], face: bool = False) -> Moves | None:
        """How to set out to be `at` one of the things or, with `face`, to face one; None if there is no way.

        Where else there is none, an empty hand takes away what is in the way; a full one is emptied first.
        """
        if not things:
            return None
        for ground in self._grounds():
            ways = ground.ways({0: _goals(ground, things, face)})
            if ways is not None:
                return ways.first
        return self.put_down() if self.hand is not None and self.clears(things, face) else None

    def explore(self, otherwise: str) -> Moves:
        """Towards the nearest place not seen yet. Stuck, because `otherwise`, if none can be reached."""
        for ground in self._grounds():
            ways = ground.ways({0: ground.frontier(), DOOR_COST: ground.ends()})
            if ways is None:
                continue
            if not ways.arrived:
                return ways.first
            if not ground.shut & ground.bit(self.ahead):
                raise Stuck("what is ahead is not seen")
            return self.act("toggle" if self.thing(self.ahead).kind == "door" else "pickup")
        raise Stuck(otherwise)

    def _grounds(self) -> Iterator[Ground]:
        yield self.ground
        if self.hand is None:
            yield Ground(self.state, None, self.actions, clear=True)

    def act(self, action: str) -> Moves:
        if action not in self.actions:
            raise Stuck(f"this task has no action {action}")
        return (action,)

    def put_down(self, beside: Collection[Cell] | None = None) -> Moves:
        """Drop what is carried where it is least in the way or, if given, next to one of those cells."""
        drop = self.act("drop")
        spots: dict[int, list[Cell]] = defaultdict(list)
        for cell, thing in self.state.cells.items():
            if thing.kind != "empty":
                continue
            if beside is None:
                spots[_SPOT_COSTS[self._nuisance(cell)]].append(cell)
            elif any((cell[0] + dx, cell[1] + dy) in beside for dx, dy in STEPS):
                spots[0].append(cell)
        ground = self.ground
        ways = ground.ways({cost: ground.facing(ground.board(cells)) for cost, cells in spots.items()})
        if ways is None:
            raise Stuck("no place to put down what is in hand")
        return drop if ways.arrived else ways.first

    def _nuisance(self, cell: Cell) -> int:
        """Of a thing put there: 0 in no way, 1 beside other things, 2 may part two places, 3 at a door."""
        around = [self.thing((cell[0] + dx, cell[1] + dy)) for dx, dy in _RING]
        passable = [walkable(thing) or thing is UNSEEN for thing in around]
        sides, corners = passable[::2], passable[1::2]
        joined = sum(sides[i] and corners[i] and sides[(i + 1) % 4] for i in range(4))
        kinds = {thing.kind for thing in around[::2]}
        if "door" in kinds:
            return 3
        if sum(sides) - joined > 1:
            return 2
        return int(not kinds.isdisjoint((*PORTABLE, "goal")))


def _goals(ground: Ground, things: Mapping[Cell, Thing], face: bool) -> Poses:
    solid = ground.board(cell for cell, thing in things.items() if face or not walkable(thing))
    flat = ground.board(cell for cell, thing in things.items() if not face and walkable(thing))
    return join(ground.facing(solid), ground.on(flat))

"""What a step of a plan means here and now: which actions to take, that it is done, or that it is stuck."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lore.base.types import PORTABLE, Cell, Thing, next_cell
from lore.llm.plans.known_world import KnownWorld, Moves, Stuck
from lore.llm.plans.language import ExploreStep, Step, Target

DONE: Moves = ()
"""The world is as the step wants it."""


@dataclass
class Memo:
    """What a step remembers of the moment it began.

    Attributes:
        position: The agent's cell.
        direction: Where it faced.
        step: Step of the episode.
        things: What the step is about, by cells.
    """

    position: Cell
    direction: int
    step: int
    things: dict[Cell, Thing] = field(default_factory=dict)

    def bind(self, world: KnownWorld, target: Target) -> dict[Cell, Thing]:
        """Return the things that the step is about, as they are now.

        A door stays one of them when its state changes: `goto(locked door)` ends well if it has been opened.

        Args:
            world: What the agent knows now.
            target: What the step names.
        """
        kept = {cell: old for cell, old in self.things.items() if world.state.thing_at(cell)[:2] == old[:2]}
        self.things = {**world.find(target), **kept}
        return {cell: world.state.thing_at(cell) for cell in self.things}

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        things = [[*cell, *thing] for cell, thing in self.things.items()]
        return {
            "position": list(self.position),
            "direction": self.direction,
            "step": self.step,
            "things": things,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Memo:
        """Make the memo that `state` was taken of.

        Args:
            state: What `state_dict` returned.
        """
        things = {(x, y): Thing(*thing) for x, y, *thing in state["things"]}
        x, y = state["position"]
        return cls((x, y), state["direction"], state["step"], things)


def run_step(statement: Step | ExploreStep, world: KnownWorld, memo: Memo) -> Moves:
    """Return the actions with which to go on with a step.

    Args:
        statement: The step.
        world: What the agent knows now.
        memo: What the step remembers of its beginning; changed in place.

    Returns:
        Actions that are equally good; DONE if the world is as the step wants it.

    Raises:
        Stuck: The step cannot go on.
    """
    if isinstance(statement, Step):
        return _RUN[statement.word](statement.target, world, memo)
    if statement.until is None:
        try:
            return world.explore("")
        except Stuck:
            return DONE
    if world.satisfies(statement.until):
        return DONE
    return world.explore(f"all explored, and not {statement.until}")


def _goto(target: Target, world: KnownWorld, memo: Memo, face: bool = False) -> Moves:
    old = memo.things.get(world.ahead)
    things = memo.bind(world, target)
    opened = old is not None and not old.walkable and world.ahead in things
    if world.carries(target) or opened or (face and world.ahead in things):
        return DONE
    for group in _preferred(target, things, world):
        if not face and world.is_at(group):
            return DONE
        moves = world.walk_to(group, face)
        if moves is not None:
            return moves
    return world.explore(_missing(target, things))


def _face(target: Target, world: KnownWorld, memo: Memo) -> Moves:
    return _goto(target, world, memo, face=True)


def _pickup(target: Target | None, world: KnownWorld, memo: Memo) -> Moves:
    target = target or _ahead(world, memo, PORTABLE)
    if target is None:
        if world.hand is None:
            raise Stuck("nothing ahead to pick up")
        return DONE
    things = world.find(target)
    fitting = _fitting_keys(things, world)
    if world.carries(target) and not (fitting and world.hand not in fitting.values()):
        return DONE
    if world.hand is not None and world.could_reach_if_cleared(things, face=True):
        return world.put_down()
    pickup = world.act("pickup")
    for group in _preferred(target, things, world):
        if world.ahead in group:
            return pickup
        moves = world.walk_to(group, face=True)
        if moves is not None:
            return moves
    return world.explore(_missing(target, things))


def _toggle(target: Target | None, world: KnownWorld, memo: Memo) -> Moves:
    target = target or _ahead(world, memo, ("door", "box"))
    if target is None:
        raise Stuck("nothing ahead to toggle")
    if world.carries(target):
        memo.things = {}
        return world.put_down()
    shut = target.state == "open"  # the step wants an open door closed
    if any(_toggled(old, world.state.thing_at(cell), shut) for cell, old in memo.things.items()):
        return DONE
    things = memo.bind(world, target)
    usable = {cell: t for cell, t in things.items() if _usable(t, world.hand, shut)}
    toggle = world.act("toggle")
    if world.ahead in usable:
        return toggle
    moves = world.walk_to(usable, face=True)
    if moves is not None:
        return moves
    if not shut and any(t.state == "open" for t in things.values()):
        return DONE
    moves = None if world.can_reach(things) else world.walk_to(things, face=True)
    if moves is not None:
        return moves
    for thing in things.values():
        if thing.state == "locked" and not _usable(thing, world.hand, shut):
            raise Stuck(f"no {thing.color} key in hand for the locked door")
    return world.explore(_missing(target, things))


def _drop(target: Target | None, world: KnownWorld, memo: Memo) -> Moves:
    if world.hand is None:
        return DONE
    if target is None:
        return world.put_down()
    things = world.find(target)
    return world.put_down(things) if things else world.explore(_missing(target, things))


def _forward(target: None, world: KnownWorld, memo: Memo) -> Moves:
    if world.position != memo.position:
        return DONE
    cell = next_cell(memo.position, memo.direction)
    ways = world.ground.find_ways({0: world.ground.find_poses_on(world.ground.collect_bits([cell]))})
    if ways is None:
        raise Stuck(f"{world.state.thing_at(cell).kind} ahead")
    return ways.first


def _left(target: None, world: KnownWorld, memo: Memo) -> Moves:
    return _turn(world, (memo.direction - 1) % 4)


def _right(target: None, world: KnownWorld, memo: Memo) -> Moves:
    return _turn(world, (memo.direction + 1) % 4)


def _turn(world: KnownWorld, direction: int) -> Moves:
    here = world.ground.collect_bits([world.position])
    goal = [here if d == direction else 0 for d in range(4)]
    ways = world.ground.find_ways({0: (goal[0], goal[1], goal[2], goal[3])})
    if ways is None:
        raise Stuck("this task has no action to turn with")
    return ways.first


def _wait(target: None, world: KnownWorld, memo: Memo) -> Moves:
    return DONE if world.state.step != memo.step else world.act("done")


def _ahead(world: KnownWorld, memo: Memo, kinds: Collection[str]) -> Target | None:
    """What a step without a target is about: the thing that was ahead when it began."""
    if not memo.things and world.state.thing_at(world.ahead).kind in kinds:
        memo.things = {world.ahead: world.state.thing_at(world.ahead)}
    about = next(iter(memo.things.values()), None)
    return None if about is None else Target(about.kind, about.color)


def _preferred(target: Target, things: dict[Cell, Thing], world: KnownWorld) -> Iterator[dict[Cell, Thing]]:
    """Which of the things to try first: doors that are not open, keys of locked doors; then any."""
    if target.kind == "door":
        yield {cell: thing for cell, thing in things.items() if thing.state != "open"}
    elif target.kind == "key":
        yield _fitting_keys(things, world)
    yield things


def _fitting_keys(things: dict[Cell, Thing], world: KnownWorld) -> dict[Cell, Thing]:
    locks = {door.color for door in world.find(Target("door", state="locked")).values()}
    return {cell: thing for cell, thing in things.items() if thing.kind == "key" and thing.color in locks}


def _toggled(old: Thing, now: Thing, shut: bool) -> bool:
    if old.kind == "box":
        return now.kind != "box"
    return (old.state == "open", now.state == "open") == (shut, not shut)


def _usable(thing: Thing, hand: Thing | None, shut: bool) -> bool:
    """Whether toggling brings what the step wants. shut: it wants an open door closed."""
    return thing.kind == "box" or (thing.state == "open" if shut else thing.opens_with(hand))


def _missing(target: Target, things: Mapping[Cell, Thing]) -> str:
    return f"no way to the {target}" if things else f"all explored, and no {target}"


_RUN: dict[str, Callable[[Any, KnownWorld, Memo], Moves]] = {
    "goto": _goto,
    "face": _face,
    "pickup": _pickup,
    "toggle": _toggle,
    "drop": _drop,
    "forward": _forward,
    "left": _left,
    "right": _right,
    "wait": _wait,
}

"""What a step of a plan means here and now: which actions to take, that it is done, or that it is stuck."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lore.base.types import STEPS, Cell, Thing
from lore.llm.plans.known_world import Moves, Scene, Stuck
from lore.llm.plans.language import PORTABLE, Explore, Step, Target
from lore.llm.plans.pathfinding import opens, walkable

DONE: Moves = ()
"""The world is as the step wants it."""


@dataclass
class Memo:
    """What a step remembers of the moment it began: the agent's pose, the time, what it is about."""

    position: Cell
    direction: int
    step: int
    things: dict[Cell, Thing] = field(default_factory=dict)

    def bind(self, scene: Scene, target: Target) -> dict[Cell, Thing]:
        """The things that the step is about, as they are now.

        A door stays one of them when its state changes: `goto(locked door)` ends well if it has been opened.
        """
        kept = {cell: old for cell, old in self.things.items() if scene.thing(cell)[:2] == old[:2]}
        self.things = {**scene.find(target), **kept}
        return {cell: scene.thing(cell) for cell in self.things}

    def state_dict(self) -> dict[str, Any]:
        things = [[*cell, *thing] for cell, thing in self.things.items()]
        return {
            "position": list(self.position),
            "direction": self.direction,
            "step": self.step,
            "things": things,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Memo:
        things = {(x, y): Thing(*thing) for x, y, *thing in state["things"]}
        x, y = state["position"]
        return cls((x, y), state["direction"], state["step"], things)


def run(statement: Step | Explore, scene: Scene, memo: Memo) -> Moves:
    """The actions with which to go on with a step; DONE if the world is as it wants it.

    Raises Stuck if it cannot go on. memo: as the step began; changed in place.
    """
    if isinstance(statement, Step):
        return _RUN[statement.word](statement.target, scene, memo)
    if statement.until is None:
        try:
            return scene.explore("")
        except Stuck:
            return DONE
    if scene.true(statement.until):
        return DONE
    return scene.explore(f"all explored, and not {statement.until}")


def _goto(target: Target, scene: Scene, memo: Memo, face: bool = False) -> Moves:
    old = memo.things.get(scene.ahead)
    things = memo.bind(scene, target)
    opened = old is not None and not walkable(old) and scene.ahead in things
    if scene.holds(target) or opened or (face and scene.ahead in things):
        return DONE
    for group in _preferred(target, things, scene):
        if not face and scene.at(group):
            return DONE
        moves = scene.walk(group, face)
        if moves is not None:
            return moves
    return scene.explore(_missing(target, things))


def _face(target: Target, scene: Scene, memo: Memo) -> Moves:
    return _goto(target, scene, memo, face=True)


def _pickup(target: Target | None, scene: Scene, memo: Memo) -> Moves:
    target = target or _ahead(scene, memo, PORTABLE)
    if target is None:
        if scene.hand is None:
            raise Stuck("nothing ahead to pick up")
        return DONE
    things = scene.find(target)
    fitting = _fitting_keys(things, scene)
    if scene.holds(target) and not (fitting and scene.key not in {key.color for key in fitting.values()}):
        return DONE
    if scene.hand is not None and scene.clears(things, face=True):
        return scene.put_down()
    pickup = scene.act("pickup")
    for group in _preferred(target, things, scene):
        if scene.ahead in group:
            return pickup
        moves = scene.walk(group, face=True)
        if moves is not None:
            return moves
    return scene.explore(_missing(target, things))


def _toggle(target: Target | None, scene: Scene, memo: Memo) -> Moves:
    target = target or _ahead(scene, memo, ("door", "box"))
    if target is None:
        raise Stuck("nothing ahead to toggle")
    if scene.holds(target):
        memo.things = {}
        return scene.put_down()
    shut = target.state == "open"  # what it wants is to see the door shut
    if any(_toggled(old, scene.thing(cell), shut) for cell, old in memo.things.items()):
        return DONE
    things = memo.bind(scene, target)
    usable = {cell: t for cell, t in things.items() if _usable(t, scene.key, shut)}
    toggle = scene.act("toggle")
    if scene.ahead in usable:
        return toggle
    moves = scene.walk(usable, face=True)
    if moves is not None:
        return moves
    if not shut and any(t.state == "open" for t in things.values()):
        return DONE
    moves = None if scene.reaches(things) else scene.walk(things, face=True)
    if moves is not None:
        return moves
    for thing in things.values():
        if thing.state == "locked" and not _usable(thing, scene.key, shut):
            raise Stuck(f"no {thing.color} key in hand for the locked door")
    return scene.explore(_missing(target, things))


def _drop(target: Target | None, scene: Scene, memo: Memo) -> Moves:
    if scene.hand is None:
        return DONE
    if target is None:
        return scene.put_down()
    things = scene.find(target)
    return scene.put_down(things) if things else scene.explore(_missing(target, things))


def _forward(target: None, scene: Scene, memo: Memo) -> Moves:
    if scene.position != memo.position:
        return DONE
    dx, dy = STEPS[memo.direction]
    cell = memo.position[0] + dx, memo.position[1] + dy
    ways = scene.ground.ways({0: scene.ground.on(scene.ground.board([cell]))})
    if ways is None:
        raise Stuck(f"{scene.thing(cell).kind} ahead")
    return ways.first


def _left(target: None, scene: Scene, memo: Memo) -> Moves:
    return _turn(scene, (memo.direction - 1) % 4)


def _right(target: None, scene: Scene, memo: Memo) -> Moves:
    return _turn(scene, (memo.direction + 1) % 4)


def _turn(scene: Scene, direction: int) -> Moves:
    here = scene.ground.board([scene.position])
    goal = [here if d == direction else 0 for d in range(4)]
    ways = scene.ground.ways({0: (goal[0], goal[1], goal[2], goal[3])})
    if ways is None:
        raise Stuck("this task has no action to turn with")
    return ways.first


def _wait(target: None, scene: Scene, memo: Memo) -> Moves:
    return DONE if scene.state.step != memo.step else scene.act("done")


def _ahead(scene: Scene, memo: Memo, kinds: Collection[str]) -> Target | None:
    """What a step without a target is about: the thing that was ahead when it began."""
    if not memo.things and scene.thing(scene.ahead).kind in kinds:
        memo.things = {scene.ahead: scene.thing(scene.ahead)}
    about = next(iter(memo.things.values()), None)
    return None if about is None else Target(about.kind, about.color)


def _preferred(target: Target, things: dict[Cell, Thing], scene: Scene) -> Iterator[dict[Cell, Thing]]:
    """Which of the things to try first: doors that are not open, keys of locked doors; then any."""
    if target.kind == "door":
        yield {cell: thing for cell, thing in things.items() if thing.state != "open"}
    elif target.kind == "key":
        yield _fitting_keys(things, scene)
    yield things


def _fitting_keys(things: dict[Cell, Thing], scene: Scene) -> dict[Cell, Thing]:
    locks = {door.color for door in scene.find(Target("door", state="locked")).values()}
    return {cell: thing for cell, thing in things.items() if thing.kind == "key" and thing.color in locks}


def _toggled(old: Thing, now: Thing, shut: bool) -> bool:
    if old.kind == "box":
        return now.kind != "box"
    return (old.state == "open", now.state == "open") == (shut, not shut)


def _usable(thing: Thing, key: str | None, shut: bool) -> bool:
    """Whether toggling brings what the step wants. shut: it wants an open door closed."""
    return thing.kind == "box" or (thing.state == "open" if shut else opens(thing, key))


def _missing(target: Target, things: Mapping[Cell, Thing]) -> str:
    return f"no way to the {target}" if things else f"all explored, and no {target}"


_RUN: dict[str, Callable[[Any, Scene, Memo], Moves]] = {
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

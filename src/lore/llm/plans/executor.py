"""Runs a plan: GridState in, advice for this step out.

A program is laid out flat, as a list of lines and a place in it. Each call looks at the state anew: it leaves
the loops whose test has turned, passes the steps that the state already satisfies, and advises what the first
one wants that it does not satisfy. So it does not matter who acts, or whether the advice is followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lore.base.types import GridState, Thing
from lore.llm.plans.known_world import Moves, Scene, Stuck
from lore.llm.plans.language import (
    PORTABLE,
    Explore,
    If,
    Program,
    Repeat,
    Statement,
    Step,
    Target,
    Test,
    While,
    parse,
)
from lore.llm.plans.plan_steps import Memo, run

MAX_ROUNDS = 32
"""Of one `while` or `until`: more show that it leads nowhere."""
MAX_LINES = 256
"""Passed in one call of `advance`."""


@dataclass(frozen=True)
class Advice:
    """What a plan says now.

    probs: action -> share, all positive, sum 1: the first actions of all shortest ways; None unless running.
    status: running, done (the program has ended) or impossible (it cannot go on from this state).
    reason: the step that runs, or why it is impossible.
    """

    probs: dict[str, float] | None
    status: str
    reason: str


class Executor:
    """Runs one program at a time for one environment.

    `start` it, then ask `advance` once for every state, whoever chose the action in between. It never raises
    for a parsed program, whatever the state. Before `start` there is nothing to do: done.
    """

    def __init__(self) -> None:
        self.start(Program(()), ())

    def start(self, program: Program, actions: tuple[str, ...]) -> None:
        """Begin a program. actions: names of the task's actions, as MiniGrid spells them."""
        self._program, self._actions, self._code = program, actions, _Code(program)
        self._begun, self._place, self._counts = False, 0, [0] * self._code.slots
        self._memo: Memo | None = None
        self._hand: Thing | None = None  # as the program left it,
        self._grip = 0  # by the step at this place

    def advance(self, state: GridState) -> Advice:
        """Advice for this state. A program that was done or impossible may be asked again."""
        scene = Scene(state, self._actions)
        if not self._begun:
            self._hand, self._begun = scene.hand, True
        try:
            return self._advance(scene)
        except Stuck as stuck:
            if scene.hand == self._hand:
                return Advice(None, "impossible", str(stuck))
        self._go(self._grip)  # somebody else took or dropped something: back to where that was seen to
        self._hand = scene.hand
        try:
            return self._advance(scene)
        except Stuck as stuck:
            return Advice(None, "impossible", str(stuck))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists: the program and how far it has come."""
        return {
            "program": str(self._program),
            "actions": list(self._actions),
            "begun": self._begun,
            "place": self._place,
            "counts": list(self._counts),
            "hand": None if self._hand is None else list(self._hand),
            "grip": self._grip,
            "memo": None if self._memo is None else self._memo.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        program = parse(state["program"]) if state["program"] else Program(())
        self.start(program, tuple(state["actions"]))
        self._begun, self._place, self._counts = state["begun"], state["place"], list(state["counts"])
        self._hand, self._grip = None if state["hand"] is None else Thing(*state["hand"]), state["grip"]
        self._memo = None if state["memo"] is None else Memo.from_state(state["memo"])

    def _advance(self, scene: Scene) -> Advice:
        for loop in self._code.loops:
            if loop.first <= self._place < loop.end and not scene.true(loop.test):
                self._go(loop.end)
        for _ in range(MAX_LINES):
            if self._place == len(self._code.lines):
                return Advice(None, "done", "")
            match self._code.lines[self._place]:
                case _Do(step):
                    moves = self._do(step, scene)
                    if moves:
                        return Advice({move: 1 / len(moves) for move in moves}, "running", str(step))
                    self._go(self._place + 1)
                case _Unless(test, to):
                    self._go(self._place + 1 if scene.true(test) else to)
                case _Jump(to):
                    self._go(to)
                case _Set(slot, count):
                    self._counts[slot] = count
                    self._go(self._place + 1)
                case _Count(slot, to):
                    self._counts[slot] -= 1
                    if self._counts[slot] < 0 and to is None:
                        raise Stuck(f"loop: {MAX_ROUNDS} rounds, and no end")
                    self._go(self._place + 1 if self._counts[slot] >= 0 or to is None else to)
        raise Stuck("loop: nothing to do in it")

    def _do(self, step: Step | Explore, scene: Scene) -> Moves:
        if self._memo is None:
            self._memo = Memo(scene.position, scene.direction, scene.state.step)
        moves = run(step, scene, self._memo)
        if isinstance(step, Step) and step.word in ("pickup", "drop"):
            self._hand, self._grip = scene.hand, self._place
        return moves

    def _go(self, place: int) -> None:
        """A `toggle` goes on with what the `goto` just before it was about; any other step looks anew."""
        following = self._code.lines[place] if place < len(self._code.lines) else None
        if not (place == self._place + 1 and isinstance(following, _Do) and following.same_things):
            self._memo = None
        self._place = place


@dataclass(frozen=True)
class _Do:
    step: Step | Explore
    same_things: bool = False


@dataclass(frozen=True)
class _Unless:
    test: Test
    to: int


@dataclass(frozen=True)
class _Jump:
    to: int


@dataclass(frozen=True)
class _Set:
    slot: int
    count: int


@dataclass(frozen=True)
class _Count:
    """Count one round down; after the last, go `to`, or be stuck if there is nowhere to go."""

    slot: int
    to: int | None


@dataclass(frozen=True)
class _Loop:
    first: int
    end: int
    test: Test


class _Code:
    """A program laid out flat. loops: each `while`, outer ones first."""

    def __init__(self, program: Program) -> None:
        self.lines: list[_Do | _Unless | _Jump | _Set | _Count] = []
        self.loops: list[_Loop] = []
        self.slots = 0
        self._named: dict[str, Target] = {}
        self._block(program.body)

    def _block(self, body: tuple[Statement, ...]) -> None:
        for statement in body:
            match statement:
                case If(test, then, other):
                    self._if(test, then, other)
                case While(test, inner):
                    self._while(test, inner)
                case Repeat(count, inner):
                    self._repeat(count, inner)
                case Step():
                    self._step(statement)
                case Explore():
                    self.lines.append(_Do(statement))

    def _step(self, step: Step) -> None:
        """A bare `pickup` or `toggle` means what the last `goto` or `face` before it in the text named."""
        target = step.target or self._named.get(step.word)
        before = self.lines[-1] if self.lines else None
        went = isinstance(before, _Do) and before.step in (Step("goto", target), Step("face", target))
        self.lines.append(_Do(Step(step.word, target), same_things=went and step.word == "toggle"))
        if target is None:
            return
        if step.word in ("goto", "face"):
            if target.kind in PORTABLE:
                self._named["pickup"] = target
            if target.kind in ("door", "box"):
                self._named["toggle"] = target
        if step.word == "toggle" and target.kind == "box":  # it is gone now, and what was in it is nameless
            self._named.pop("pickup", None)

    def _if(self, test: Test, body: tuple[Statement, ...], other: tuple[Statement, ...]) -> None:
        head = self._hole()
        self._block(body)
        if other:
            end = self._hole()
            self.lines[head] = _Unless(test, len(self.lines))
            self._block(other)
            self.lines[end] = _Jump(len(self.lines))
        else:
            self.lines[head] = _Unless(test, len(self.lines))

    def _while(self, test: Test, body: tuple[Statement, ...]) -> None:
        slot, place = self._set(MAX_ROUNDS), len(self.loops)
        head = self._hole()
        self.loops.append(_Loop(head, head, test))
        self.lines.append(_Count(slot, None))
        self._block(body)
        self.lines.append(_Jump(head))
        self.lines[head] = _Unless(test, len(self.lines))
        self.loops[place] = _Loop(head, len(self.lines), test)

    def _repeat(self, count: int, body: tuple[Statement, ...]) -> None:
        slot = self._set(count)
        head = self._hole()
        self._block(body)
        self.lines.append(_Jump(head))
        self.lines[head] = _Count(slot, len(self.lines))

    def _set(self, count: int) -> int:
        self.lines.append(_Set(self.slots, count))
        self.slots += 1
        return self.slots - 1

    def _hole(self) -> int:
        """A place to be filled in when it is known where it leads."""
        self.lines.append(_Jump(0))
        return len(self.lines) - 1

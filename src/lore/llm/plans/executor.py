"""Runs a plan: GridState in, advice for this step out.

A program is a list of lines, and the executor stands at one of them. Each call looks at the state anew: it
leaves the loops whose test no longer holds, passes the steps that the state already satisfies, and advises
what the first other step wants. So it does not matter who acts, or whether the advice is followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lore.base.types import PORTABLE, GridState, Thing
from lore.llm.plans.known_world import KnownWorld, Moves, Stuck
from lore.llm.plans.language import (
    ExploreStep,
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
from lore.llm.plans.plan_steps import Memo, run_step

MAX_ROUNDS = 32
"""Most rounds of one `while` or `until`; a loop that needs more leads nowhere."""
MAX_LINES = 256
"""Most lines that one call of `advance` passes."""


@dataclass(frozen=True)
class PlanAdvice:
    """What a plan says now.

    Attributes:
        probs: Action -> share, all positive, sum 1: the first actions of all shortest ways. None unless
            running.
        status: running, done (the program has ended) or impossible (it cannot go on from this state).
        reason: The step that runs, or why the program is impossible.
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
        """Take up a program at its first line.

        Args:
            program: The plan.
            actions: Names of the task's actions, as MiniGrid spells them.
        """
        self._program, self._actions, self._code = program, actions, _Code(program)
        self._has_begun, self._line, self._counts = False, 0, [0] * self._code.slots
        self._memo: Memo | None = None
        self._hand: Thing | None = None  # what was in hand after the last pickup or drop of the program
        self._hand_line = 0  # the line of that pickup or drop

    def advance(self, state: GridState) -> PlanAdvice:
        """Say what the program wants now; call it once for every state.

        If the program is stuck because somebody else took or dropped something, it goes back to its last
        pickup or drop. A program that was done or impossible may be asked again.

        Args:
            state: What the agent knows now.

        Returns:
            The actions to take, or that the program is done or impossible.
        """
        world = KnownWorld(state, self._actions)
        if not self._has_begun:
            self._hand, self._has_begun = world.hand, True
        try:
            return self._advance(world)
        except Stuck as stuck:
            if world.hand == self._hand:
                return PlanAdvice(None, "impossible", str(stuck))
        self._move_to(self._hand_line)
        self._hand = world.hand
        try:
            return self._advance(world)
        except Stuck as stuck:
            return PlanAdvice(None, "impossible", str(stuck))

    def state_dict(self) -> dict[str, Any]:
        """Return the program and how far it has come, as plain numbers, strings and lists."""
        return {
            "program": str(self._program),
            "actions": list(self._actions),
            "begun": self._has_begun,
            "place": self._line,
            "counts": list(self._counts),
            "hand": None if self._hand is None else list(self._hand),
            "grip": self._hand_line,
            "memo": None if self._memo is None else self._memo.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Args:
            state: What `state_dict` returned.
        """
        program = parse(state["program"]) if state["program"] else Program(())
        self.start(program, tuple(state["actions"]))
        self._has_begun, self._line, self._counts = state["begun"], state["place"], list(state["counts"])
        self._hand, self._hand_line = None if state["hand"] is None else Thing(*state["hand"]), state["grip"]
        self._memo = None if state["memo"] is None else Memo.from_state(state["memo"])

    def _advance(self, world: KnownWorld) -> PlanAdvice:
        for loop in self._code.loops:
            if loop.first <= self._line < loop.end and not world.satisfies(loop.test):
                self._move_to(loop.end)
        for _ in range(MAX_LINES):
            if self._line == len(self._code.lines):
                return PlanAdvice(None, "done", "")
            match self._code.lines[self._line]:
                case _Do(step):
                    moves = self._run_step(step, world)
                    if moves:
                        return PlanAdvice({move: 1 / len(moves) for move in moves}, "running", str(step))
                    self._move_to(self._line + 1)
                case _Unless(test, to):
                    self._move_to(self._line + 1 if world.satisfies(test) else to)
                case _Jump(to):
                    self._move_to(to)
                case _Set(slot, count):
                    self._counts[slot] = count
                    self._move_to(self._line + 1)
                case _Count(slot, to):
                    self._counts[slot] -= 1
                    if self._counts[slot] < 0 and to is None:
                        raise Stuck(f"loop: {MAX_ROUNDS} rounds, and no end")
                    self._move_to(self._line + 1 if self._counts[slot] >= 0 or to is None else to)
        raise Stuck("loop: nothing to do in it")

    def _run_step(self, step: Step | ExploreStep, world: KnownWorld) -> Moves:
        if self._memo is None:
            self._memo = Memo(world.position, world.direction, world.state.step)
        moves = run_step(step, world, self._memo)
        if isinstance(step, Step) and step.word in ("pickup", "drop"):
            self._hand, self._hand_line = world.hand, self._line
        return moves

    def _move_to(self, place: int) -> None:
        """Go on at a line.

        The step there forgets what the step before was about. Only a `toggle` right after its `goto` is about
        the same thing.
        """
        following = self._code.lines[place] if place < len(self._code.lines) else None
        if not (place == self._line + 1 and isinstance(following, _Do) and following.same_things):
            self._memo = None
        self._line = place


def find_first_moves(program: Program, state: GridState, actions: tuple[str, ...]) -> dict[str, float]:
    """Return the actions with which a program begins in a state.

    Args:
        program: The plan.
        state: What the agent knows.
        actions: Names of the task's actions.

    Returns:
        Action -> share; empty where the plan cannot begin, or has nothing to do.
    """
    executor = Executor()
    executor.start(program, actions)
    return executor.advance(state).probs or {}


@dataclass(frozen=True)
class _Do:
    step: Step | ExploreStep
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
        self._add_block(program.body)

    def _add_block(self, body: tuple[Statement, ...]) -> None:
        for statement in body:
            match statement:
                case If(test, then, other):
                    self._add_if(test, then, other)
                case While(test, inner):
                    self._add_while(test, inner)
                case Repeat(count, inner):
                    self._add_repeat(count, inner)
                case Step():
                    self._add_step(statement)
                case ExploreStep():
                    self.lines.append(_Do(statement))

    def _add_step(self, step: Step) -> None:
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
        # A box that was opened is gone, and the text does not name what was in it.
        if step.word == "toggle" and target.kind == "box":
            self._named.pop("pickup", None)

    def _add_if(self, test: Test, body: tuple[Statement, ...], other: tuple[Statement, ...]) -> None:
        head = self._leave_open()
        self._add_block(body)
        if other:
            end = self._leave_open()
            self.lines[head] = _Unless(test, len(self.lines))
            self._add_block(other)
            self.lines[end] = _Jump(len(self.lines))
        else:
            self.lines[head] = _Unless(test, len(self.lines))

    def _add_while(self, test: Test, body: tuple[Statement, ...]) -> None:
        slot, place = self._add_counter(MAX_ROUNDS), len(self.loops)
        head = self._leave_open()
        self.loops.append(_Loop(head, head, test))
        self.lines.append(_Count(slot, None))
        self._add_block(body)
        self.lines.append(_Jump(head))
        self.lines[head] = _Unless(test, len(self.lines))
        self.loops[place] = _Loop(head, len(self.lines), test)

    def _add_repeat(self, count: int, body: tuple[Statement, ...]) -> None:
        slot = self._add_counter(count)
        head = self._leave_open()
        self._add_block(body)
        self.lines.append(_Jump(head))
        self.lines[head] = _Count(slot, len(self.lines))

    def _add_counter(self, count: int) -> int:
        """Add a line that sets a counter which only this loop uses. Returns the counter's number."""
        self.lines.append(_Set(self.slots, count))
        self.slots += 1
        return self.slots - 1

    def _leave_open(self) -> int:
        """Add a line that is filled in later, when it is known where it leads. Returns its place."""
        self.lines.append(_Jump(0))
        return len(self.lines) - 1

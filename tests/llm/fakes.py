"""A provider that does as it is told, a line of asks, and small worlds to ask about."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lore.base.types import Cell, GridState, Thing
from lore.llm.asking.asker import Asker, Question
from lore.llm.asking.breaker import Breaker
from lore.llm.asking.budget import Budget
from lore.llm.asking.journal import Journal
from lore.llm.prompt import GRID_WORDING
from lore.llm.providers import Reply, Request

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
Said = Any
"""What a provider does with a question: a text, a Reply, an exception to raise, or any junk to return."""


def plan(program: str, confidence: float = 0.9) -> str:
    """An answer that is a plan."""
    return json.dumps({"why": "", "plan": program, "policy": None, "confidence": confidence})


def policy(confidence: float = 0.5, **weights: float) -> str:
    """An answer that weighs actions; those not named get 0."""
    shares = {name: weights.get(name, 0.0) for name in ACTIONS}
    return json.dumps({"why": "", "plan": None, "policy": shares, "confidence": confidence})


LEFT = policy(left=1.0)


def reply(text: str, usd: float = 0.01, tokens: tuple[int, int] = (100, 20)) -> Reply:
    return Reply(text, *tokens, 0, usd, 0.0, "end")


class FakeProvider:
    """Says what `script` says: a function of the request, or a list, one a call, whose last one stays.

    asked: the requests, in order. gate: where given, a call waits until it is set.
    """

    name = "fake"
    paid = True
    privileged = False

    def __init__(
        self,
        script: Callable[[Request], Said] | Sequence[Said] = (LEFT,),
        model: str = "one",
        max_usd: float = 0.05,
        gate: threading.Event | None = None,
    ):
        self.script, self.model, self.max_usd, self.gate = script, model, max_usd, gate
        self.asked: list[Request] = []

    def identity(self) -> str:
        return f"{self.name} {self.model}"

    def max_cost_usd(self, request: Request) -> float:
        return self.max_usd

    def ask(self, request: Request) -> Reply:
        self.asked.append(request)
        script = self.script
        said = script(request) if callable(script) else script[min(len(self.asked), len(script)) - 1]
        if self.gate is not None:
            self.gate.wait(30)
        if isinstance(said, BaseException):
            raise said
        return reply(said) if isinstance(said, str) else said


def make_asker(
    folder: Path,
    provider: FakeProvider,
    *,
    total: int | None = None,
    usd: float | None = None,
    tokens: int | None = None,
    failures: int = 1000,
    pause: int = 100,
    said: list[str] | None = None,
    **options: Any,
) -> Asker:
    """An asker with its journal at folder/llm.jsonl. said: gets the lines for the user."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = [] if said is None else said
    journal, budget = Journal(folder / "llm.jsonl"), Budget(total, usd, tokens)
    return Asker(provider, journal, budget, Breaker(failures, pause), lines.append, **options)


def room(
    things: dict[Cell, Thing] | None = None,
    mission: str = "go on",
    step: int = 1,
    carrying: Thing | None = None,
    direction: int = 0,
    position: Cell = (0, 0),
) -> GridState:
    """A walled room of 5 x 5 cells around (0, 0), all of it seen, with these things in it."""
    inside = range(-2, 3)
    cells = {(x, y): Thing("wall", "grey") for x in range(-3, 4) for y in range(-3, 4)}
    cells |= {(x, y): Thing("empty") for x in inside for y in inside} | (things or {})
    return GridState(mission, carrying, position, direction, cells, frozenset(cells), step, 100)


def request(state: GridState, max_tokens: int = 50, system: str | None = None) -> Request:
    made = GRID_WORDING.make_request(state, ACTIONS, max_tokens)
    return made if system is None else replace(made, system=system)


def question(number: int = 0, env_step: int = 0, env: int = 0, **options: Any) -> Question:
    """A question about a situation of its own for each number."""
    return Question(request(room(mission=f"go on {number}"), **options), env_step, env, "novelty")


def records(asker: Asker) -> list[dict[str, Any]]:
    return [json.loads(line) for line in asker.journal.path.read_text().splitlines()]

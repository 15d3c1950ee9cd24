"""What is asked where, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from lore.llm.answer import Answer
from lore.llm.request import Request


@dataclass(frozen=True)
class Question:
    """What is asked, and where: `env_step` of the run, `env` among those side by side, the trigger's name."""

    request: Request
    env_step: int
    env: int
    trigger: str


@dataclass(frozen=True)
class Asked:
    """What came of a question. answer is None unless outcome is "answered"; else the outcome says why not:

    failed, budget, sweep_budget, breaker, paused (the server asked to be left alone); with llm.wait=false
    also waiting (`collect_arrival` will bring it) and busy (not asked: an earlier question is under way).
    """

    question: Question
    outcome: str
    answer: Answer | None = None

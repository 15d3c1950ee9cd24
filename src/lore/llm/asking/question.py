"""What is asked where, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from lore.llm.answer import Answer
from lore.llm.request import Request


@dataclass(frozen=True)
class Question:
    """What is asked, and where.

    Attributes:
        request: The question.
        env_step: Environment step of the run.
        env: Number of the environment among those side by side.
        trigger: Name of the trigger that fired.
    """

    request: Request
    env_step: int
    env: int
    trigger: str


@dataclass(frozen=True)
class Asked:
    """What came of a question.

    Attributes:
        question: What was asked.
        outcome: answered, failed, budget, sweep_budget, breaker, paused (the server asked to be left alone);
            with llm.wait=false also waiting (`collect_arrival` will bring the answer) and busy (not asked,
            because an earlier question is under way).
        answer: The answer; None unless outcome is "answered".
    """

    question: Question
    outcome: str
    answer: Answer | None = None

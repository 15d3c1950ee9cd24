"""Following advice from step to step: the running plan, or else what the stored answers say of the state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lore.base.types import GridState
from lore.llm.answer import Answer
from lore.llm.plans.executor import Executor


@dataclass(frozen=True)
class StepAdvice:
    """Advice for one step.

    Attributes:
        weights: One for each action.
        confidence: Confidence of whoever gave the advice, in [0, 1].
        source: A word of SOURCES.
        corrupted: Whether the answer that it comes from was made wrong on purpose.
    """

    weights: Sequence[float]
    confidence: float
    source: str
    corrupted: bool = False


class Follower:
    """Follows advice in one environment.

    Attributes:
        executor: Runs the plan.
        running: Whether a plan runs; set it to False where an episode begins.
        confidence: Confidence of the answer that the plan came from.
        corrupted: Whether that answer was made wrong on purpose.
        ended: How often a plan was done or impossible.
    """

    def __init__(self, actions: tuple[str, ...], ended: Counter[str] | None = None) -> None:
        """Begin without a plan.

        Args:
            actions: Names of the task's actions.
            ended: A count to add to, such as one for several environments.
        """
        self.actions, self.executor = actions, Executor()
        self.running, self.confidence, self.corrupted = False, 0.0, False
        self.ended: Counter[str] = Counter() if ended is None else ended

    def follow(
        self, state: GridState, answers: Mapping[str, Answer], keys: Sequence[str]
    ) -> StepAdvice | None:
        """Return what the running plan says or, without one that goes on, what the stored answers say.

        Args:
            state: What the agent knows now.
            answers: Stored answers by their keys.
            keys: The state's keys, the plan key before the policy key.

        Returns:
            Advice for this step; None where nothing covers the state.
        """
        return self.go_on(state) or self.look_up(state, answers, keys)

    def go_on(self, state: GridState) -> StepAdvice | None:
        """Return what the running plan says, and note its end.

        Args:
            state: What the agent knows now.

        Returns:
            Advice for this step; None where no plan runs, or the plan has ended.
        """
        if not self.running:
            return None
        said = self.executor.advance(state)
        if said.probs is None:
            self.running = False
            self.ended[said.status] += 1
            return None
        weights = [said.probs.get(name, 0.0) for name in self.actions]
        return StepAdvice(weights, self.confidence, "plan", self.corrupted)

    def look_up(
        self, state: GridState, answers: Mapping[str, Answer], keys: Sequence[str]
    ) -> StepAdvice | None:
        """Return what the first of the stored answers says that can be followed here. A plan is started.

        Args:
            state: What the agent knows now.
            answers: Stored answers by their keys.
            keys: The state's keys, the plan key before the policy key.

        Returns:
            Advice for this step; None where no stored answer can be followed here.
        """
        for key in keys:
            answer = answers.get(key)
            if answer is None:
                continue
            if answer.weights is not None:
                return StepAdvice(answer.weights, answer.confidence, "answer", answer.corrupted)
            assert answer.plan is not None
            self.executor.start(answer.plan, self.actions)
            self.running, self.confidence, self.corrupted = True, answer.confidence, answer.corrupted
            advice = self.go_on(state)
            if advice is not None:
                return advice
        return None

"""Whether to ask, and what is followed in between: one decision a step, each outcome counted by name.

The order is that of the specification: a running plan or a stored answer (free); a trigger; the distilled
network, where it is confident; the gate's latch; cooldown; budget; then the ask itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lore.base.types import SOURCES, GridState, Prior
from lore.llm.answer import Answer
from lore.llm.asking.asker import Asker
from lore.llm.asking.question import Asked, Question
from lore.llm.asking.triggers import Boundary, Triggers
from lore.llm.follower import Follower, StepAdvice
from lore.llm.plans.language import parse
from lore.llm.prompt import GRID_WORDING
from lore.llm.request import Wording

FLOOR = 0.01  # share of the advised distribution that is spread over all actions
Weights = Sequence[float]


@dataclass(frozen=True)
class AskLimits:
    """How often to ask.

    Attributes:
        cooldown_steps: Environment steps of the run without an ask after an ask; None for no limit.
        success_cooldown_steps: Environment steps of the run without an ask after a success; None for no
            limit.
        use_triggers: Whether an ask needs a trigger. False: ask whenever nothing covers the state.
        use_latch: Whether an ask needs the gate's latch.
    """

    cooldown_steps: int | None
    success_cooldown_steps: int | None
    use_triggers: bool = True
    use_latch: bool = True


@dataclass
class _Slot:
    """One environment: the advice it follows, and what tells that a boundary was crossed."""

    follower: Follower
    boundary: Boundary = field(default_factory=Boundary)


class LLMController:
    """Advice for N environments side by side.

    Attributes:
        answers: The answers so far, by plan key or policy key.
        outcomes: One count a step and environment: plan, answer, unadvised (advice may not act here),
            prior_net, quiet (no trigger), latch, cooldown, success_cooldown, useless (the state was asked
            about, and the answer cannot be followed here), reader, or what became of an ask (see Asked).
        triggers_fired: How often each trigger fired.
        plans: How often a plan ended, by its status: done, impossible.
        followed: Steps at which advice from a plan or an answer may act: all, and those whose answer was
            corrupted.
    """

    def __init__(
        self,
        asker: Asker | None,
        triggers: Triggers,
        limits: AskLimits,
        actions: tuple[str, ...],
        num_envs: int,
        max_tokens: int,
        privileged: Callable[[int], list[str]] | None = None,
        wording: Wording = GRID_WORDING,
    ):
        """Begin without answers.

        Args:
            asker: Asks the provider; None for a controller that only gives the answers it has.
            triggers: When an ask is worth considering.
            limits: How often to ask.
            actions: Names of the task's actions.
            num_envs: N.
            max_tokens: Longest answer, in tokens.
            privileged: Environment number -> its optimal actions now, for a provider that may see them.
            wording: How states are put into words and filed, for the family of worlds.
        """
        self.asker, self.triggers, self.limits, self.actions = asker, triggers, limits, actions
        self.max_tokens, self.privileged, self.wording = max_tokens, privileged, wording
        self.answers: dict[str, Answer] = {}
        self.outcomes: Counter[str] = Counter()
        self.triggers_fired: Counter[str] = Counter()
        self.plans: Counter[str] = Counter()  # ended: done, impossible
        self.followed: Counter[str] = Counter(all=0, corrupted=0)
        self._slots = [_Slot(Follower(actions, self.plans)) for _ in range(num_envs)]
        self._last_ask: int | None = None
        self._last_success: int | None = None
        self._now = 0

    def advise(
        self,
        states: Sequence[GridState],
        env_step: int,
        td_error: Sequence[float] | None = None,
        latched: Sequence[bool] | None = None,
        learned: Sequence[Weights | None] | None = None,
        over: Sequence[bool] | None = None,
        may_ask: Sequence[bool] | None = None,
    ) -> Prior:
        """Return advice for this step, and ask where it is worth an ask.

        Args:
            states: What the agent knows in each of the N environments.
            env_step: Environment step of the run.
            td_error: TD error of the step that led here, for each environment; None where not known.
            latched: Where the gate allows asking; None: everywhere.
            learned: The distilled network's distribution, (A,) for each environment; None where it is not
                confident.
            over: Where the episode has ended. No action counts there, and nothing is decided.
            may_ask: Where advice may act, so that an ask is worth its price; None: everywhere. Elsewhere
                running plans and stored answers are followed as always.

        Returns:
            Logits (N, A), mask (N, A), confidence (N,) and source (N,).

        Raises:
            BadInput: The journal is damaged, or does not belong to this run.
        """
        self._now = env_step
        arrived = self.asker.collect_arrival(env_step) if self.asker else None
        if arrived is not None:
            self._file(arrived)
        advice: list[StepAdvice | None] = []
        for i, state in enumerate(states):
            if over is not None and over[i]:
                advice.append(None)
                continue
            if state.step == 0:
                self._slots[i].follower.running = False
            error = None if td_error is None else float(td_error[i])
            acts = may_ask is None or may_ask[i]
            one, outcome = self._decide(
                i,
                state,
                env_step,
                error,
                latched is None or bool(latched[i]),
                learned[i] if learned else None,
                acts,
            )
            self.outcomes[outcome] += 1
            if acts and one is not None and one.source in ("plan", "answer"):
                self.followed.update(all=1, corrupted=int(one.corrupted))
            advice.append(one)
        return _prior(advice, len(self.actions))

    def make_reader(self, num_envs: int) -> LLMController:
        """Return an adviser for evaluation, with the answers so far.

        It asks nobody and leaves no trace in this controller.

        Args:
            num_envs: Environments side by side in the evaluation.
        """
        copy = LLMController(
            None,
            Triggers(1.0, math.inf, 0),
            AskLimits(None, None),
            self.actions,
            num_envs,
            max_tokens=0,
            wording=self.wording,
        )
        copy.answers = dict(self.answers)
        return copy

    def end_episode(self, success: bool, env_step: int) -> None:
        """Note how an episode ended, for the plateau and the cooldown after a success.

        Args:
            success: Whether the task was solved.
            env_step: Environment step of the run.
        """
        self.triggers.plateau.record_episode(success)
        if success:
            self._last_success = env_step

    def _decide(
        self,
        i: int,
        state: GridState,
        env_step: int,
        td_error: float | None,
        latched: bool,
        learned: Weights | None,
        may_ask: bool,
    ) -> tuple[StepAdvice | None, str]:
        slot, key, kind = self._slots[i], self.wording.policy_key(state), self.wording.plan_key(state)
        boundary = slot.boundary.observe(state)
        follower = slot.follower
        was_running = follower.running
        advice = follower.follow(state, self.answers, (kind, key))
        fired = self.triggers.fire(kind, td_error, boundary or (was_running and not follower.running))
        self.triggers_fired.update(fired)
        if advice is not None:
            return advice, advice.source
        if not may_ask:
            return None, "unadvised"
        if self.limits.use_triggers and not fired:
            return None, "quiet"
        if learned is not None:
            return StepAdvice(learned, max(learned), "prior_net"), "prior_net"
        if self.limits.use_latch and not latched:
            return None, "latch"
        if _recent(self._last_ask, env_step, self.limits.cooldown_steps):
            return None, "cooldown"
        if _recent(self._last_success, env_step, self.limits.success_cooldown_steps):
            return None, "success_cooldown"
        if kind in self.answers or key in self.answers:
            return None, "useless"  # asked already, and nothing can be done here with the answer
        asker, privileged = self.asker, self.privileged
        if asker is None:
            return None, "reader"
        optimal = privileged(i) if privileged is not None and asker.provider.privileged else None
        request = self.wording.make_request(
            state,
            self.actions,
            self.max_tokens,
            None if optimal is None else lambda: optimal,  # of this moment, whenever it is answered
        )
        asked = asker.ask(Question(request, env_step, i, fired[0] if fired else "uncovered"))
        if asked.outcome not in ("budget", "sweep_budget", "breaker", "paused", "busy"):
            self._last_ask = env_step
        if asked.answer is None:
            return None, asked.outcome
        self._file(asked)
        return follower.look_up(state, self.answers, (kind, key)), "answered"

    def _file(self, asked: Asked) -> None:
        """Keep an answer: a plan for every state of its kind, a policy for the one state it was given for."""
        if asked.answer is not None:
            request = asked.question.request
            self.answers[request.plan_key if asked.answer.plan else request.key] = asked.answer

    def metrics(self) -> dict[str, float]:
        """Return counts and shares since the run began, by their names in docs/metrics.md."""
        assert self.asker is not None
        asker, steps = self.asker, max(1, sum(self.outcomes.values()))
        asked = asker.counts["asked"]
        row = {
            "llm/calls_used": float(asked),
            "llm/provider_calls": float(asker.counts["provider_calls"]),
            "llm/cache_hit_rate": asker.counts["cached"] / asked if asked else math.nan,
            "llm/corrupted_share": self.followed["corrupted"] / self.followed["all"]
            if self.followed["all"]
            else math.nan,
            "llm/cost_usd": asker.budget.usd,
            "llm/tokens": float(asker.budget.tokens),
            "time/llm_latency_s": asker.latency_s / max(1, asker.counts["provider_calls"]),
            "llm/cooldown_status": float(self._cooldown_left()),
        }
        if asker.budget.remaining is not None:
            row["llm/budget_remaining"] = float(asker.budget.remaining)
        row |= {f"llm/outcome/{name}": count / steps for name, count in sorted(self.outcomes.items())}
        row |= {f"llm/trigger/{name}": count / steps for name, count in sorted(self.triggers_fired.items())}
        row |= {f"llm/plan/{name}": float(count) for name, count in sorted(self.plans.items())}
        return row | {f"llm/failure/{kind}": float(n) for kind, n in sorted(asker.failures.items())}

    def _cooldown_left(self) -> int:
        """Return the environment steps until no cooldown forbids an ask."""
        limits = self.limits
        pairs = (
            (self._last_ask, limits.cooldown_steps),
            (self._last_success, limits.success_cooldown_steps),
        )
        ends = [then + span for then, span in pairs if then is not None and span is not None]
        return max(0, *ends, self._now) - self._now if ends else 0

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next decision depends on, without the journal's records and the maps."""
        assert self.asker is not None
        return {
            "asker": self.asker.state_dict(),
            "triggers": self.triggers.state_dict(),
            "answers": {key: _stored_answer(answer) for key, answer in self.answers.items()},
            "outcomes": dict(self.outcomes),
            "triggers_fired": dict(self.triggers_fired),
            "plans": dict(self.plans),
            "followed": dict(self.followed),
            "slots": [
                [
                    s.follower.executor.state_dict(),
                    s.follower.running,
                    s.follower.confidence,
                    s.boundary.carried,
                    s.boundary.ahead,
                    s.follower.corrupted,
                ]
                for s in self._slots
            ],
            "last_ask": self._last_ask,
            "last_success": self._last_success,
            "now": self._now,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Args:
            state: What `state_dict` returned, for as many environments.

        Raises:
            BadInput: The journal does not reach to where `state` was taken, or is damaged behind it.
        """
        assert self.asker is not None
        self.asker.load_state_dict(state["asker"])
        self.triggers.load_state_dict(state["triggers"])
        self.answers = {key: _read_answer(stored) for key, stored in state["answers"].items()}
        self.outcomes = Counter(state["outcomes"])
        self.plans.clear()  # kept as it is: the followers add to it
        self.plans.update(state["plans"])
        self.triggers_fired = Counter(state["triggers_fired"])
        self.followed = Counter(state.get("followed", {"all": 0, "corrupted": 0}))  # older: none corrupted
        for slot, (executor, running, confidence, carried, ahead, *corrupted) in zip(
            self._slots, state["slots"], strict=True
        ):
            slot.follower.executor.load_state_dict(executor)
            slot.follower.running, slot.follower.confidence = running, confidence
            slot.follower.corrupted = corrupted == [True]
            slot.boundary.carried, slot.boundary.ahead = carried, ahead
        self._last_ask, self._last_success = state["last_ask"], state["last_success"]
        self._now = state["now"]


def _recent(then: int | None, now: int, span: int | None) -> bool:
    return then is not None and span is not None and now - then < span


def _stored_answer(answer: Answer) -> list[Any]:
    return [
        None if answer.plan is None else str(answer.plan),
        None if answer.weights is None else list(answer.weights),
        answer.confidence,
        answer.why,
        answer.corrupted,
    ]


def _read_answer(stored: list[Any]) -> Answer:
    plan, weights, confidence, why, *corrupted = stored  # checkpoints of older runs do not say corrupted
    return Answer(
        None if plan is None else parse(plan),
        None if weights is None else tuple(weights),
        confidence,
        why,
        corrupted == [True],
    )


def _prior(advice: Sequence[StepAdvice | None], num_actions: int) -> Prior:
    """Put the environments' advice together, N of them.

    Every action is allowed. An action without a share has the floor of `prior_logits`, and no adviser bans
    one.
    """
    nothing = StepAdvice([1.0 / num_actions] * num_actions, 0.0, "none")
    rows = [nothing if one is None else one for one in advice]
    weights = torch.tensor([row.weights for row in rows], dtype=torch.float32)
    mask = torch.ones(len(rows), num_actions, dtype=torch.bool)
    confidence = torch.tensor([row.confidence for row in rows], dtype=torch.float32)
    source = torch.tensor([SOURCES.index(row.source) for row in rows], dtype=torch.uint8)
    return Prior(prior_logits(weights), mask, confidence, source)


def prior_logits(probs: Tensor) -> Tensor:
    """Return the log of an advised distribution, raised so that no action is below FLOOR / A.

    Args:
        probs: The distribution, (..., A).

    Returns:
        log((1 - FLOOR) * probs + FLOOR / A), (..., A).
    """
    return ((1.0 - FLOOR) * probs + FLOOR / probs.shape[-1]).log()

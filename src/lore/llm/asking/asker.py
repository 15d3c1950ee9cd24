"""One ask, from a question to an answer or a named failure: stored, journaled, paid for, given up in time.

Spec of what may be spent and in which order it is checked: docs/advisers.md, "What an ask costs".
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lore.base.types import GridState
from lore.llm.answer import ANSWER_VERSION, BadAnswer, parse_answer
from lore.llm.asking.ask_log import AskLog
from lore.llm.asking.breaker import Breaker
from lore.llm.asking.budget import Budget
from lore.llm.asking.cache import BAD_ENTRY, AnswerCache
from lore.llm.asking.journal import Journal
from lore.llm.asking.ledger import SweepLedger
from lore.llm.asking.question import Asked, Question
from lore.llm.asking.record import AskRecord
from lore.llm.asking.sender import LONGEST_PAUSE_S, Sender, Sent
from lore.llm.asking.stored_answers import StoredAnswers
from lore.llm.prompt import PROMPT_VERSION
from lore.llm.providers import Provider, Request


class Asker:
    """Asks one provider for one run.

    One question is under way at a time.

    Attributes:
        counts: How often the run asked (asked), was answered by the cache (cached) and sent a request
            (provider_calls).
        failures: Failures by kind.
        latency_s: Seconds of all provider calls together.
        swept: Whether the sweep's ledger is used up.
    """

    def __init__(
        self,
        provider: Provider,
        journal: Journal,
        budget: Budget,
        breaker: Breaker,
        say: Callable[[str], None],
        *,
        cache: AnswerCache | None = None,
        ledger: SweepLedger | None = None,
        timeout_s: float = 10.0,
        retries: int = 1,
        wait: bool = True,
        clock: Callable[[], float] = time.time,
        is_corrupted: Callable[[str], bool] = lambda plan_key: False,
    ):
        """Begin without a question under way.

        Args:
            provider: Whom to ask.
            journal: The asks of this run.
            budget: What this run may spend.
            breaker: Stops asking for a while after failures in a row.
            say: Takes a line for the user.
            cache: Answers that runs share; None for none.
            ledger: Counts the calls of a whole sweep; None where there is no sweep.
            timeout_s: Seconds of one ask, retries included.
            retries: Further attempts after a failure that may pass.
            wait: Whether `ask` returns only with the outcome.
            clock: Returns the seconds since 1970.
            is_corrupted: Plan key -> whether the provider makes its answers there wrong on purpose.
        """
        self.provider, self.journal, self.budget, self.breaker = provider, journal, budget, breaker
        self.say, self.wait, self._clock, self._is_corrupted = say, wait, clock, is_corrupted
        self._stored = StoredAnswers(cache, provider.identity())
        self._log = AskLog(journal, (provider.identity(), PROMPT_VERSION, ANSWER_VERSION))
        self._sender = Sender(provider, say, ledger=ledger, timeout_s=timeout_s, retries=retries, clock=clock)
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.latency_s = 0.0  # of all provider calls
        self.swept = False  # the sweep's ledger is used up
        self._open: tuple[Question, int] | None = None  # the question under way and its number in the budget
        self._result: list[Sent] = []  # filled by the thread that asks
        self._looks = 0  # calls of `collect_arrival`; two may have one env_step: where episodes meet
        self._said_pause = False
        self._pause_until = 0.0  # see Sent; 0: the latest answer of the server asked for no pause

    def ask(self, question: Question) -> Asked:
        """Ask, unless something forbids it.

        Args:
            question: What to ask, and where.

        Returns:
            The answer, or why there is none.

        Raises:
            BadInput: The journal is damaged, or tells of another question: it does not belong to this run.
        """
        if self._open is not None:
            return Asked(question, "busy")
        request, told = question.request, self._log.find(question)
        replaying = self._log.next() is not None
        text, bad_entries = (None, 0) if replaying else self._stored.find(request)
        free = text is not None or (told is not None and told.cached)
        bounds = (0.0, 0) if free else self._sender.bounds(request)
        refusal = self._refusal(question, free, bounds)
        if refusal:
            return Asked(question, refusal)
        if told is None and replaying:
            raise self._log.explain_mismatch(question)
        number = self.budget.reserve(*bounds)
        assert number is not None
        self._open = question, number
        self.counts["asked"] += 1
        before = [BAD_ENTRY] * bad_entries
        if text is not None:
            return self._close(question.env_step, Sent(text, before), cached=True)
        if told is None and self.wait:
            return self._close(question.env_step, self._send(request, before))
        if told is None:
            result = self._result
            threading.Thread(target=lambda: result.append(self._send(request, before)), daemon=True).start()
        return self._arrived(question.env_step) or Asked(question, "waiting")

    def _send(self, request: Request, before: list[str]) -> Sent:
        sent = self._sender.send(request)
        sent.failures[:0] = before
        return sent

    def collect_arrival(self, env_step: int) -> Asked | None:
        """Return the outcome of the question under way, if it is there now.

        Call it once before each step's asks.

        Args:
            env_step: Environment step of the run.

        Returns:
            The outcome; None where no question is under way, or where it has no outcome yet.

        Raises:
            BadInput: The journal is damaged, or tells of another question.
        """
        self._looks += 1
        return None if self._open is None else self._arrived(env_step)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the journal's records and the answers in the cache."""
        pending = None
        if self._open is not None:
            question, number = self._open
            keys = (question.request.key, question.request.plan_key)
            pending = [question.env_step, question.env, question.trigger, number, *keys]
        return {
            "journal": self._log.state_dict(),
            "budget": self.budget.state_dict(),
            "breaker": self.breaker.state_dict(),
            "counts": dict(self.counts),
            "failures": dict(self.failures),
            "latency_s": self.latency_s,
            "swept": self.swept,
            "turn": self._looks,
            "pending": pending,
            "pause_until": self._pause_until,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. A question then under way is answered by the journal, or lost.

        Args:
            state: What `state_dict` returned.

        Raises:
            BadInput: The journal does not reach to where `state` was taken, or is damaged behind it.
        """
        self._log.load_state_dict(state["journal"])
        self.budget.load_state_dict(state["budget"])
        self.breaker.load_state_dict(state["breaker"])
        self.counts, self.failures = Counter(state["counts"]), Counter(state["failures"])
        self.latency_s, self.swept, self._looks = state["latency_s"], state["swept"], state["turn"]
        self._pause_until = state.get("pause_until", 0.0)  # older checkpoints know of no pause
        self._open, self._result = None, []
        if state["pending"] is not None:
            env_step, env, trigger, number, key, plan_key = state["pending"]
            nothing = GridState("", None, (0, 0), 0, {}, frozenset(), 0, 0)
            request = Request("", "", nothing, key, plan_key, (), 0)
            self._open = Question(request, env_step, env, trigger), number
            if self._log.next() is None:
                self._result.append(Sent(failures=["lost"], usd=None, tokens=None))

    def _refusal(self, question: Question, free: bool, bounds: tuple[float, int]) -> str:
        """Say why this is not asked; empty text where it may be.

        The breaker's `allow` comes last, because it begins a trial where it says yes.
        """
        if self.swept and not free:
            return "sweep_budget"
        if not self.budget.can_reserve(*bounds):
            return "budget"
        if free:
            return ""
        if not self.breaker.would_allow(question.env_step):
            return "breaker"
        if self._is_paused(question):
            return "paused"
        return "" if self.breaker.allow(question.env_step) else "breaker"

    def _is_paused(self, question: Question) -> bool:
        """Say whether the server's pause forbids this ask.

        A run that is served from its journal does not look at the clock. Where the next record belongs to a
        later question, this one was not asked.
        """
        if not self._pause_until:
            return False
        if self._log.next() is None:
            return 0 < self._pause_until - self._clock() <= LONGEST_PAUSE_S
        return self._log.comes_later(question)

    def _arrived(self, env_step: int) -> Asked | None:
        assert self._open is not None
        if self._log.next() is not None:
            question, number = self._open
            record = self._log.find(question)
            if record is None or record.ask not in (0, number):
                raise self._log.explain_mismatch(question)
            if record.turn > self._looks:
                return None
            self._log.take()
            return self._apply(record)
        if not self._result:
            return None
        return self._close(env_step, self._result.pop())

    def _close(self, env_step: int, sent: Sent, cached: bool = False) -> Asked:
        """Put what came of the open question on the disk, then use it."""
        assert self._open is not None
        question, number = self._open
        provider, prompt_version, answer_version = self._log.adviser
        record = AskRecord(
            env_step=question.env_step,
            arrived=env_step,
            turn=self._looks,
            env=question.env,
            trigger=question.trigger,
            key=question.request.key,
            plan_key=question.request.plan_key,
            provider=provider,
            prompt_version=prompt_version,
            answer_version=answer_version,
            cached=cached,
            sent=sent.sent,
            refused=sent.refused,
            failures=sent.failures,
            text=sent.text,
            actions=list(question.request.actions),
            usd=sent.usd,
            tokens=sent.tokens,
            latency_s=round(sent.latency_s, 4),
            ask=number,
            pause_until=sent.pause_until,
        )
        self._log.append(record)
        return self._apply(record)

    def _apply(self, record: AskRecord) -> Asked:
        """Book a record of the journal and read its answer: the same in a run and in its resumption."""
        assert self._open is not None
        (question, number), self._open = self._open, None
        self.budget.settle(number, record.usd, record.tokens)
        self.counts["provider_calls"] += record.sent
        self.counts["cached"] += record.cached
        self.latency_s += record.latency_s
        self.failures.update(record.failures)
        if not record.cached:
            self._pause(record.pause_until)
        if record.refused:
            self.swept = True
            return Asked(question, "sweep_budget")
        if record.text is None:
            return self._failed(question, record.failures[-1])
        try:
            answer = parse_answer(record.text, tuple(record.actions))
        except BadAnswer as error:
            self.failures[error.kind] += 1
            return Asked(question, "failed") if record.cached else self._failed(question, error.kind)
        if not record.cached:
            self.breaker.record_success()
            meta = {"usd": record.usd, "tokens": record.tokens, "latency_s": record.latency_s}
            self._stored.keep(question.request, answer, record.text, meta)
        answer = replace(answer, corrupted=self._is_corrupted(record.plan_key))
        return Asked(question, "answered", answer)

    def _pause(self, until: float) -> None:
        """Leave the server alone until this time, in seconds since 1970; 0 ends the pause."""
        self._pause_until = until
        left = until - self._clock()
        if left > 0 and not self._said_pause:
            self._said_pause = True
            self.say(f"LLM: the server asks to be left alone for {left:.0f} s, and is (said once)")

    def _failed(self, question: Question, kind: str) -> Asked:
        line = None if kind == "missing" else self.breaker.record_failure(question.env_step, kind)
        if line:
            self.say(line)
        return Asked(question, "failed")

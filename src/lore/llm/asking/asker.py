"""One ask, from a question to an answer or a named failure: stored, journaled, paid for, given up in time.

Spec of what may be spent and in which order it is checked: docs/advisers.md, "What an ask costs".
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lore.base.types import GridState
from lore.llm.answer import ANSWER_VERSION, Answer, BadAnswer, parse_answer
from lore.llm.asking.breaker import Breaker
from lore.llm.asking.budget import Budget
from lore.llm.asking.cache import AnswerCache, CachedAnswer, answer_key
from lore.llm.asking.deadline import call
from lore.llm.asking.journal import Journal
from lore.llm.asking.ledger import LedgerError, SweepLedger
from lore.llm.prompt import PROMPT_VERSION
from lore.llm.providers import Provider, ProviderError, Reply, Request

EXTRA_TOKENS = 2000  # more than the answer's schema and a server's own words take
PAID_UNKNOWN = (
    "timeout",
    "connection_reset",
    "not_json_body",
    "bad_body",
    "too_large_body",
    "truncated",
    "refusal",
    "empty",
)
"""Failures after which a model may have answered, and is paid: without a reply that tells how much, and after
a bug, the whole reservation is booked."""


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

    failed, budget, sweep_budget, breaker; with llm.wait=false also waiting (`arrivals` will bring it) and
    busy (not asked: an earlier question is under way).
    """

    question: Question
    outcome: str
    answer: Answer | None = None


@dataclass
class _Result:
    """What a provider gave, over all attempts. usd and tokens: None where they are not known."""

    text: str | None = None
    failures: list[str] = field(default_factory=list)
    sent: int = 0
    usd: float | None = 0.0
    tokens: int | None = 0
    latency_s: float = 0.0
    refused: bool = False  # by the sweep's ledger


class Asker:
    """Asks one provider for one run.

    counts: asked, cached, provider_calls, and failures by kind. One question is under way at a time.
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
    ):
        """timeout_s: of one ask with its retries. say: takes a line for the user."""
        self.provider, self.journal, self.budget, self.breaker = provider, journal, budget, breaker
        self.cache, self.ledger, self.say = cache, ledger, say
        self.timeout_s, self.retries, self.wait = timeout_s, retries, wait
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.latency_s = 0.0  # of all provider calls
        self.swept = False  # the sweep's ledger is used up
        self._open: tuple[Question, int] | None = None  # the question under way and its number in the budget
        self._result: list[_Result] = []  # filled by the thread that asks
        self._turn = 0  # calls of `arrivals`; two may have one env_step: where episodes meet

    def ask(self, question: Question) -> Asked:
        """An answer or why there is none. Raises RuntimeError where the journal tells of another question."""
        if self._open is not None:
            return Asked(question, "busy")
        request, told = question.request, self._told(question)
        stored = self._look_up(request) if self.journal.peek() is None else None
        free = stored is not None or (told is not None and told["cached"])
        bounds = (0.0, 0) if free else self._bounds(request)
        refusal = self._refusal(question, free, bounds)
        if refusal:
            return Asked(question, refusal)
        if told is None and self.journal.peek() is not None:
            raise RuntimeError(self._mismatch(question))
        number = self.budget.reserve(*bounds)
        assert number is not None
        self._open = question, number
        self.counts["asked"] += 1
        if stored is not None:
            return self._close(question.env_step, _Result(stored.text), cached=True)
        if told is None and self.wait:
            return self._close(question.env_step, self._attempt(request))
        if told is None:
            result = self._result
            threading.Thread(target=lambda: result.append(self._attempt(request)), daemon=True).start()
        return self._arrived(question.env_step) or Asked(question, "waiting")

    def arrivals(self, env_step: int) -> Asked | None:
        """The outcome of the question under way, if it is there now. Call it once before each step's asks."""
        self._turn += 1
        return None if self._open is None else self._arrived(env_step)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the journal's records and the answers in the cache."""
        pending = None
        if self._open is not None:
            question, number = self._open
            keys = (question.request.key, question.request.plan_key)
            pending = [question.env_step, question.env, question.trigger, number, *keys]
        return {
            "journal": self.journal.state_dict(),
            "budget": self.budget.state_dict(),
            "breaker": self.breaker.state_dict(),
            "counts": dict(self.counts),
            "failures": dict(self.failures),
            "latency_s": self.latency_s,
            "swept": self.swept,
            "turn": self._turn,
            "pending": pending,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. A question then under way is answered by the journal, or lost."""
        self.journal.load_state_dict(state["journal"])
        self.budget.load_state_dict(state["budget"])
        self.breaker.load_state_dict(state["breaker"])
        self.counts, self.failures = Counter(state["counts"]), Counter(state["failures"])
        self.latency_s, self.swept, self._turn = state["latency_s"], state["swept"], state["turn"]
        self._open, self._result = None, []
        if state["pending"] is not None:
            env_step, env, trigger, number, key, plan_key = state["pending"]
            nothing = GridState("", None, (0, 0), 0, {}, frozenset(), 0, 0)
            request = Request("", "", nothing, key, plan_key, (), 0)
            self._open = Question(request, env_step, env, trigger), number
            if self.journal.peek() is None:
                self._result.append(_Result(failures=["lost"], usd=None, tokens=None))

    def _told(self, question: Question) -> dict[str, Any] | None:
        """The journal's next record, if it is of this question."""
        record = self.journal.peek()
        asked = {
            "env_step": question.env_step,
            "env": question.env,
            "key": question.request.key,
            **self._adviser(),
        }
        return record if record is not None and asked.items() <= record.items() else None

    def _adviser(self) -> dict[str, str]:
        """Who is asked, in which words, and how the answer is read."""
        return {
            "provider": self.provider.identity(),
            "prompt_version": PROMPT_VERSION,
            "answer_version": ANSWER_VERSION,
        }

    def _refusal(self, question: Question, free: bool, bounds: tuple[float, int]) -> str:
        """Why this is not asked, or empty text. The breaker comes last: its yes begins a trial."""
        if self.swept and not free:
            return "sweep_budget"
        if not self.budget.can_reserve(*bounds):
            return "budget"
        return "" if free or self.breaker.allow(question.env_step) else "breaker"

    def _mismatch(self, question: Question) -> str:
        record = self.journal.peek()
        assert record is not None
        adviser = self._adviser()
        then = ", ".join(str(record[name]) for name in adviser)
        return (
            f"{self.journal.path}: its next record is of environment {record['env']} at step "
            f"{record['env_step']} ({then}), but this run asks for environment {question.env} at step "
            f"{question.env_step} ({', '.join(adviser.values())}): config, code or file are not those of the "
            "run it was written by"
        )

    def _look_up(self, request: Request) -> CachedAnswer | None:
        """The stored plan for this kind of situation, else the stored answer for this very one."""
        if self.cache is None:
            return None
        return self.cache.get(self._name(request.plan_key, request)) or self.cache.get(
            self._name(request.key, request)
        )

    def _name(self, key: str, request: Request) -> str:
        version = f"{ANSWER_VERSION} {' '.join(request.actions)}"
        return answer_key(key, self.provider.identity(), PROMPT_VERSION, version)

    def _bounds(self, request: Request) -> tuple[float, int]:
        """At most this many dollars and tokens, retries included; a token is at least one byte."""
        attempts = 1 + self.retries
        tokens = request.max_tokens + len((request.system + request.prompt).encode()) + EXTRA_TOKENS
        return attempts * self.provider.max_cost_usd(request), attempts * tokens

    def _attempt(self, request: Request) -> _Result:
        """Ask the provider until it answers, fails for good, or the time is up."""
        result, end = _Result(), time.monotonic() + self.timeout_s
        for tries_left in range(self.retries, -1, -1):
            try:
                if not self._granted(end):
                    result.refused = True
                    return result
                result.sent += 1
                started = time.monotonic()
                reply = call(lambda: self._reply(request), end - started)
            except LedgerError as error:
                self.say(f"LLM: not asked: {error}")
                result.failures.append("ledger_error")
                return result
            except ProviderError as error:
                if error.kind.startswith("bug_"):
                    self.say(f"LLM: provider {self.provider.name}: {error}")
                result.failures.append(error.kind)
                result.latency_s += time.monotonic() - started
                self._add(result, error.reply, error.kind)
                pause = max(0.0, error.retry_after_s or 0.0)
                if not tries_left or not error.retryable or time.monotonic() + pause >= end:
                    return result
                time.sleep(pause)
            else:
                result.text = reply.text
                result.latency_s += time.monotonic() - started
                self._add(result, reply, "")
                return result
        return result

    def _granted(self, end: float) -> bool:
        """Whether the sweep's ledger lets a call out. Raises LedgerError, also where that takes too long."""
        try:
            return self.ledger is None or call(self.ledger.reserve, end - time.monotonic())
        except ProviderError as error:
            raise LedgerError(f"the sweep's ledger: {error}") from error

    def _reply(self, request: Request) -> Reply:
        """What the provider replies. Raises ProviderError, whatever it raises itself."""
        try:
            reply = self.provider.ask(request)
            if not isinstance(reply, Reply) or not isinstance(reply.text, str):
                raise TypeError(f"no Reply with a text, but {reply!r:.60}")
        except ProviderError:
            raise
        except BaseException as error:  # of a user's provider, in its own thread: never Ctrl-C
            raise ProviderError(f"bug_{type(error).__name__}", str(error)) from error
        return reply

    def _add(self, result: _Result, reply: Reply | None, kind: str) -> None:
        if reply is None and kind not in PAID_UNKNOWN and not kind.startswith("bug_"):
            return
        if reply is None or result.usd is None or result.tokens is None or not _countable(reply):
            result.usd = result.tokens = None
        else:
            result.usd += reply.cost_usd
            result.tokens += reply.input_tokens + reply.output_tokens

    def _arrived(self, env_step: int) -> Asked | None:
        assert self._open is not None
        if self.journal.peek() is not None:
            record = self._told(self._open[0])
            if record is None:
                raise RuntimeError(self._mismatch(self._open[0]))
            if record["turn"] > self._turn:
                return None
            self.journal.take()
            return self._apply(record)
        if not self._result:
            return None
        return self._close(env_step, self._result.pop())

    def _close(self, env_step: int, result: _Result, cached: bool = False) -> Asked:
        """Put what came of the open question on the disk, then use it."""
        assert self._open is not None
        question = self._open[0]
        record: dict[str, Any] = {
            "env_step": question.env_step,
            "arrived": env_step,
            "turn": self._turn,
            "env": question.env,
            "trigger": question.trigger,
            "key": question.request.key,
            "plan_key": question.request.plan_key,
            **self._adviser(),
            "cached": cached,
            "sent": result.sent,
            "refused": result.refused,
            "failures": result.failures,
            "text": result.text,
            "actions": list(question.request.actions),
            "usd": result.usd,
            "tokens": result.tokens,
            "latency_s": round(result.latency_s, 4),
        }
        self.journal.append(record)
        return self._apply(record)

    def _apply(self, record: dict[str, Any]) -> Asked:
        """Book a record of the journal and read its answer: the same in a run and in its resumption."""
        assert self._open is not None
        (question, number), self._open = self._open, None
        self.budget.settle(number, record["usd"], record["tokens"])
        self.counts["provider_calls"] += record["sent"]
        self.counts["cached"] += record["cached"]
        self.latency_s += record["latency_s"]
        self.failures.update(record["failures"])
        if record["refused"]:
            self.swept = True
            return Asked(question, "sweep_budget")
        if record["text"] is None:
            return self._failed(question, record["failures"][-1])
        try:
            answer = parse_answer(record["text"], tuple(record["actions"]))
        except BadAnswer as error:
            self.failures[error.kind] += 1
            return Asked(question, "failed") if record["cached"] else self._failed(question, error.kind)
        if not record["cached"]:
            self.breaker.success()
            self._store(question.request, record, answer)
        return Asked(question, "answered", answer)

    def _store(self, request: Request, record: dict[str, Any], answer: Answer) -> None:
        if self.cache is not None and request.actions:
            meta = {k: record[k] for k in ("usd", "tokens", "latency_s")}
            key = request.plan_key if answer.plan else request.key
            self.cache.put(self._name(key, request), record["text"], meta)

    def _failed(self, question: Question, kind: str) -> Asked:
        line = None if kind == "missing" else self.breaker.failure(question.env_step, kind)
        if line:
            self.say(line)
        return Asked(question, "failed")


def _countable(reply: Reply) -> bool:
    """Whether dollars and tokens are numbers that can be booked."""
    tokens = (reply.input_tokens, reply.output_tokens)
    dollars = isinstance(reply.cost_usd, float | int) and 0 <= reply.cost_usd < math.inf
    return dollars and all(isinstance(count, int) and count >= 0 for count in tokens)

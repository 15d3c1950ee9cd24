"""Sends one question to a provider: within a deadline, with retries, each of them granted by the ledger."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from lore.base.errors import debug
from lore.base.secrets import mask, mask_values
from lore.llm.asking.deadline import call
from lore.llm.asking.ledger import LedgerError, SweepLedger
from lore.llm.request import Provider, ProviderError, Reply, Request

EXTRA_TOKENS = 2000  # more than the answer's schema and a server's own words take
LONGEST_TEXT = 1 << 20  # characters of a reply that are kept; a real answer is far shorter
LONGEST_PAUSE_S = 3600.0  # longest pause that a server is granted
MAY_HAVE_ANSWERED = (
    "timeout",
    "connection_reset",
    "not_json_body",
    "bad_body",
    "too_large_body",
    "truncated",
    "refusal",
    "empty",
)
"""Failures after which a model may have answered, and then has to be paid. Where no reply tells how much, the
whole reservation is booked; after a bug of a provider as well."""


@dataclass
class Sent:
    """What a provider gave, over all attempts.

    Attributes:
        text: The answer; None where it gave none.
        failures: Kinds of failure, in order.
        sent: Attempts that went out.
        usd: Dollars; None where they are not known.
        tokens: Tokens in and out together; None where they are not known.
        latency_s: Seconds of the attempts together.
        refused: Whether the sweep's ledger had no call left.
        pause_until: The server asked to be left alone until this time, in seconds since 1970; 0 where it did
            not.
    """

    text: str | None = None
    failures: list[str] = field(default_factory=list)
    sent: int = 0
    usd: float | None = 0.0
    tokens: int | None = 0
    latency_s: float = 0.0
    refused: bool = False
    pause_until: float = 0.0


class Sender:
    """Asks one provider. May be used from a thread."""

    def __init__(
        self,
        provider: Provider,
        say: Callable[[str], None],
        *,
        ledger: SweepLedger | None,
        timeout_s: float,
        retries: int,
        clock: Callable[[], float],
    ):
        """Begin; nothing is sent yet.

        Args:
            provider: Whom to ask. It may have a method `prepare`, called before a call is taken from the
                ledger.
            say: Takes a line for the user.
            ledger: Counts the calls of a whole sweep; None where there is no sweep.
            timeout_s: Seconds of one question with all its attempts.
            retries: Attempts after the first.
            clock: Returns the seconds since 1970.
        """
        self.provider, self.ledger, self._say, self._clock = provider, ledger, say, clock
        self.timeout_s, self.retries = timeout_s, retries
        self._said: set[str] = set()

    def bounds(self, request: Request) -> tuple[float, int]:
        """Return the most that a question can cost, all attempts together; a token is at least one byte.

        Args:
            request: The question.

        Returns:
            Dollars, and tokens in and out together.
        """
        attempts = 1 + self.retries
        tokens = request.max_tokens + len((request.system + request.prompt).encode()) + EXTRA_TOKENS
        return attempts * self.provider.max_cost_usd(request), attempts * tokens

    def send(self, request: Request) -> Sent:
        """Ask the provider until it answers, fails for good, or the time is up.

        Args:
            request: The question.

        Returns:
            What came of it. A failure is not raised but named there.
        """
        sent, end = Sent(), time.monotonic() + self.timeout_s
        for tries_left in range(self.retries, -1, -1):
            started, before = time.monotonic(), sent.sent
            try:
                self._run("prepare", end)
                if not self._is_granted(end):
                    sent.refused = True
                    return sent
                sent.sent += 1
                started = time.monotonic()
                reply = self._run("ask", end, request)
            except LedgerError as error:
                self._say(mask(f"LLM: not asked: {error}"))
                sent.failures.append("ledger_error")
                return sent
            except ProviderError as error:
                self._say_once(error)
                sent.failures.append(error.kind)
                sent.latency_s += time.monotonic() - started
                if sent.sent > before:
                    _book(sent, error.reply, error.kind)
                pause = min(max(0.0, error.retry_after_s or 0.0), LONGEST_PAUSE_S)
                if not tries_left or not error.retryable or time.monotonic() + pause >= end:
                    sent.pause_until = self._clock() + pause if pause else 0.0
                    return sent
                time.sleep(pause)
            else:
                assert reply is not None
                sent.text = mask_values(reply.text[:LONGEST_TEXT])
                sent.latency_s += time.monotonic() - started
                _book(sent, reply, "")
                return sent
        return sent

    def _is_granted(self, end: float) -> bool:
        """Say whether the sweep's ledger grants a call. Raises LedgerError, also where it takes too long."""
        try:
            return self.ledger is None or call(self.ledger.reserve, end - time.monotonic())
        except ProviderError as error:
            raise LedgerError(f"the sweep's ledger: {error}") from error

    def _run(self, name: str, end: float, *arguments: Request) -> Reply | None:
        """Call a method of the provider, if it exists. Raises ProviderError, whatever the method raises."""
        method = getattr(self.provider, name, None)
        if method is None:
            return None

        def guarded() -> Reply | None:
            try:
                reply: object = method(*arguments)
                if arguments and not (isinstance(reply, Reply) and isinstance(reply.text, str)):
                    raise TypeError(f"no Reply with a text, but {reply!r:.60}")
            except ProviderError:
                raise
            except BaseException as error:  # of a user's provider, not in the main thread: never Ctrl-C
                raise ProviderError(f"bug_{type(error).__name__}", str(error)) from error
            return reply if isinstance(reply, Reply) else None

        return call(guarded, end - time.monotonic())

    def _say_once(self, error: ProviderError) -> None:
        """Tell the user of failures that no waiting ends, and that their kind does not explain."""
        if (error.kind.startswith("bug_") or error.kind == "no_client") and error.kind not in self._said:
            self._said.add(error.kind)
            self._say(mask(f"LLM: provider {self.provider.name}: {error} (said once)"))
            if error.__cause__ is not None and debug():
                for line in mask("".join(traceback.format_exception(error.__cause__))).splitlines():
                    self._say(line)


def _book(sent: Sent, reply: Reply | None, kind: str) -> None:
    """Add what one attempt cost. `kind` names its failure; it is empty where the attempt was answered."""
    if reply is None and kind not in MAY_HAVE_ANSWERED and not kind.startswith("bug_"):
        return
    if reply is None or sent.usd is None or sent.tokens is None or not _is_countable(reply):
        sent.usd = sent.tokens = None
    else:
        sent.usd += reply.cost_usd
        sent.tokens += reply.input_tokens + reply.output_tokens


def _is_countable(reply: Reply) -> bool:
    """Whether dollars and tokens are numbers that can be booked."""
    tokens = (reply.input_tokens, reply.output_tokens)
    dollars = isinstance(reply.cost_usd, float | int) and 0 <= reply.cost_usd < math.inf
    return dollars and all(isinstance(count, int) and count >= 0 for count in tokens)

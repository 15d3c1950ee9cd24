"""What an adviser is asked, what it replies and how it fails: all that a provider has to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from lore.base.types import GridState

FAILURES = {
    "timeout": True,
    "connection_refused": True,
    "connection_reset": True,
    "connection_failed": True,
    "http_400": False,
    "http_401": False,
    "http_402": False,
    "http_403": False,
    "http_404": False,
    "http_408": True,
    "http_409": True,
    "http_413": False,
    "rate_limited": True,
    "server_error": True,
    "overloaded": True,
    "not_json_body": False,
    "bad_body": False,
    "too_large_body": False,
    "truncated": False,
    "refusal": False,
    "empty": False,
    "redirected": False,
    "no_key": False,
    "no_client": False,
    "missing": False,
    "stuck": False,
    "canceled": True,
    "expired": True,
}
"""Kind of failure -> whether asking again can help. A status not named here is http_STATUS; docs/advisers.md
says what each one means."""


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        system: Instructions, the same for every state.
        prompt: The state in words.
        state: What the agent knows.
        key: What a policy is filed under.
        plan_key: What a plan is filed under.
        actions: Names, in the order of an answer's weights.
        max_tokens: Longest answer, in tokens, the model's thinking included.
        privileged: Returns the optimal actions now; given only to a provider that says it is privileged.
    """

    system: str
    prompt: str
    state: GridState
    key: str
    plan_key: str
    actions: tuple[str, ...]
    max_tokens: int
    privileged: Callable[[], list[str]] | None = None


@dataclass(frozen=True)
class Wording:
    """How the situations of one family of worlds are put to an adviser, and how its answers are filed.

    All four functions tell of nothing but what the agent knows, and give the same in every process.

    Attributes:
        system: Names of the actions -> the instructions, one text for a whole run.
        describe: State -> the situation in words.
        plan_key: State -> what a plan is filed under.
        policy_key: State -> what a policy is filed under.
    """

    system: Callable[[tuple[str, ...]], str]
    describe: Callable[[Any], str]
    plan_key: Callable[[Any], str]
    policy_key: Callable[[Any], str]

    def make_request(
        self,
        state: GridState,
        actions: tuple[str, ...],
        max_tokens: int,
        privileged: Callable[[], list[str]] | None = None,
    ) -> Request:
        """Put a situation into a request.

        Args:
            state: What the agent knows.
            actions: Names, in the order of an answer's weights.
            max_tokens: Longest answer, in tokens.
            privileged: The optimal actions now, for a provider that may see them.
        """
        return Request(
            system=self.system(actions),
            prompt=self.describe(state),
            state=state,
            key=self.policy_key(state),
            plan_key=self.plan_key(state),
            actions=actions,
            max_tokens=max_tokens,
            privileged=privileged,
        )


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: The model's words, not yet parsed.
        input_tokens: All tokens that the model read.
        output_tokens: Tokens that it wrote.
        cached_tokens: Those of input_tokens that came from the provider's prompt cache.
        cost_usd: Dollars.
        latency_s: Seconds from sending to the whole reply; 0 in a batch.
        stop: The provider's word for why the answer ended.
    """

    text: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: float
    latency_s: float
    stop: str


class ProviderError(Exception):
    """An ask that failed: the one exception that `Provider.ask` may raise for it.

    Attributes:
        kind: A word of FAILURES, or one that the provider defines.
        retryable: Whether asking again can help.
        retry_after_s: Seconds that the provider asks to wait; None where it does not.
        reply: What was paid for although it is of no use, else None.
    """

    def __init__(
        self,
        kind: str,
        message: str = "",
        *,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
        reply: Reply | None = None,
    ) -> None:
        """Name the failure.

        Args:
            kind: A word of FAILURES, or one that the provider defines.
            message: What happened, for people.
            retryable: Whether asking again can help; None: as FAILURES says, else False.
            retry_after_s: Seconds that the provider asks to wait.
            reply: What was paid for although it is of no use.
        """
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.retryable = FAILURES.get(kind, False) if retryable is None else retryable
        self.retry_after_s = retry_after_s
        self.reply = reply


class Provider(Protocol):
    """One adviser.

    Attributes:
        name: The name by which `llm.provider` knows it.
        model: Name of the model behind it.
        paid: Whether an ask may cost money.
        privileged: Whether it sees more than the agent can.
    """

    name: str
    model: str
    paid: bool
    privileged: bool

    def identity(self) -> str:
        """Name the model and every setting that shapes its answers; the same text means the same adviser."""

    def ask(self, request: Request) -> Reply:
        """Answer a request. May be called from several threads at once.

        Args:
            request: The question.

        Returns:
            The model's words, with tokens, dollars and seconds.

        Raises:
            ProviderError: The ask failed.
        """

    def max_cost_usd(self, request: Request) -> float:
        """Bound what `ask` can cost. This much is reserved before the request is sent.

        Args:
            request: The question.

        Returns:
            Dollars, at least what the ask can cost.
        """

"""Any server that speaks the Messages API, through Anthropic's SDK: one ask, or a batch of many.

The key comes from the environment and stays in the SDK's client: no option, message or exception holds it.
Retries are the caller's, so the SDK makes none. Whatever the server sends, memory and time are bounded.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import anthropic
from anthropic.types import Message, TextBlock
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.messages import MessageBatchErroredResult, MessageBatchSucceededResult

from lore.base.errors import BadInput
from lore.base.secrets import check_address, keep_secret, mask_values
from lore.config.options import LLMOptions, PriceOptions
from lore.llm.answer import schema
from lore.llm.asking.deadline import call
from lore.llm.providers.anthropic_http import http_client, name_failures
from lore.llm.request import ProviderError, Reply, Request

T = TypeVar("T")
BATCH_TIMEOUT_S = 600.0  # to send a batch, and to fetch its results
EXTRA_TOKENS = 1000  # more than a server adds to a prompt; its words about the schema are 50 to 200
CUT = ("max_tokens", "model_context_window_exceeded")  # stop reasons of an answer without its end
ERROR_TYPES = {  # of a request in a batch; https://platform.claude.com/docs/en/api/errors
    "invalid_request_error": "http_400",
    "authentication_error": "http_401",
    "billing_error": "http_402",
    "permission_error": "http_403",
    "not_found_error": "http_404",
    "request_too_large": "http_413",
    "rate_limit_error": "rate_limited",
    "api_error": "server_error",
    "overloaded_error": "overloaded",
    "timeout_error": "timeout",
}
PRICES = {
    "claude-haiku-5-5": PriceOptions(input=0.10, output=0.50, cache_write=0.125, cache_read=0.01),
    "claude-sonnet-5-5": PriceOptions(input=2.0, output=10.0, cache_write=2.5, cache_read=0.1),
    "claude-opus-5-5": PriceOptions(input=4.0, output=20.0, cache_write=5.0, cache_read=0.2),
}
"""Model -> its prices, Haiku's for prompts up to 100 000 tokens. Source, October 2026:
https://platform.claude.com/docs/en/models/haiku-5-5/overview, and the same of opus-5-5 and sonnet-5-5."""


class AnthropicProvider:
    """A model behind the Messages API."""

    name = "anthropic"
    paid = True  # of the class: with all prices 0 an object is not
    privileged = False

    @staticmethod
    def check(options: LLMOptions) -> None:
        """Refuse options that cannot work, and a missing key. Sends nothing.

        Args:
            options: The options of the group `llm`.

        Raises:
            BadInput: An option cannot work, or the environment holds no key.
        """
        AnthropicProvider(options)
        if not _key(options.key_variable):
            raise BadInput(
                "llm.key_variable",
                f"the environment variable {options.key_variable} is not set, or holds no key; export it, "
                "or choose an adviser without a key, such as llm=scripted",
            )

    def __init__(self, options: LLMOptions) -> None:
        """Take up the options; nothing is sent. Without a key every ask fails: "no_key".

        Args:
            options: The options of the group `llm`.

        Raises:
            BadInput: An option cannot work.
        """
        keep_secret(options.key_variable)
        self.model = options.model
        self.prices = _prices(options)
        self.paid = any(asdict(self.prices).values())
        self._options = options
        self._base_url = _base_url(options)
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", options.key_variable):
            raise BadInput(
                "llm.key_variable", "must name an environment variable; it is never the key itself"
            )
        self._client: anthropic.Anthropic | None = None

    def identity(self) -> str:
        """See Provider. The same model behind another address is another adviser."""
        return f"anthropic model={self.model} effort={self._options.effort} at={self._base_url}"

    def max_cost_usd(self, request: Request) -> float:
        """See Provider. A token is at least one byte of what is sent."""
        sent = request.system + request.prompt + json.dumps(schema(request.actions))
        dearest = max(self.prices.input, self.prices.cache_write, self.prices.cache_read)
        return ((len(sent.encode()) + EXTRA_TOKENS) * dearest + request.max_tokens * self.prices.output) / 1e6

    def ask(self, request: Request) -> Reply:
        """See Provider. Never takes longer than options.timeout_s."""
        client, limit = self._connect(), self._options.timeout_s
        started = time.monotonic()
        message = self._call(lambda: client.messages.create(**self._body(request), timeout=limit), limit)
        return self._reply(message, time.monotonic() - started)

    def submit(self, requests: Mapping[str, Request]) -> str:
        """Send a batch. It costs at most batch_price times the sum of max_cost_usd.

        Args:
            requests: Id -> request, at most 100 000 of them. An id has 1 to 64 letters, digits, - and _.

        Returns:
            The id that the server gave the batch.

        Raises:
            ProviderError: The batch was not taken.
            ValueError: An id has another form.
        """
        for name in requests:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
                raise ValueError(f"batch id {name!r} must have 1 to 64 letters, digits, - or _")
        batches, limit = self._connect().messages.batches, BATCH_TIMEOUT_S
        items = [{"custom_id": name, "params": self._body(request)} for name, request in requests.items()]
        return _word(self._call(lambda: batches.create(requests=items, timeout=limit), limit), "id")  # type: ignore[arg-type]

    def poll(self, batch: str) -> bool:
        """Say whether a batch has ended and can be collected.

        Args:
            batch: The id from `submit`.

        Raises:
            ProviderError: The server did not answer, or not in the expected form.
        """
        batches, limit = self._connect().messages.batches, self._options.timeout_s
        state = self._call(lambda: batches.retrieve(batch, timeout=limit), limit)
        return _word(state, "processing_status") == "ended"

    def collect(self, batch: str) -> dict[str, Reply | ProviderError]:
        """Fetch what came of each request of a batch that has ended. May be called again.

        Args:
            batch: The id from `submit`.

        Returns:
            Id of the request -> reply, or why there is none.

        Raises:
            ProviderError: The results cannot be fetched or read as a whole.
        """
        batches, limit = self._connect().messages.batches, BATCH_TIMEOUT_S

        def fetch() -> dict[str, Reply | ProviderError]:
            try:
                lines = batches.results(batch, timeout=limit)
            except AttributeError:  # the SDK reads a field of a body that it took for an object
                raise ProviderError("not_json_body", "the body is not an object") from None
            return {_word(line, "custom_id"): self._result(line.result) for line in lines}

        return self._call(fetch, limit)

    def prepare(self) -> None:
        """Build the client before a call is reserved for it: what fails here is not sent and costs nothing.

        Raises:
            ProviderError: "no_key", or "no_client" where the surroundings (a proxy, certificates) forbid one.
        """
        self._connect()

    def _connect(self) -> anthropic.Anthropic:
        if self._client is None:
            variable = self._options.key_variable
            key = _key(variable)
            if not key:
                raise ProviderError("no_key", f"environment variable {variable} is not set, or to no key")
            self._client = anthropic.Anthropic(
                api_key=key,
                base_url=self._base_url,
                max_retries=0,
                default_headers={"Accept-Encoding": "identity"},
                http_client=http_client(self._base_url),
            )
        return self._client

    def _body(self, request: Request) -> MessageCreateParamsNonStreaming:
        config: Any = {"format": {"type": "json_schema", "schema": schema(request.actions)}}
        if self._options.effort is not None:
            config["effort"] = self._options.effort
        return {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "system": [{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}],
            "messages": [{"role": "user", "content": request.prompt}],
            "output_config": config,
        }

    def _call(self, fn: Callable[[], T], limit: float) -> T:
        return call(lambda: name_failures(fn), limit)

    def _result(self, result: object) -> Reply | ProviderError:
        if isinstance(result, MessageBatchSucceededResult):
            try:
                return self._reply(result.message, 0.0, self._options.batch_price)
            except ProviderError as error:
                return error
        if isinstance(result, MessageBatchErroredResult):
            kind = str(getattr(getattr(result.error, "error", None), "type", None))
            return ProviderError(ERROR_TYPES.get(kind, "bad_body"), "in a batch")
        kind = str(getattr(result, "type", None))
        return ProviderError(kind if kind in ("canceled", "expired") else "bad_body", "in a batch")

    def _reply(self, message: object, latency_s: float, share: float = 1.0) -> Reply:
        if not isinstance(message, Message):
            raise ProviderError("not_json_body", "the body is not a message")
        usage, prices, stop = message.usage, self.prices, message.stop_reason or ""
        fresh, output = _count(usage, "input_tokens"), _count(usage, "output_tokens")
        written = _count(usage, "cache_creation_input_tokens", 0)
        cached = _count(usage, "cache_read_input_tokens", 0)
        cost = fresh * prices.input + written * prices.cache_write + cached * prices.cache_read
        cost = (cost + output * prices.output) * share / 1e6
        text = _text(message.content)
        reply = Reply(text, fresh + written + cached, output, cached, cost, latency_s, str(stop))
        if stop == "refusal":
            raise ProviderError("refusal", "the model would not answer", reply=reply)
        if stop in CUT:
            raise ProviderError("truncated", f"{stop} after {output} tokens", reply=reply)
        if not text.strip():
            raise ProviderError("empty", "no text in the answer", reply=reply)
        return reply


def _word(value: object, name: str) -> str:
    if not isinstance(value, anthropic.BaseModel):
        raise ProviderError("not_json_body", "the body is not an object")
    word = getattr(value, name, None)
    if not isinstance(word, str):
        raise ProviderError("bad_body", f"no {name} in the body")
    return word


def _count(usage: object, name: str, default: int | None = None) -> int:
    count = getattr(usage, name, None)
    count = default if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < 10**9:
        raise ProviderError("bad_body", f"usage has no {name}")
    return count


def _text(content: object) -> str:
    if not isinstance(content, list):
        raise ProviderError("bad_body", "no content in the body")
    texts = [_word(block, "text") for block in content if isinstance(block, TextBlock)]
    whole = "".join(texts).encode("utf-8", "replace").decode()  # without lone surrogates
    return mask_values(whole)  # a server may say the key back


def _prices(options: LLMOptions) -> PriceOptions:
    prices = options.prices or PRICES.get(options.model)
    if prices is None:
        known = ", ".join(PRICES)
        raise BadInput(
            "llm.prices", f"none are known for {options.model!r}; set all four, or use one of {known}"
        )
    for name, price in asdict(prices).items():
        if not 0 <= price < math.inf:
            raise BadInput(f"llm.prices.{name}", f"{price} must be at least 0")
    return prices


def _base_url(options: LLMOptions) -> str:
    if options.base_url:
        check_address("llm.base_url", options.base_url)
        return options.base_url.rstrip("/")
    url = os.environ.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com"
    check_address("ANTHROPIC_BASE_URL", url)
    return url.rstrip("/")


def _key(variable: str) -> str:
    """The key that an environment variable holds; empty where it holds none that HTTP can carry."""
    value = os.environ.get(variable, "").strip()
    return value if re.fullmatch(r"[!-~]+", value) else ""

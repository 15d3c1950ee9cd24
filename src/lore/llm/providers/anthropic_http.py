"""One HTTP client for the Messages API: bounded in size and time, without redirects, its failures by name."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import TypeVar

import anthropic
import httpx2

from lore.base.secrets import mask
from lore.llm.answer import clean
from lore.llm.request import ProviderError

T = TypeVar("T")
MAX_BODY = 1 << 20  # bytes of a reply, or of a line of a batch's results; real ones have some thousand
SURROUNDINGS = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Environment variables that shape an HTTP client, proxies in lower case too."""
STATUSES = {429: "rate_limited", 529: "overloaded"}


def http_client(base_url: str) -> httpx2.Client:
    """Make a client that follows no redirect and asks no other server than that of base_url.

    A redirect would post the prompt, and the key, to wherever a server says.

    Args:
        base_url: Address of the server.

    Raises:
        ProviderError: "no_client" where the surroundings (a proxy, certificates) forbid one.
    """
    home = httpx2.URL(base_url)

    def stay(request: httpx2.Request) -> None:
        if (request.url.scheme, request.url.host, request.url.port) != (home.scheme, home.host, home.port):
            raise _Unread("redirected", "the server names an address elsewhere")

    try:
        return anthropic.DefaultHttpxClient(
            follow_redirects=False, event_hooks={"request": [stay], "response": [_bound]}
        )
    except (
        OSError,
        ValueError,
        ImportError,
        httpx2.InvalidURL,
    ) as error:  # their words may hold a proxy's password
        named = [name for name in SURROUNDINGS if os.environ.get(name) or os.environ.get(name.lower())]
        raise ProviderError(
            "no_client", f"{type(error).__name__}; look at {', '.join(named) or 'the certificates'}"
        ) from None


class _Unread(anthropic.AnthropicError):
    """A body that is not read to its end. args: kind and message of the ProviderError."""


class _Bounded(httpx2.SyncByteStream):
    """A body that fails where it, or a line of it, is larger than MAX_BODY, or where it comes late."""

    def __init__(self, body: httpx2.SyncByteStream, by_line: bool, until: float) -> None:
        self._body, self._by_line, self._until = body, by_line, until

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._body:
            newline = chunk.rfind(b"\n") if self._by_line else -1
            size = size + len(chunk) if newline < 0 else len(chunk) - newline - 1
            if size > MAX_BODY:
                raise _Unread("too_large_body", f"more than {MAX_BODY} bytes")
            if time.monotonic() > self._until:
                raise _Unread("timeout", "the body came too slowly")
            yield chunk

    def close(self) -> None:
        self._body.close()


def _bound(response: httpx2.Response) -> None:
    """Limit the size and time of a body. The HTTP client calls this between head and body.

    A compressed body, which nobody asked for, could be a bomb and is refused.
    """
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _Unread("bad_body", "compressed")
    seconds = response.request.extensions["timeout"]["read"]
    by_line = response.request.url.path.endswith("/results")
    response.stream = _Bounded(response.stream, by_line, time.monotonic() + seconds)  # type: ignore[arg-type]


def name_failures(fn: Callable[[], T]) -> T:
    """Call a function of the SDK, and turn every failure of the SDK into a ProviderError.

    Nothing is kept of the original error. It holds the request, its headers and whatever words the server
    chose.

    Args:
        fn: What to call.

    Returns:
        What `fn` returns.

    Raises:
        ProviderError: The SDK failed; the kind says how.
    """
    try:
        return fn()
    except anthropic.APIStatusError as error:
        failure = _status(error)
    except (anthropic.APITimeoutError, httpx2.TimeoutException):
        failure = ProviderError("timeout", "the server is silent")
    except (anthropic.APIConnectionError, httpx2.TransportError) as error:
        failure = _connection(error)
    except _Unread as error:
        failure = ProviderError(*error.args)
    except anthropic.AnthropicError:
        failure = ProviderError("bad_body", "the batch has no results yet")
    except (ValueError, RecursionError):
        failure = ProviderError("not_json_body", "the body is not JSON")
    raise failure


def _status(error: anthropic.APIStatusError) -> ProviderError:
    status = error.status_code
    kind = STATUSES.get(status, "server_error" if status >= 500 else f"http_{status}")
    if 300 <= status < 400:
        kind = "redirected"
    words = mask(f"{error.type or ''} {error.api_message or ''}")
    pause = _pause(error.response.headers.get("retry-after", ""))
    return ProviderError(kind, f"status {status} {clean(words, 200)}".strip(), retry_after_s=pause)


def _pause(header: str) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date. None where it says neither."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
        except (ValueError, OverflowError):
            return None
    return seconds if 0 <= seconds < math.inf else None


def _connection(error: BaseException) -> ProviderError:
    chain: list[BaseException] = [error]
    while inner := chain[-1].__cause__ or next((a for a in chain[-1].args if isinstance(a, Exception)), None):
        chain.append(inner)
    cause = type(chain[-1]).__name__  # its words may hold what was sent
    broken = (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)
    if any(isinstance(link, broken) for link in chain):
        return ProviderError("connection_reset", cause)
    refused = isinstance(chain[-1], ConnectionRefusedError)
    return ProviderError("connection_refused" if refused else "connection_failed", cause)

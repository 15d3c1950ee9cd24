"""A call that is given up at its deadline, whatever it is waiting for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar, cast

from lore.llm.request import ProviderError

T = TypeVar("T")
Outcome = tuple[T | None, BaseException | None]
MAX_THREADS = 16  # calls under way at once in this process, those given up on included
_free = threading.BoundedSemaphore(MAX_THREADS)


def call(fn: Callable[[], T], timeout_s: float) -> T:
    """Return what `fn` returns, or raise what it raises, if it does so in time.

    fn runs in a daemon thread, for Python cannot stop code that waits inside a library. After the deadline
    the result of fn is dropped. The thread ends when fn does; it does not keep the process alive.

    Args:
        fn: What to call.
        timeout_s: Seconds until the deadline.

    Raises:
        ProviderError: "timeout" at the deadline; "stuck" where MAX_THREADS calls have not ended yet.
    """
    if timeout_s <= 0:
        raise ProviderError("timeout", "no time left")
    if not _free.acquire(blocking=False):
        raise ProviderError("stuck", f"{MAX_THREADS} asks are still under way")
    outcome: queue.SimpleQueue[Outcome[T]] = queue.SimpleQueue()
    threading.Thread(target=_run, args=(fn, outcome), name="lore-ask", daemon=True).start()
    try:
        value, error = outcome.get(timeout=timeout_s)
    except queue.Empty:
        raise ProviderError("timeout", f"no answer within {timeout_s:g} s") from None
    if error is not None:
        raise error
    return cast(T, value)


def _run(fn: Callable[[], T], outcome: queue.SimpleQueue[Outcome[T]]) -> None:
    result: Outcome[T]
    try:
        result = fn(), None
    except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
        result = None, error
    _free.release()
    outcome.put(result)

"""Signals that ask a run to stop: it saves and ends with exit status 130, wherever it stands."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Ctrl-C, `kill`, a terminal that goes away, two that batch systems send ahead of the end, the CPU limit."""


class Stopped(Exception):
    """A stop was asked for between two steps. What had begun is left as if it had not."""


class Stop:
    """Whether a stop was asked for.

    Attributes:
        signal: Name of the first signal that asked for it; empty before.
    """

    def __init__(self) -> None:
        self.signal = ""

    def check(self) -> None:
        """Raise where a stop was asked for; call it between two steps that belong together.

        Raises:
            Stopped: A stop was asked for.
        """
        if self.signal:
            raise Stopped(self.signal)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Let signals ask for a stop while the block runs; Ctrl-C after that raises KeyboardInterrupt at once.

    Any other signal after the first changes nothing: a terminal that goes away sends two, a limit on CPU time
    one a second. Outside of the main thread no signal arrives, and nothing changes.

    Yields:
        What the steps are to check.
    """
    stop = Stop()

    def handle(number: int, frame: object) -> None:
        if stop.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = stop.signal or signal.Signals(number).name

    with _handled(handle):
        yield stop


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Treat every signal of `NAMES` as a Ctrl-C while the block runs: for what has nothing to save."""
    caught: list[int] = []

    def handle(number: int, frame: object) -> None:
        if not caught or number == signal.SIGINT:
            caught.append(number)
            raise KeyboardInterrupt

    with _handled(handle):
        yield


@contextmanager
def _handled(handle: Callable[[int, object], None]) -> Iterator[None]:
    """Within it, `handle` takes the signals of NAMES, but for a SIGHUP that nohup has switched off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in signal.Signals if number.name in NAMES]
    ignored = {n for n in numbers if n.name == "SIGHUP" and signal.getsignal(n) == signal.SIG_IGN}
    before = {number: signal.signal(number, handle) for number in numbers if number not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

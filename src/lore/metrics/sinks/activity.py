"""What a command is busy with, while it has nothing to tell yet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.status import Status

from lore.metrics.sinks.terminal_view import clock_time

PLAIN_S = 10.0  # seconds between lines where there is no terminal


class Activity:
    """A line on stderr within a `with` block: one that moves on a terminal, one every few seconds elsewhere.

    Nothing is printed to standard output, and nothing else should be within the block.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._clock, self._told = clock, clock()
        self._status: Status | None = None
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._status = Status("", console=Console(file=self._stream))

    def show(self, text: str) -> None:
        """Say what is done now; call it as often as you like.

        Args:
            text: Such as "evaluating: 3 of 100 episodes are over".
        """
        if self._status is not None:
            self._status.update(text)
        elif self._clock() - self._told >= PLAIN_S:
            self._told = self._clock()
            print(f"{clock_time()} {text}", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

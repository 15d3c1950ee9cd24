"""Standard output and standard error that a command never fails on: what cannot be shown is dropped."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

_lost: dict[str, str] = {}


class _Dropping(io.FileIO):
    """A file descriptor whose writes always succeed: after the first failure everything is dropped."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._name = name

    def write(self, data: object) -> int:
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        if self._name in _lost:
            return size
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except OSError as error:  # a closed pipe, a full device, a terminal that went away
            _lost[self._name] = error.strerror or type(error).__name__
            return size


def protect_streams() -> None:
    """Make standard output and standard error safe to write to. Every command calls this first.

    A closed pipe, a full device, a closed descriptor, a terminal that went away, and letters that the
    encoding lacks then raise nothing in any code that prints, this package's or a library's. `lost_output`
    says what was dropped. A stream that something else put in the place of the standard one (a notebook, a
    test, the redirection of a parallel sweep) is left alone. A second call does nothing.
    """
    _open_missing()
    if _is_standard(sys.stdout, sys.__stdout__, 1):
        sys.stdout = _protected(sys.stdout, 1, "stdout")
    if _is_standard(sys.stderr, sys.__stderr__, 2):
        sys.stderr = _protected(sys.stderr, 2, "stderr")


def lost_output() -> dict[str, str]:
    """Tell what could not be shown so far.

    Returns:
        Name of the stream ("stdout", "stderr") -> why writing to it failed; empty where all was shown.
    """
    return dict(_lost)


def _open_missing() -> None:
    """Give a closed descriptor 0, 1 or 2 the null device, before a file of the run takes its number.

    A library that writes to descriptor 2 would otherwise write into that file.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)
        if descriptor:
            _lost["stdout" if descriptor == 1 else "stderr"] = "closed at the start"


def _is_standard(stream: TextIO | None, original: TextIO | None, descriptor: int) -> bool:
    if stream is None:  # Python found the descriptor closed
        return True
    return isinstance(stream, io.TextIOWrapper) and stream is original and stream.fileno() == descriptor


def _protected(stream: TextIO | None, descriptor: int, name: str) -> TextIO:
    """A text stream on `descriptor` with the encoding and the buffering of `stream`."""
    buffer = io.BufferedWriter(_Dropping(descriptor, name))
    if not isinstance(stream, io.TextIOWrapper):
        return io.TextIOWrapper(buffer, "utf-8", "backslashreplace")
    lines, at_once = stream.line_buffering, stream.write_through
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", None, lines, at_once)

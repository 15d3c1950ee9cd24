"""What was asked for and cannot be had."""

from __future__ import annotations

import errno
import os


class BadInput(ValueError):
    """What was asked for cannot be run: exit status 2 and one line `key: what is wrong; what is right`."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key


def debug() -> bool:
    """Say whether LORE_DEBUG=1 asks for tracebacks."""
    return os.environ.get("LORE_DEBUG") == "1"


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def out_of_space(error: BaseException | None) -> str | None:
    """Say why nothing more can be written, where an error means that.

    Libraries raise what they like after a write that failed (torch a RuntimeError), so the errors that led to
    `error` count as well.

    Args:
        error: What was raised; None for nothing.

    Returns:
        The system's words, such as "No space left on device": for a full disk, a quota, a limit on file size.
        None where the error has another reason.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error.strerror or "No space left on device"
        error = error.__cause__ or error.__context__
    return None

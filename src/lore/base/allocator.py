"""Keep freed memory in the process: a gradient step asks for the same large buffers again and again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGEST_MMAP_THRESHOLD = 32 << 20
_TRIM = 1 << 30


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed buffers instead of giving them back to the system after every use.

    Without it each large tensor is mapped anew and faulted in page by page: about a tenth of a gradient step
    on a CPU. Elsewhere than on Linux with glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _TRIM)

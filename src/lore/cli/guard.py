"""One guard around every command: an error is a line on stderr and an exit status.

Exit status: 0 done, 1 failed while running, 2 bad input (one line on stderr), 130 interrupted and saved.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lore.base.errors import BadInput
from lore.base.streams import protect_streams
from lore.training.signals import interrupt_on_signals

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def guard(command: str, argv: Sequence[str] | None, work: Callable[[list[str]], None]) -> int:
    """Run a command's work on its arguments. Every error becomes a line on stderr and an exit status."""
    protect_streams()
    try:
        with interrupt_on_signals():
            work(list(sys.argv[1:] if argv is None else argv))
    except BadInput as error:
        return refuse(command, error)
    except KeyboardInterrupt:
        return say_interrupted(command)
    except Exception as error:
        if debug():
            raise
        print(f"{command}: {brief(error)} (LORE_DEBUG=1 shows the traceback)", file=sys.stderr)
        return FAILED
    return DONE


def debug() -> bool:
    return os.environ.get("LORE_DEBUG") == "1"


def brief(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def refuse(command: str, error: BadInput) -> int:
    print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return BAD_INPUT


def say_interrupted(command: str, run_dir: Path | None = None) -> int:
    rest = f"; go on with lore-train resume={shlex.quote(str(run_dir))}" if run_dir else ""
    print(f"{command}: interrupted{rest}", file=sys.stderr, flush=True)
    return INTERRUPTED

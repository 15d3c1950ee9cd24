"""One guard around every command: an error is a line on stderr and an exit status.

Exit status: 0 done, 1 failed while running, 2 bad input (one line on stderr), 130 interrupted and saved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import lore
from lore.base.commands import command_line
from lore.base.errors import BadInput, debug
from lore.base.secrets import mask, refuse_secret_arguments
from lore.base.streams import lost_output, protect_streams
from lore.training.signals import interrupt_on_signals

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def guard(
    command: str,
    argv: Sequence[str] | None,
    page: Callable[[], str],
    work: Callable[[list[str]], int | None],
) -> int:
    """Run a command's work on its arguments, or answer --help or --version.

    Args:
        command: Name of the command, for messages.
        argv: Arguments of the command; None: those of this process.
        page: Makes the text for --help.
        work: Does the command's work; returns an exit status, or None where the result is what it printed.

    Returns:
        The exit status. Every error has become a line on stderr.
    """
    protect_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if {"-h", "--help"} & set(arguments):
            print(page(), end="")
            return DONE
        if "--version" in arguments:
            print(f"{command} {lore.__version__}")
            return DONE
        refuse_secret_arguments(arguments)
        with interrupt_on_signals():
            status = work(arguments)
    except BadInput as error:
        return refuse(command, error)
    except KeyboardInterrupt:
        return say_interrupted(command)
    except Exception as error:
        if debug():
            raise
        return _fail(command, f"{brief(error)} (LORE_DEBUG=1 shows the traceback)")
    return _printed(command) if status is None else status


def _printed(command: str) -> int:
    """Return the exit status of a command whose result is its output: it fails where the output was lost."""
    sys.stdout.flush()
    lost = lost_output().get("stdout")
    return DONE if lost is None else _fail(command, f"its output could not be written: {lost}")


def brief(error: BaseException) -> str:
    """Write an error, of this package or of a library, as one line without secrets.

    Args:
        error: The error.
    """
    return mask(" ".join(f"{type(error).__name__}: {error}".split()))


def refuse(command: str, error: BadInput) -> int:
    """Say on stderr what is wrong with the input.

    Args:
        command: Name of the command.
        error: What is wrong; it names the key.

    Returns:
        The exit status, 2.
    """
    print(mask(f"{command}: {' '.join(str(error).split())}"), file=sys.stderr, flush=True)
    return BAD_INPUT


def say_interrupted(command: str, run_dir: Path | None = None) -> int:
    """Say on stderr that the user ended the command, and how a run goes on.

    Args:
        command: Name of the command.
        run_dir: Folder of the run that was saved; None where there is nothing to go on with.

    Returns:
        The exit status, 130.
    """
    rest = f"; go on with {command_line('lore-train', f'resume={run_dir}')}" if run_dir else ""
    print(f"{command}: interrupted{rest}", file=sys.stderr, flush=True)
    return INTERRUPTED


def _fail(command: str, text: str) -> int:
    print(mask(f"{command}: {text}"), file=sys.stderr, flush=True)
    return FAILED

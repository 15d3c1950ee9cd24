"""Command lines of this package, as a user can type them where the process was started."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def command_line(name: str, *arguments: str) -> str:
    """Write a command of this package so that a shell finds it.

    A command that is not on PATH is given by the path of the file beside the Python interpreter: its
    environment is then not activated.

    Args:
        name: Name of the command, such as lore-train.
        arguments: KEY=VALUE of the command, not yet quoted.

    Returns:
        The command and its arguments, quoted for a shell.
    """
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) is None and beside.is_file():
        here = Path.cwd()
        name = str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
    pairs = (argument.partition("=") for argument in arguments)
    return " ".join([shlex.quote(name), *(f"{key}={shlex.quote(value)}" for key, _, value in pairs)])

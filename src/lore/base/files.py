"""What is on the disk stays there: names as well as contents."""

from __future__ import annotations

import errno
import os
import re
import sys
from functools import cache
from pathlib import Path

from lore.base.errors import BadInput

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def sync_folder(folder: Path) -> None:
    """Make the names of new or renamed files in `folder` as durable as their contents.

    A file system that cannot do that for folders (some network file systems) keeps names as it does: a power
    failure may cost the latest ones. That is said once.

    Raises:
        OSError: The disk refuses for another reason.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
        _say_unsynced(folder.stat().st_dev)
    finally:
        os.close(handle)


@cache
def _say_unsynced(device: int) -> None:
    print("lore: this file system cannot sync folders; a power failure may cost new files", file=sys.stderr)


def write_atomic(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash, sees the old text or the new, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def as_file_name(text: str) -> str:
    """Spell a name so that every file system takes it as one part of a path.

    Args:
        text: Any name, such as "my_package:MyLab-v0" or "lab/MyLab-v0".

    Returns:
        The text with a dash for every run of characters other than letters, digits, ".", "_", "+" and "-".
    """
    return re.sub(r"[^\w.+-]+", "-", text)


def user_path(text: str, key: str) -> Path:
    """The path that an option holds, with ~ and ~user as home folders.

    Args:
        text: the option's value.
        key: the option, for the error.

    Raises:
        BadInput: where there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(key, f"{text!r}: no such home folder; write the path out") from error

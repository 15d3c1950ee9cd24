"""What is on the disk stays there, names as well as contents; and what is read back is not trusted."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
from functools import cache
from pathlib import Path
from typing import Any

from lore.base.errors import BadInput

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
LIMIT = 16 << 20  # bytes of a small file of ours; a larger one is not what we wrote


class Unreadable(ValueError):
    """A file is missing or damaged: the message names it and says what is wrong with it."""


def regular(path: str, flags: int) -> int:
    """Open what must be a file; the `opener` of `open`. A pipe, which would block, or a device is refused.

    Args:
        path: The file.
        flags: As for os.open.

    Returns:
        The descriptor.

    Raises:
        OSError: It cannot be opened, or is no file.
    """
    handle = os.open(path, flags | os.O_NONBLOCK, 0o666)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # open() itself refuses a folder
        os.close(handle)
        raise OSError(errno.EINVAL, "is a pipe, a socket or a device, no file", path)
    return handle


def sync_folder(folder: Path) -> None:
    """Make the names of new or renamed files in a folder as durable as their contents.

    Some network file systems cannot sync a folder; a power failure may then cost the latest names. That is
    said once.

    Args:
        folder: An existing folder.

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
    """Replace a file so that a reader, or a crash, sees the old text or the new, never a part.

    Args:
        path: The file. Its folder exists.
        text: Its new contents, written as UTF-8.

    Raises:
        OSError: The disk refuses; the old file then stands.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def as_file_name(text: str) -> str:
    """Spell a name so that every file system takes it as one part of a path.

    Args:
        text: Any name, such as "my_package:MyLab-v0" or "lab/MyLab-v0".

    Returns:
        The text with a dash for every run of characters other than letters, digits, ".", "_", "+" and "-".
    """
    return re.sub(r"[^\w.+-]+", "-", text)


def user_path(text: str, key: str) -> Path:
    """Read an option as a path, with ~ and ~user as home folders.

    Args:
        text: Value of the option.
        key: Name of the option, for the error.

    Raises:
        BadInput: There is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(key, f"{text!r}: no such home folder; write the path out") from error


def read_text(path: Path, limit: int = LIMIT) -> str:
    """Read a small text file.

    Args:
        path: The file.
        limit: Size in bytes above which the file is not read.

    Raises:
        Unreadable: The file is missing, no file, too large, or not UTF-8.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    if len(data) > limit:
        raise Unreadable(f"{path}: more than {limit} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path}: byte {error.start} is not UTF-8") from error


def read_json(path: Path, kind: type = dict, limit: int = LIMIT) -> Any:
    """Read the value in a small JSON file.

    Args:
        path: The file.
        kind: What the value has to be: dict or list.
        limit: Size in bytes above which the file is not read.

    Raises:
        Unreadable: The file is missing, too large, not UTF-8, not JSON, or holds another kind of value.
    """
    text = read_text(path, limit)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise Unreadable(f"{path}: not JSON ({error})") from error
    if not isinstance(value, kind):
        raise Unreadable(f"{path}: holds no {kind.__name__} but {type(value).__name__}")
    return value


def set_aside(path: Path, mark: str = "damaged") -> Path:
    """Rename a file or folder to a name that nothing else has, so that nothing is lost.

    Args:
        path: The file or folder.
        mark: First part of the new name; a dash, the old name and, if needed, a number follow.

    Returns:
        The new path, in the same folder.
    """
    number = 0
    while (aside := path.with_name(f"{mark}-{path.name}{f'.{number}' if number else ''}")).exists():
        number += 1
    path.rename(aside)
    return aside

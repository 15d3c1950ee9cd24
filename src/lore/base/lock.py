"""One process owns a folder: by a lock that ends with the process, also by kill -9."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lore.base.errors import BadInput, out_of_space

NAME = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}  # as NFS without its lock service
_held: set[Path] = set()


@contextmanager
def hold(folder: Path, key: str = "run.dir", say: Callable[[str], None] = print) -> Iterator[None]:
    """Own `folder` while the block runs; a process that owns it may enter again.

    The lock is the kernel's (flock) on the file `.lock` in the folder, so nothing is left to clean up after
    a crash: the file alone locks nothing. A file system without locks gets one in the folder for temporary
    files instead, which the processes of this machine respect, and that is said. Where no folder can be
    locked, the block runs unprotected, and that is said too.

    Args:
        folder: An existing folder.
        key: The option that names the folder, for the refusal.
        say: Takes a line for the user.

    Raises:
        BadInput: Another process owns the folder (it is named), or nothing can be written there.
        OSError: The disk is full.
    """
    real = folder.resolve()
    if real in _held:
        yield
        return
    handle = _acquire(real, key, say)
    _held.add(real)
    try:
        yield
    finally:
        _held.discard(real)
        with suppress(OSError):  # the folder is gone, or its disk full or broken: the lock goes all the same
            if [path.name for path in real.iterdir()] == [NAME]:
                (real / NAME).unlink()  # a folder that stayed empty leaves nothing of ours
            os.ftruncate(handle, 0)
        os.close(handle)


def _acquire(folder: Path, key: str, say: Callable[[str], None]) -> int:
    """The open, locked file. Raises BadInput."""
    path = folder / NAME
    try:
        try:
            return _lock(path, folder, key)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return _lock_elsewhere(folder, key, say)
    except OSError as error:
        if out_of_space(error):
            raise
        raise BadInput(key, f"cannot write to {str(path)!r}: {error.strerror}") from error


def _lock_elsewhere(folder: Path, key: str, say: Callable[[str], None]) -> int:
    """The open file that stands for a folder of a file system without locks."""
    path = _local(folder)
    try:
        handle = _lock(path, folder, key)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        say(f"{folder}: no file can be locked here; start no second process on this folder")
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    say(f"{folder} is on a file system without locks; only on this machine is it kept from others")
    return handle


def _lock(path: Path, folder: Path, key: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, handle):
                break
        except (BlockingIOError, PermissionError) as error:  # NFS raises the second in place of the first
            os.close(handle)
            raise BadInput(
                key, f"{str(folder)!r} is in use by {_holder(path)}; wait until it ends, or stop it"
            ) from error
        except OSError:
            os.close(handle)
            raise
        os.close(handle)  # the previous owner has removed the file
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now(UTC):%FT%TZ}"}
    with suppress(OSError):  # a full disk: the lock holds, but the note of its holder is lost
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(note).encode(), 0)
    return handle


def _is(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    time.sleep(0.1)  # the holder may be about to write its note
    try:
        note = json.loads(path.read_bytes()[:1000])
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which left no note of itself"


def _local(folder: Path) -> Path:
    """Where this machine locks a folder of a file system without locks."""
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"lore-{os.getuid()}-{name}.lock"

"""Answers on disk, shared by runs and jobs on one machine: SQLite in WAL mode.

WAL keeps its index in shared memory, so it does not work over a network file system (NFS, SMB, most cluster
home folders): jobs on two machines would damage the file. Put it on a local disk.
Sources: https://www.sqlite.org/wal.html, https://www.sqlite.org/howtocorrupt.html.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from lore.base.errors import BadInput

OPTION = "llm.cache"
TIMEOUT_S = 10.0  # longest wait for another process that writes
_TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer BLOB NOT NULL)"
LARGEST = 8 << 20  # bytes of an entry: a reply has at most 1 MiB, JSON up to six bytes a character
BAD_ENTRY = "bad_cache_entry"  # name of the failure where an entry is no answer, although its checksum fits
_GET = f"SELECT CAST(substr(CAST(answer AS BLOB), 1, {LARGEST + 1}) AS BLOB) FROM answers WHERE key = ?"
_PROGRAMS = "SELECT name FROM sqlite_master WHERE type IN ('view', 'trigger')"
_PUT = "INSERT OR IGNORE INTO answers VALUES (?, ?)"
_SMALLEST = 512  # bytes of the smallest database that holds a table
T = TypeVar("T")


@dataclass(frozen=True)
class CachedAnswer:
    """What a provider answered.

    Attributes:
        text: The answer as the provider gave it.
        meta: What it took, as JSON values, such as tokens, dollars and latency of the call.
    """

    text: str
    meta: Mapping[str, Any]


def answer_key(request_key: str, provider: str, prompt_version: str, schema_version: str) -> str:
    """Name an answer. The name differs where any part does.

    Args:
        request_key: What the answer is filed under: a plan key or a policy key.
        provider: The provider's `identity()`, which holds its sampling settings.
        prompt_version: Version of the words in which it is asked.
        schema_version: Version of all else that shapes an answer: JSON schema, plan language, action names.

    Returns:
        64 hex digits.
    """
    parts = json.dumps([request_key, provider, prompt_version, schema_version])
    return hashlib.sha256(parts.encode()).hexdigest()


class AnswerCache:
    """Answers by key; the first answer of a key stands. For one thread; open it after a fork, not before.

    A damaged file is renamed to NAME.corrupt-TIME and an empty one takes its place, which is said. Any other
    failure (disk full, locked for TIMEOUT_S) loses one answer: it is counted in `errors` by SQLite's name of
    the failure, and said the first time. An entry that is no answer although its checksum fits is counted
    under BAD_ENTRY and said the first time. None of these stops training.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """Open the file, or create it.

        Args:
            path: The file, on a local disk.
            say: Takes a line for the user.

        Raises:
            BadInput: `path` cannot be a cache at all.
        """
        self.path, self._say = path.absolute(), say
        self.errors: Counter[str] = Counter()
        self._inode = 0
        self._db: sqlite3.Connection | None = self._open()

    def get(self, key: str) -> CachedAnswer | None:
        """Return an answer exactly as it was put.

        Args:
            key: A name from `answer_key`.

        Returns:
            The answer; None where there is none that can be used.
        """
        return self._try(lambda db: _unpack(key, _rows(db, _GET, key)))

    def put(self, key: str, text: str, meta: Mapping[str, Any]) -> None:
        """Store an answer, unless the key has one.

        Args:
            key: A name from `answer_key`.
            text: The answer as the provider gave it.
            meta: What it took, as JSON values.

        Raises:
            TypeError: JSON cannot hold a value of `meta`.
            ValueError: A number in `meta` is not finite.
        """
        blob = _pack(key, text, meta)
        self._try(lambda db: _rows(db, _PUT, key, blob))

    def refuse_entry(self, why: str) -> None:
        """Count an entry that cannot be used, and say so the first time.

        Args:
            why: What is wrong with the entry.
        """
        self.errors[BAD_ENTRY] += 1
        if self.errors[BAD_ENTRY] == 1:
            self._say(f"{OPTION}: {self.path}: {why}; the adviser is asked instead (said once)")

    def close(self) -> None:
        """Close the file: every `get` is then a miss. A second call does nothing."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _try(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        for _ in range(2):  # the second time on what took the place of a damaged file
            if self._db is None:
                break
            try:
                return action(self._db)
            except _Damaged as damage:
                self._replace(damage)
            except _BadEntry as bad:
                self.refuse_entry(f"an entry is no answer ({bad})")
                break
            except sqlite3.DatabaseError as error:
                self._count(error)
                break
        return None

    def _count(self, error: sqlite3.DatabaseError) -> None:
        self.errors[error.sqlite_errorname] += 1
        if self.errors[error.sqlite_errorname] == 1:
            self._say(f"{OPTION}: {self.path}: {error}; going on without this answer (said once)")

    def _open(self) -> sqlite3.Connection:
        try:
            return self._open_or_begin()
        except (OSError, sqlite3.DatabaseError) as error:
            raise BadInput(OPTION, f"{str(self.path)!r} cannot be used ({error})") from error

    def _open_or_begin(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.path.parent):
            try:
                db = _connect(self.path)
            except _Damaged as damage:
                self._set_aside(damage)
                db = _connect(self.path)
            self._inode = self.path.stat().st_ino
        return db

    def _replace(self, damage: _Damaged) -> None:
        """Go on with an empty file, or the one that another process put in the place of the damaged one."""
        self.close()
        try:
            with _alone(self.path.parent):
                if self.path.exists() and self.path.stat().st_ino == self._inode:
                    self._set_aside(damage)
            self._db = self._open()
        except (OSError, BadInput) as error:
            self._say(f"{OPTION}: {self.path} is damaged ({damage}), but {error}; going on without a cache")

    def _set_aside(self, damage: _Damaged) -> None:
        aside = _beside(self.path, f".corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        for end in ("-wal", "-shm", ""):  # the file last: a crash in between leaves no -wal to the next one
            if _beside(self.path, end).exists():
                _beside(self.path, end).rename(_beside(aside, end))
        self._say(f"{OPTION}: {self.path} is damaged ({damage}); kept as {aside.name}, an empty one begins")


class _Damaged(Exception):
    """What is in the file is not what was written."""


def _rows(db: sqlite3.Connection, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Run a statement. Raises _Damaged, or sqlite3.DatabaseError where the file is not to blame."""
    try:
        return db.execute(sql, values).fetchall()
    except UnicodeDecodeError as error:  # of SQLite's message, which quotes the damaged place
        raise _Damaged(error.reason) from error
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _Damaged(str(error)) from error
        raise


class _BadEntry(Exception):
    """An entry was written with a right checksum, but it is no answer."""


def _connect(path: Path) -> sqlite3.Connection:
    if path.is_file() and path.stat().st_size < _SMALLEST:
        raise _Damaged(f"it has only {path.stat().st_size} bytes")
    db = sqlite3.connect(f"{path.as_uri()}?mode=rwc", timeout=TIMEOUT_S, isolation_level=None, uri=True)
    try:
        _rows(db, "PRAGMA trusted_schema=OFF")  # the file may come from somebody else
        if _rows(db, "PRAGMA journal_mode=WAL") != [("wal",)]:
            raise OSError("SQLite has no WAL there: a network file system? Name a local disk")
        _rows(db, "PRAGMA synchronous=NORMAL")  # a power cut may cost the last answers, never the file
        _rows(db, "BEGIN IMMEDIATE")  # fails here, not at the first put, where it cannot be written
        _rows(db, _TABLE)
        _rows(db, "COMMIT")
        if _rows(db, _PROGRAMS):
            raise OSError("it holds views or triggers, which no cache of ours has")
        _rows(db, _GET, "")
    except (OSError, sqlite3.DatabaseError, _Damaged):
        db.close()
        raise
    return db


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _pack(key: str, text: str, meta: Mapping[str, Any]) -> bytes:
    answer = json.dumps([text, dict(meta)], allow_nan=False).encode()
    return _checksum(key, answer) + answer


def _unpack(key: str, rows: list[tuple[Any, ...]]) -> CachedAnswer | None:
    """Return what `_pack` made for this key, or None without a row.

    Raises _Damaged where a byte has changed, _BadEntry where something else than an answer was written.
    """
    if not rows:
        return None
    blob = rows[0][0] or b""
    if len(blob) > LARGEST:
        raise _BadEntry(f"it has more than {LARGEST} bytes")
    if blob[:4] != _checksum(key, blob[4:]):
        raise _Damaged("an answer differs from its checksum")
    try:
        entry = json.loads(blob[4:])
    except (ValueError, RecursionError) as error:
        raise _BadEntry(f"not JSON: {type(error).__name__}") from None
    if not isinstance(entry, list) or [type(part) for part in entry] != [str, dict]:
        raise _BadEntry("not a text with its circumstances")
    return CachedAnswer(*entry)


def _checksum(key: str, answer: bytes) -> bytes:
    """Return a checksum of key and answer.

    SQLite has none: it would serve a page with a changed byte as the answer.
    """
    return zlib.crc32(answer, zlib.crc32(key.encode())).to_bytes(4, "big")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make processes that open or replace a cache in `folder` do so one after the other."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

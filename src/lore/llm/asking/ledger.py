"""One limit on provider calls for all jobs of a sweep: a count on disk that only grows.

SQLite with its rollback journal (no WAL: that needs one machine). Jobs on several machines may share the file
where the file system's locks hold between machines. Source: https://www.sqlite.org/lockingv3.html.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lore.base.errors import BadInput

OPTION = "llm.ledger"
TIMEOUT_S = 10.0  # longest wait for the other jobs


class LedgerError(RuntimeError):
    """The count cannot be read or raised (damaged, deleted, locked, disk full): no call may be made."""


class SweepLedger:
    """At most `limit` reservations among all processes that name the same file, over all time.

    A process that dies after `reserve` has used its reservation up, whether it made the call or not. No file
    is kept open: use it from any thread, or after a fork. To count anew, delete the file while no job runs.
    """

    def __init__(self, path: Path, limit: int) -> None:
        """Open the count; create it at 0 where there is none.

        Args:
            path: The file that all jobs of the sweep name.
            limit: Most reservations.

        Raises:
            BadInput: The file is not a ledger, or is damaged.
        """
        self.path, self.limit = path.absolute(), limit
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                _create(self.path)
            self.used()
        except (OSError, LedgerError) as error:
            raise BadInput(OPTION, f"{str(self.path)!r} cannot be used: {error}") from error

    def used(self) -> int:
        """Return the reservations so far, of all processes.

        Raises:
            LedgerError: The count cannot be read.
        """
        with _open(self.path) as db:
            return _count(db)

    def reserve(self) -> bool:
        """Take one of the calls. Call it right before sending, once for each request sent, retries included.

        Returns:
            True where a call was left; the reservation is then on the disk. False when none is left.

        Raises:
            LedgerError: The count cannot be read or raised.
        """
        with _open(self.path) as db:
            db.execute("BEGIN IMMEDIATE")
            free = _count(db) < self.limit
            if free:
                db.execute("UPDATE ledger SET calls = calls + 1")
            db.execute("COMMIT")
            return free


def _count(db: sqlite3.Connection) -> int:
    """The count. Raises LedgerError for a file that another program made: a trigger could set it back."""
    parts = db.execute("SELECT type, name FROM sqlite_master").fetchmany(2)
    if parts != [("table", "ledger")]:
        raise LedgerError(f"it must hold the table `ledger` and nothing else, not {parts!r:.60}")
    rows = db.execute("SELECT calls FROM ledger").fetchmany(2)
    if len(rows) != 1 or not isinstance(rows[0][0], int) or rows[0][0] < 0:
        raise LedgerError(f"the table `ledger` must hold one number of at least 0, not {rows!r:.60}")
    return rows[0][0]


@contextmanager
def _open(path: Path, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    """A connection for one question. Mode rw makes no file: a deleted ledger must not start again at 0."""
    try:
        db = sqlite3.connect(f"{path.as_uri()}?mode={mode}", TIMEOUT_S, isolation_level=None, uri=True)
        try:
            db.execute("PRAGMA synchronous=EXTRA")  # a power cut gives no reservation back
            yield db
        finally:
            db.close()
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: {error}") from error


def _create(path: Path) -> None:
    """Make it beside its name and link it there whole: of several processes the first wins."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with _open(part, "rwc") as db:
            db.execute("CREATE TABLE ledger (calls INTEGER NOT NULL)")
            db.execute("INSERT INTO ledger VALUES (0)")
        os.link(part, path)
    except FileExistsError:  # another process was faster: its file counts
        pass
    finally:
        part.unlink(missing_ok=True)

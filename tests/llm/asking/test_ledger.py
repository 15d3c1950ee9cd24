"""One limit for many processes: never passed, and only kills lose calls."""

from __future__ import annotations

import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lore.base.errors import BadInput
from lore.llm.asking import ledger as module
from lore.llm.asking.ledger import LedgerError, SweepLedger

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
CALLER = """
import os, random, signal, sys, time
from pathlib import Path
from lore.llm.asking.ledger import SweepLedger
path, limit, calls, seed, die_at = sys.argv[1:]
calls = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
draw, made = random.Random(seed), 0
ledger = SweepLedger(Path(path), int(limit))
while ledger.reserve():
    made += 1
    if made == int(die_at):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(draw.random() * 0.004)
    os.write(calls, b".")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "ledger.sqlite"


def caller(path: Path, limit: int, seed: int, die_at: int = 0) -> subprocess.Popen[bytes]:
    """A process that makes calls while the ledger lets it: a byte a call in the file `calls`."""
    path.parent.mkdir(exist_ok=True)
    arguments = [path, limit, path.parent / "calls", seed, die_at]
    return subprocess.Popen([sys.executable, "-c", CALLER, *map(str, arguments)], env=ENV)


def calls(path: Path) -> int:
    file = path.parent / "calls"
    return file.stat().st_size if file.exists() else 0


def test_eight_processes_make_exactly_as_many_calls_as_the_limit(path: Path) -> None:
    children = [caller(path, 100, seed) for seed in range(8)]
    assert [child.wait(timeout=120) for child in children] == [0] * 8
    assert calls(path) == 100
    assert SweepLedger(path, 100).used() == 100
    assert not SweepLedger(path, 100).reserve()


@pytest.mark.parametrize("seed", range(3))
def test_processes_killed_at_random_moments_lose_at_most_a_call_each(seed: int, path: Path) -> None:
    """Eight callers; five are killed while calls are being made, and two start later on the same file."""
    draw = random.Random(seed)
    children = [caller(path, 100, number) for number in range(8)]
    moments = sorted(draw.randint(1, 95) for _ in range(5))
    late, killed = 0, 0
    for moment in moments:
        until = time.monotonic() + 120
        while calls(path) < moment and time.monotonic() < until:
            time.sleep(draw.random() * 0.002)
        victim = children.pop(draw.randrange(len(children)))
        victim.kill()
        killed += victim.wait() != 0
        if late < 2:
            late += 1
            children.append(caller(path, 100, 8 + late))
    assert [child.wait(timeout=120) for child in children] == [0] * 5
    assert killed >= 3
    assert 100 - killed <= calls(path) <= 100
    assert SweepLedger(path, 100).used() == 100


def test_a_process_that_dies_between_reserving_and_calling_loses_that_call(path: Path) -> None:
    dead = [caller(path, 100, seed, die_at=1 + seed) for seed in range(3)]
    assert [child.wait(timeout=120) for child in dead] == [-9] * 3
    assert SweepLedger(path, 100).used() == 6
    assert caller(path, 100, 9).wait(timeout=120) == 0
    assert calls(path) == 97


def test_the_count_is_kept_across_reopening(path: Path) -> None:
    for number in range(10):
        assert SweepLedger(path, 10).used() == number
        assert SweepLedger(path, 10).reserve()
    assert not SweepLedger(path, 10).reserve()
    assert SweepLedger(path, 12).reserve()  # a raised limit grants the difference
    assert SweepLedger(path, 12).used() == 11


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_grants_nothing(limit: int, path: Path) -> None:
    assert not SweepLedger(path, limit).reserve()
    assert SweepLedger(path, limit).used() == 0


def test_one_object_serves_threads_and_forks(path: Path) -> None:
    ledger = SweepLedger(path, 40)
    granted: list[bool] = []
    threads = [
        threading.Thread(target=lambda: granted.extend(ledger.reserve() for _ in range(10))) for _ in range(3)
    ]
    child = multiprocessing.get_context("fork").Process(target=lambda: [ledger.reserve() for _ in range(10)])
    child.start()
    for thread in threads:
        thread.start()
    for thread in (*threads, child):
        thread.join(60)
    assert granted == [True] * 30
    assert child.exitcode == 0
    assert (ledger.used(), ledger.reserve()) == (40, False)


def test_a_process_stopped_in_the_middle_of_a_reservation_changes_nothing(path: Path) -> None:
    ledger = SweepLedger(path, 2)
    assert ledger.reserve()
    script = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "db.execute('UPDATE ledger SET calls = calls + 1')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == -9
    assert ledger.used() == 1
    assert (ledger.reserve(), ledger.reserve()) == (True, False)


# what is no ledger


def test_a_second_creator_keeps_the_count_of_the_first(path: Path) -> None:
    ledger = SweepLedger(path, 5)
    assert ledger.reserve()
    module._create(path)
    assert ledger.used() == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def other_database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE answers (key TEXT)")
    db.close()


def no_number(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE ledger (calls)")
        db.execute("INSERT INTO ledger VALUES ('many')")
    db.close()


BROKEN = {
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(8192)),
    "empty file": lambda path: path.write_bytes(b""),
    "folder": lambda path: path.mkdir(),
    "truncated": lambda path: (SweepLedger(path, 5), os.truncate(path, 4096)),
    "another database": other_database,
    "no number": no_number,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_ledger_is_refused_and_left_alone(kind: str, tmp_path: Path) -> None:
    """It never starts again at 0: that would pass the limit."""
    path = tmp_path / "ledger.sqlite"
    BROKEN[kind](path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(BadInput, match=r"llm\.ledger: .*ledger\.sqlite"):
        SweepLedger(path, 5)
    assert (path.read_bytes() if path.is_file() else None) == before


RESET = "CREATE TRIGGER t AFTER UPDATE ON ledger BEGIN UPDATE ledger SET calls = 0; END"
POISONS = {
    "below zero": "UPDATE ledger SET calls = -1000000",
    "a text": "UPDATE ledger SET calls = 'none'",
    "a fraction": "UPDATE ledger SET calls = 1.5",
    "a blob": "UPDATE ledger SET calls = x'00'",
    "two counts": "INSERT INTO ledger VALUES (0)",
    "no count": "DELETE FROM ledger",
    "a trigger that sets it back": RESET,
    "a second table": "CREATE TABLE other (x)",
    "a view": "DROP TABLE ledger; CREATE VIEW ledger AS SELECT 0 AS calls",
    "another column": "ALTER TABLE ledger RENAME COLUMN calls TO count",
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_ledger_that_somebody_rewrote_grants_nothing(poison: str, path: Path) -> None:
    """Whole and valid for SQLite: refused at start, and under a run."""
    ledger = SweepLedger(path, 5)
    assert ledger.reserve()
    with sqlite3.connect(path) as db:
        db.executescript(POISONS[poison])
    db.close()
    before = path.read_bytes()
    for _ in range(10):
        with pytest.raises(LedgerError):
            ledger.reserve()
    with pytest.raises(BadInput, match=r"llm\.ledger: "):
        SweepLedger(path, 5)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"llm\.ledger"):
        SweepLedger(tmp_path / "file" / "ledger.sqlite", 5)


def test_a_ledger_deleted_or_damaged_under_a_run_grants_nothing(path: Path) -> None:
    ledger = SweepLedger(path, 5)
    path.unlink()
    with pytest.raises(LedgerError, match=r"ledger\.sqlite"):
        ledger.reserve()
    assert not path.exists()
    path.write_bytes(b"x" * 8192)
    with pytest.raises(LedgerError):
        ledger.reserve()


def test_a_locked_ledger_grants_nothing_and_does_not_wait_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = SweepLedger(path, 5)
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="locked"):
        ledger.reserve()
    other.execute("ROLLBACK")
    other.close()
    assert ledger.reserve()
    assert ledger.used() == 1

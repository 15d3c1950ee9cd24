"""The journal: on the disk before `append` returns, whole after a kill, served again from any checkpoint."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lore.base import jsonl as module
from lore.llm.asking.journal import Journal

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
APPENDER = """
import sys
from pathlib import Path
from lore.llm.asking.journal import Journal
journal = Journal(Path(sys.argv[1]))
number = 0
while journal.take():
    number += 1
while True:
    journal.append({"number": number, "text": "x" * (number * 37 % 9000)})
    print(number, flush=True)
    number += 1
"""
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from lore.llm.asking.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
journal = Journal(Path(sys.argv[1]))
journal.append({"number": 0})
try:
    journal.append({"number": 1, "text": "x" * 200})
except OSError as error:
    print(error)
journal.append({"number": 2})
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "llm.jsonl"


def rest(journal: Journal) -> list[dict[str, Any]]:
    """Everything after the position, taken."""
    return list(iter(journal.take, None))


def written(path: Path, count: int) -> list[dict[str, Any]]:
    """A journal of `count` records of different length."""
    records = [{"number": number, "text": "a\n\u2028é\ud800" * number} for number in range(count)]
    journal = Journal(path)
    for record in records:
        journal.append(record)
    journal.close()
    return records


# what append promises


def test_records_come_back_in_order_exactly(path: Path) -> None:
    records = written(path, 20)
    assert rest(Journal(path)) == records
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == records


def test_a_record_is_synced_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    seen = []
    monkeypatch.setattr(
        module.os, "fsync", lambda handle: seen.append((os.fstat(handle).st_ino, path.read_bytes()))
    )
    journal.append({"number": 1})
    assert seen == [(path.stat().st_ino, b'{"number": 1}\n')]
    journal.append({"number": 2})
    assert len(seen) == 2


def test_the_name_of_a_new_file_is_synced_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(module.os, "fsync", lambda handle: seen.append(os.fstat(handle).st_ino))
    Journal(path)
    assert seen == [path.parent.stat().st_ino]


@pytest.mark.parametrize("kill", range(4))
def test_after_kill_9_all_that_was_printed_is_there(kill: int, path: Path) -> None:
    """Killed at a random moment, started again on what is there, killed again."""
    draw = random.Random(kill)
    printed = 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", APPENDER, path], env=ENV, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(draw.randint(1, 40)):
            printed = int(child.stdout.readline()) + 1
        child.kill()
        printed += len(child.stdout.read().splitlines())
        child.wait()
        numbers = [record["number"] for record in rest(Journal(path))]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) in (printed, printed + 1)  # the kill may fall between append and print


def test_a_failed_sync_raises_and_leaves_no_trace(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = written(path, 3)
    journal = Journal(path)
    rest(journal)

    def broken(handle: int) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is gone"):
        patch.setattr(module.os, "fsync", broken)
        journal.append({"number": 3})
    journal.append({"number": 4})
    assert rest(Journal(path)) == [*records, {"number": 4}]


def test_a_full_disk_raises_and_leaves_no_trace(path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path], env=ENV, capture_output=True, text=True, check=True
    )
    assert "No space left on device" in child.stdout and str(path) in child.stdout
    assert rest(Journal(path)) == [{"number": 0}, {"number": 2}]


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(bad: dict, path: Path) -> None:
    journal = Journal(path)
    with pytest.raises((TypeError, ValueError)):
        journal.append(bad)
    assert path.read_bytes() == b""
    journal.append({"number": 1})
    assert rest(Journal(path)) == [{"number": 1}]


# what a crash leaves


def test_a_torn_last_line_is_dropped_wherever_it_is_cut(path: Path) -> None:
    records = written(path, 4)
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        journal = Journal(path)
        assert rest(journal) == records[:-1]
        journal.append({"number": "after"})
        journal.close()
        assert rest(Journal(path)) == [*records[:-1], {"number": "after"}]


def test_a_torn_only_line_leaves_an_empty_journal(path: Path) -> None:
    path.write_bytes(b'{"number"')
    journal = Journal(path)
    assert (journal.take(), path.read_bytes()) == (None, b"")


@pytest.mark.parametrize("damage", [b"not json", b"\xff\xfe", b"[1]", b"null", b"", b'{"a": 1', b"[" * 10**5])
def test_a_damaged_record_is_an_error_that_names_file_and_byte(damage: bytes, path: Path) -> None:
    path.write_bytes(b'{"number": 0}\n' + damage + b'\n{"number": 2}\n')
    journal = Journal(path)
    assert journal.take() == {"number": 0}
    with pytest.raises(ValueError, match=r"llm\.jsonl: no record at byte 14"):
        journal.take()


# resume


def test_a_resumed_run_is_served_what_lies_after_its_checkpoint(path: Path) -> None:
    """From every checkpoint that the run could have made."""
    journal = Journal(path)
    states = [journal.state_dict()]
    for number in range(6):
        journal.append({"number": number})
        states.append(journal.state_dict())
    journal.close()
    for used, state in enumerate(states):
        resumed = Journal(path)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        for number in range(used, 6):
            assert resumed.peek() == resumed.peek() == {"number": number}
            assert resumed.take() == {"number": number}
            assert resumed.state_dict() == states[number + 1]
        assert resumed.peek() is None
        assert resumed.take() is None
        assert resumed.state_dict() == states[-1]


def test_a_checkpoint_made_while_being_served_stands_between_the_records(path: Path) -> None:
    """Crash, resume, checkpoint half-way through the old records, crash again."""
    records = written(path, 5)
    first = Journal(path)
    assert [first.take(), first.take()] == records[:2]
    second = Journal(path)
    second.load_state_dict(first.state_dict())
    assert rest(second) == records[2:]


def test_nothing_is_appended_before_all_is_taken(path: Path) -> None:
    records = written(path, 2)
    journal = Journal(path)
    journal.take()
    with pytest.raises(RuntimeError, match="1 records were not taken yet"):
        journal.append({"number": 2})
    journal.take()
    journal.append({"number": 2})
    assert rest(Journal(path)) == [*records, {"number": 2}]


@pytest.mark.parametrize("offset", [1, 13, 15, 27, 29, 1000])
def test_a_position_that_is_no_end_of_a_record_is_refused(offset: int, path: Path) -> None:
    path.write_bytes(b'{"number": 0}\n{"number": 1}\n')
    journal = Journal(path)
    with pytest.raises(ValueError, match=rf"llm\.jsonl.*\b{offset}\b"):
        journal.load_state_dict({"offset": offset})
    assert rest(journal) == [{"number": 0}, {"number": 1}]


def test_interrupted_and_resumed_ten_times_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    """A run whose asks depend on the answers, and an adviser that never gives the same answer twice."""

    def play(path: Path, steps: int, state: dict[str, Any], told: list[str]) -> dict[str, Any]:
        journal = Journal(path)
        journal.load_state_dict(state["journal"])
        said = list(state["said"])
        for _ in range(steps):
            question = f"{len(said)} after {said[-1] if said else ''}"
            record = journal.take()
            if record is None:
                told.append(question)
                record = {"question": question, "answer": f"{len(told)}"}
                journal.append(record)
            assert record["question"] == question
            said.append(record["answer"])
        journal.close()
        return {"journal": journal.state_dict(), "said": said}

    start = {"journal": {"offset": 0}, "said": []}
    whole = play(tmp_path / "whole", 30, start, [])
    draw, state, told = random.Random(1), start, []
    for _ in range(10):
        state = play(tmp_path / "parts", 3, state, told)
        play(tmp_path / "parts", draw.randint(0, 4), state, told)  # lost by a crash, but for the journal
        with (tmp_path / "parts").open("ab") as file:
            file.write(b'{"question": "to'[: draw.randint(0, 16)])
    assert state["said"] == whole["said"]
    assert (tmp_path / "parts").read_bytes().startswith((tmp_path / "whole").read_bytes())

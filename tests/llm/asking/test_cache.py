"""The answer cache: exact, shared, quick, and never the end of a run."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lore.base.errors import BadInput
from lore.llm.asking import cache as module
from lore.llm.asking.cache import AnswerCache, CachedAnswer, answer_key

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
META = {"model": "m", "usd": 0.1, "tokens": [3, 4], "nothing": None}
ENTRIES, READS, WRITES = 100_000, 10_000, 1_000

READER_AND_WRITER = """
import random, sys
from pathlib import Path
from lore.llm.asking.cache import AnswerCache, answer_key
draw, cache = random.Random(sys.argv[2]), AnswerCache(Path(sys.argv[1]), print)
for _ in range(1500):
    number = draw.randrange(400)
    key = answer_key(str(number), "", "", "")
    found = cache.get(key)
    if found is None:
        cache.put(key, f"answer {number}", {"number": number})
        found = cache.get(key)
    if found is None or (found.text, found.meta) != (f"answer {number}", {"number": number}):
        print(number, found)
print(*cache.errors, end="")
"""
WRITER = """
import sys
from pathlib import Path
from lore.llm.asking.cache import AnswerCache
cache = AnswerCache(Path(sys.argv[1]), lambda line: sys.exit(line))
for number in range(10**6):
    cache.put(str(number), "x" * (number * 37 % 3000), {})
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(path: Path, said: list[str]) -> Iterator[AnswerCache]:
    cache = AnswerCache(path, said.append)
    yield cache
    cache.close()


def fill(path: Path, count: int = 300) -> None:
    """A cache file of `count` answers, `text(n)` under key n."""
    cache = AnswerCache(path, print)
    for number in range(count):
        cache.put(str(number), text(number), META)
    cache.close()


def text(number: int) -> str:
    return f"answer {number} " + "x" * (number % 100)


def right(cache: AnswerCache, count: int = 300) -> int:
    """How many of `fill`'s answers are there; none may be wrong."""
    found = [(number, cache.get(str(number))) for number in range(count)]
    there = [(number, answer) for number, answer in found if answer is not None]
    assert all(answer == CachedAnswer(text(number), META) for number, answer in there)
    return len(there)


def aside(path: Path) -> list[Path]:
    """Damaged files that were kept."""
    found = sorted(path.parent.glob(f"{path.name}.corrupt-*"))
    return [file for file in found if not file.name.endswith(("-wal", "-shm"))]


# what is put is what is got


@pytest.mark.parametrize(
    "answer", ["", "plain", "a\nb\0c", "日本語 🗝", "\ud800 alone", '{"plan": "goto(door)"}', "x" * 10**6]
)
def test_an_answer_comes_back_exactly(answer: str, path: Path, said: list[str]) -> None:
    first = AnswerCache(path, said.append)
    assert first.get("k") is None
    first.put("k", answer, META)
    assert first.get("k") == CachedAnswer(answer, META)
    first.close()
    assert AnswerCache(path, said.append).get("k") == CachedAnswer(answer, META)
    assert said == []


def test_the_first_answer_stands(cache: AnswerCache) -> None:
    cache.put("k", "first", {"n": 1})
    cache.put("k", "second", {"n": 2})
    assert cache.get("k") == CachedAnswer("first", {"n": 1})


@pytest.mark.parametrize("meta", [{"x": float("nan")}, {"x": object()}])
def test_what_json_cannot_hold_is_refused(meta: dict[str, Any], cache: AnswerCache) -> None:
    with pytest.raises((TypeError, ValueError)):
        cache.put("k", "text", meta)
    assert cache.get("k") is None


def test_another_model_prompt_or_schema_never_returns_an_old_answer(cache: AnswerCache) -> None:
    """Parts that differ anywhere, or are cut elsewhere, are other keys."""
    parts = ["", "a", "b", "ab", '"', '", "', "\ud800"]
    keys = {each: answer_key(*each) for each in itertools.product(parts, repeat=4)}
    assert len(set(keys.values())) == len(keys) == len(parts) ** 4
    cache.put(keys["a", "a", "a", "a"], "old", {})
    others = [key for each, key in keys.items() if each != ("a", "a", "a", "a")]
    assert not any(cache.get(key) for key in others)
    assert cache.get(answer_key("a", "a", "a", "a")) == CachedAnswer("old", {})


def test_the_key_is_the_same_in_every_process() -> None:
    """Written down once: a change of it would orphan every stored answer."""
    assert answer_key("k", "m", "1", "2").startswith("17721099d169c946e462775c7d76530ce971d72af78ed19d")


# size and speed


def test_a_hundred_thousand_answers_and_ten_thousand_reads_a_second(path: Path, said: list[str]) -> None:
    answer = json.dumps(
        {"plan": "goto(yellow key); pickup; goto(door); toggle; goto(goal)", "why": "x" * 300}
    )
    writer = AnswerCache(path, said.append)
    writer._db.execute("BEGIN")  # one transaction: not how runs write, but quick
    for number in range(ENTRIES):
        writer.put(answer_key(str(number), "m", "1", "1"), answer, META)
    writer._db.execute("COMMIT")
    begin = time.perf_counter()
    for number in range(WRITES):
        writer.put(answer_key(str(number), "m", "1", "2"), answer, META)
    write_s = time.perf_counter() - begin
    writer.close()
    reader = AnswerCache(path, said.append)
    draw, best = random.Random(0), float("inf")
    for _ in range(5):
        keys = [answer_key(str(draw.randrange(ENTRIES)), "m", "1", "1") for _ in range(READS)]
        begin = time.perf_counter()
        found = [reader.get(key) for key in keys]
        best = min(best, time.perf_counter() - begin)
        assert found == [CachedAnswer(answer, META)] * READS
    assert said == []
    print(
        f"\n{WRITES / write_s:.0f} writes and {READS / best:.0f} reads a second, {path.stat().st_size} bytes"
    )
    assert READS / best >= 10_000


# many processes


def test_four_processes_read_and_write_at_once(path: Path, said: list[str]) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", READER_AND_WRITER, path, str(seed)],
            env=ENV,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    assert [child.communicate(timeout=120)[0] for child in children] == [""] * 4
    cache = AnswerCache(path, said.append)
    stored = [cache.get(answer_key(str(number), "", "", "")) for number in range(400)]
    assert [answer and answer.text for answer in stored] == [f"answer {number}" for number in range(400)]
    assert said == []


def test_after_kill_9_every_stored_answer_is_there(path: Path, said: list[str]) -> None:
    printed = -1
    for lines in (5, 170):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, path], env=ENV, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(lines):
            printed = int(child.stdout.readline())
        child.kill()
        printed += len(child.stdout.read().splitlines())
        child.wait()
        cache = AnswerCache(path, said.append)
        for number in range(printed + 1):
            assert cache.get(str(number)) == CachedAnswer("x" * (number * 37 % 3000), {})
        cache.close()
    assert said == []


# damage


def noise(path: Path, size: int = 20_000) -> None:
    path.write_bytes(random.Random(1).randbytes(size))


DAMAGE = {
    "random bytes": noise,
    "text": lambda path: path.write_text("not a database\n" * 100),
    "empty": lambda path: os.truncate(path, 0),
    "one byte": lambda path: os.truncate(path, 1),
    "only a header": lambda path: os.truncate(path, 100),
    "one page": lambda path: os.truncate(path, 4096),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_set_aside_and_an_empty_one_begins(kind: str, path: Path, said: list[str]) -> None:
    fill(path)
    DAMAGE[kind](path)
    damaged = path.read_bytes()
    cache = AnswerCache(path, said.append)
    assert [file.read_bytes() for file in aside(path)] == [damaged]
    assert len(said) == 1
    assert str(path) in said[0]
    assert aside(path)[0].name in said[0]
    assert cache.get("1") is None
    cache.put("1", "new", {})
    cache.close()
    assert AnswerCache(path, said.append).get("1") == CachedAnswer("new", {})
    assert len(said) == 1


def test_a_file_that_lacks_its_end_serves_what_it_can(path: Path, said: list[str]) -> None:
    """SQLite opens it, and meets the damage on the last page."""
    fill(path)
    os.truncate(path, path.stat().st_size - 2048)
    cache = AnswerCache(path, said.append)
    assert 0 < right(cache) < 300
    assert right(cache) == 0
    assert len(said) == 1
    assert len(aside(path)) == 1


@pytest.mark.parametrize("action", ["get", "put"])
def test_damage_under_an_open_cache_is_met_too(action: str, path: Path, said: list[str]) -> None:
    fill(path)
    cache = AnswerCache(path, said.append)
    with path.open("r+b") as file:  # all but the first page
        file.seek(4096)
        file.write(random.Random(2).randbytes(path.stat().st_size - 4096))
    if action == "get":
        assert right(cache) == 0
    cache.put("x", "new", {})
    assert cache.get("x") == CachedAnswer("new", {})
    assert len(aside(path)) == len(said) == 1


def test_changed_bytes_anywhere_never_change_an_answer(tmp_path: Path, said: list[str]) -> None:
    """SQLite itself would serve many of them."""
    fill(tmp_path / "whole.sqlite", 60)
    whole = (tmp_path / "whole.sqlite").read_bytes()
    draw, lost = random.Random(3), 0
    for trial in range(60):
        path = tmp_path / str(trial) / "answers.sqlite"
        path.parent.mkdir()
        changed = bytearray(whole)
        for _ in range(draw.choice([1, 3, 30])):
            changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            cache = AnswerCache(path, said.append)
        except BadInput:  # the table's definition was hit: what is there is not our table any more
            continue
        lost += right(cache, 60) < 60
        cache.put("new", "new", {})
        assert cache.get("new") == CachedAnswer("new", {})
        cache.close()
        shutil.rmtree(path.parent)
    assert lost > 20


def test_two_runs_that_meet_the_same_damage_go_on_with_the_same_fresh_file(
    path: Path, said: list[str]
) -> None:
    """The second must not set the file of the first aside, nor take its -wal away when it closes."""
    fill(path)
    first, second = AnswerCache(path, said.append), AnswerCache(path, said.append)
    assert right(first, 10) == right(second, 10) == 10
    first._replace(module._Damaged("as the test says"))
    first.put("a", "first", {})
    second._replace(module._Damaged("as the test says"))
    second.put("b", "second", {})
    assert second.get("a") == CachedAnswer("first", {})
    assert first.get("b") == CachedAnswer("second", {})
    second.close()
    first.put("c", "third", {})
    assert AnswerCache(path, said.append).get("c") == CachedAnswer("third", {})
    assert len(aside(path)) == len(said) == 1
    assert right(AnswerCache(aside(path)[0], said.append)) == 300


def test_four_processes_that_meet_a_damaged_file_at_once_agree_on_a_fresh_one(path: Path) -> None:
    for _ in range(3):
        noise(path)
        children = [
            subprocess.Popen(
                [sys.executable, "-c", READER_AND_WRITER, path, str(seed)],
                env=ENV,
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in range(4)
        ]
        said = "".join(child.communicate(timeout=120)[0] for child in children)
        assert said.count("\n") == said.count("is damaged") == 1
        assert len(aside(path)) == 1
        for file in path.parent.iterdir():
            file.unlink()


def test_one_run_that_replaced_the_file_leaves_another_that_did_not_notice_unharmed(
    path: Path, said: list[str]
) -> None:
    fill(path)
    first, second = AnswerCache(path, said.append), AnswerCache(path, said.append)
    second.put("old", "to the old file", {})
    first._replace(module._Damaged("as the test says"))
    first.put("a", "first", {})
    second.put("older", "to the old file", {})
    second.close()  # the last one on the old file
    first.put("b", "first", {})
    first.close()
    third = AnswerCache(path, said.append)
    assert [third.get(key) is not None for key in ("a", "b", "old")] == [True, True, False]
    assert len(aside(path)) == len(said) == 1
    kept = AnswerCache(aside(path)[0], said.append)
    assert [kept.get(key) is not None for key in ("a", "old", "older")] == [False, True, True]


def test_a_stray_wal_is_not_taken_for_ours(path: Path, said: list[str]) -> None:
    fill(path)
    keeper = AnswerCache(path, said.append)
    keeper.put("in the wal", "x", {})
    wal = path.with_name(path.name + "-wal").read_bytes()
    keeper.close()
    path.unlink()
    path.with_name(path.name + "-wal").write_bytes(wal)
    cache = AnswerCache(path, said.append)
    assert cache.get("in the wal") is None
    cache.put("1", "new", {})
    assert cache.get("1") == CachedAnswer("new", {})
    assert said == []


def test_damage_that_cannot_be_set_aside_leaves_a_run_without_a_cache(
    path: Path, cache: AnswerCache, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "not yours")

    monkeypatch.setattr(module.Path, "rename", refuse)
    cache._replace(module._Damaged("as the test says"))
    cache.put("1", "new", {})
    assert cache.get("1") is None
    assert len(said) == 1
    assert "not yours" in said[0]


# what cannot be a cache


def other_table(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE answers (question TEXT)")
    db.close()


def programs(path: Path) -> None:
    """What a file from somebody else could run."""
    fill(path, 3)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TRIGGER t BEFORE INSERT ON answers BEGIN SELECT RAISE(ABORT, 'no'); END")
    db.close()


def view(path: Path) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"
    with sqlite3.connect(path) as db:
        db.execute(f"CREATE VIEW answers AS SELECT 'k' AS key, x AS answer FROM ({endless}) WHERE x < 0")
    db.close()


NO_CACHE = {"folder": Path.mkdir, "another table": other_table, "a trigger": programs, "a view": view}


@pytest.mark.parametrize("kind", NO_CACHE)
def test_what_cannot_be_a_cache_is_bad_input(kind: str, path: Path, said: list[str]) -> None:
    NO_CACHE[kind](path)
    with pytest.raises(BadInput, match=r"llm\.cache: .*answers\.sqlite"):
        AnswerCache(path, said.append)
    assert aside(path) == said == []


def test_a_place_that_cannot_be_is_bad_input(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"llm\.cache: .*file/answers\.sqlite"):
        AnswerCache(tmp_path / "file" / "answers.sqlite", said.append)


def test_a_file_system_without_wal_is_bad_input(
    path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's unix-none has no shared memory, as a network file system has none."""
    real = sqlite3.connect
    monkeypatch.setattr(
        module.sqlite3, "connect", lambda path, **options: real(f"{path}&vfs=unix-none", **options)
    )
    with pytest.raises(BadInput, match="network file system"):
        AnswerCache(path, said.append)


def test_names_with_odd_characters_are_names(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "a b?mode=ro#c%20é" / "x&y.sqlite"
    fill(path, 3)
    assert path.is_file()
    assert right(AnswerCache(path, said.append), 3) == 3


# other failures


def test_a_lock_that_lasts_costs_one_answer_and_is_said_once(
    path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.02)
    cache = AnswerCache(path, said.append)
    cache.put("0", "before", {})
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    cache.put("1", "lost", {})
    cache.put("2", "lost", {})
    assert cache.get("0") == CachedAnswer("before", {})
    assert cache.errors == {"SQLITE_BUSY": 2}
    assert len(said) == 1
    assert "locked" in said[0]
    other.execute("ROLLBACK")
    other.close()
    cache.put("1", "after", {})
    assert cache.get("1") == CachedAnswer("after", {})


def test_a_full_disk_costs_one_answer_and_is_said_once(cache: AnswerCache, said: list[str]) -> None:
    cache._db.execute("PRAGMA max_page_count = 8")
    for number in range(10):
        cache.put(str(number), "x" * 6000, {})
    stored = [number for number in range(10) if cache.get(str(number))]
    assert stored
    assert cache.errors == {"SQLITE_FULL": 10 - len(stored)}
    assert len(said) == 1
    assert "full" in said[0]


def test_a_closed_cache_has_nothing(cache: AnswerCache, said: list[str]) -> None:
    cache.put("k", "text", {})
    cache.close()
    cache.close()
    assert cache.get("k") is None
    assert said == []

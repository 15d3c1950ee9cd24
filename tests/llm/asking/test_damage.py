"""Journal and cache are read as what a stranger may have written: damage is named, and costs nothing."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.llm.fakes import LEFT, FakeProvider, make_asker, plan, policy, question, records

from lore.base.errors import BadInput
from lore.llm.asking.asker import Asker
from lore.llm.asking.cache import LARGEST, AnswerCache, CachedAnswer
from lore.llm.asking.record import AskRecord, read_record
from lore.llm.asking.stored_answers import StoredAnswers
from lore.llm.providers import ProviderError

ASKS = 6
Json = dict[str, Any]


def script(number: int) -> Any:
    """What the adviser of the undamaged run says, and what another one would say after it."""
    kinds = [LEFT, plan("left"), ProviderError("http_400"), "junk", LEFT, policy(right=1.0)]
    return kinds[number % len(kinds)]


def ask_all(asker: Asker, start: int = 0) -> list[Any]:
    asked = [asker.ask(question(number, number)) for number in range(start, ASKS)]
    return [(one.outcome, one.answer) for one in asked]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Json], list[Any]]:
    """A run's folder, its states before each ask, and what came of the asks."""
    folder = tmp_path_factory.mktemp("whole")
    asker = make_asker(folder, FakeProvider([script(n) for n in range(ASKS)]), total=99, retries=0)
    states, outcomes = [], []
    for number in range(ASKS):
        states.append(asker.state_dict())
        one = asker.ask(question(number, number))
        outcomes.append((one.outcome, one.answer))
    return folder, states, outcomes


def rewritten(line: bytes, change: Callable[[Json], Any], right_crc: bool) -> bytes:
    """A line with changed content; right_crc: as if we had written it."""
    values = json.loads(line)
    changed = change(values)
    if right_crc and isinstance(changed, dict):
        changed.pop("crc", None)
        changed["crc"] = f"{zlib.crc32(json.dumps(changed).encode()):08x}"
    return json.dumps(changed).encode()


OTHER_TYPES: list[Any] = [
    None,
    [],
    {},
    [None, {}],
    True,
    "x",
    -1,
    1.5,
    float("nan"),
    float("inf"),
    {"a": [1]},
]


def wrong_type(draw: random.Random, line: bytes) -> bytes:
    def change(values: Json) -> Json:
        name = draw.choice(sorted(values.keys() - {"crc"}))
        was = values[name]
        fits: tuple[type, ...] = (type(was), int) if isinstance(was, float) else (type(was), type(None))
        if name in ("usd", "latency_s"):
            fits = (int, float, type(None))
        values[name] = draw.choice([v for v in OTHER_TYPES if type(v) not in fits])
        return values

    return rewritten(line, change, draw.random() < 0.7)


def wrong_shape(draw: random.Random, line: bytes) -> bytes:
    def change(values: Json) -> Any:
        kind = draw.randrange(4)
        if kind == 0:
            del values[draw.choice(sorted(values.keys() - {"crc", "ask"}))]
            return values
        if kind == 1:
            return values | {"extra": 1}
        return [values] if kind == 2 else draw.choice([None, [None, {}], 5, "text", []])

    return rewritten(line, change, draw.random() < 0.7)


def wrong_size(draw: random.Random, line: bytes) -> bytes:
    kind = draw.randrange(4)
    if kind == 0:
        return rewritten(line, lambda values: values | {"text": "x" * 3_000_000}, True)
    if kind == 1:
        return rewritten(line, lambda values: values | {"failures": ["x"] * 200_000}, True)
    if kind == 2:
        return b"[" * 100_000
    return line.replace(b'"env_step": ', b'"env_step": ' + b"9" * 5000, 1)


def foreign_encoding(draw: random.Random, line: bytes) -> bytes:
    at = draw.randrange(1, len(line))
    return [
        line[:at] + bytes([draw.randrange(128, 256)]) + line[at:],
        line.decode().encode("utf-16").replace(b"\n", b" "),
        line[:at] + b"\x00" + line[at:],
        line.decode().encode("cp037").replace(b"\n", b" "),
    ][draw.randrange(4)]


def cut_inside(draw: random.Random, line: bytes) -> bytes:
    return line[: draw.randrange(len(line))]


def flipped(draw: random.Random, line: bytes) -> bytes:
    changed = bytearray(line)
    changed[draw.randrange(len(line))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def doubled(draw: random.Random, line: bytes) -> bytes:
    return line + b"\n" + line


def dropped(draw: random.Random, line: bytes) -> bytes:
    return b""


LINE_DAMAGES = (wrong_type, wrong_shape, wrong_size, foreign_encoding, cut_inside, flipped, doubled, dropped)


@pytest.mark.parametrize("trial", range(80))
def test_a_damaged_line_of_the_journal_is_named_and_nothing_is_asked_or_lost(
    trial: int, whole: tuple[Path, list[Json], list[Any]], tmp_path: Path
) -> None:
    """The run either ends as before (the damage changed no value) or stops with file, line and remedy."""
    folder, states, outcomes = whole
    draw = random.Random(trial)
    damage = LINE_DAMAGES[trial % len(LINE_DAMAGES)]
    lines = (folder / "llm.jsonl").read_bytes().split(b"\n")[:-1]
    number = draw.randrange(ASKS - 1)
    damaged = damage(draw, lines[number])
    path = tmp_path / "llm.jsonl"
    rest = [*lines[:number], *([damaged] if damaged or damage is cut_inside else []), *lines[number + 1 :]]
    path.write_bytes(b"".join(line + b"\n" for line in rest))
    before = path.read_bytes()
    provider = FakeProvider([policy(forward=1.0)])
    start = draw.randrange(number + 1)
    offset = sum(len(line) + 1 for line in lines[:start])
    asker = make_asker(tmp_path, provider, total=99, retries=0)
    asker.load_state_dict(states[start] | {"journal": {"offset": offset}})
    try:
        assert ask_all(asker, start) == outcomes[start:]
        assert damage is flipped or damage is foreign_encoding
    except BadInput as error:
        assert error.key == "resume" and "llm.jsonl" in str(error)
        lines_named = {number + 1, number + 2} if damage is doubled else {number + 1}
        assert any(f"line {line} " in str(error) for line in lines_named), error
        assert "copy" in str(error)
    assert provider.asked == [] and path.read_bytes() == before


def test_a_journal_that_lost_its_end_is_asked_for_the_rest_alone(
    whole: tuple[Path, list[Json], list[Any]], tmp_path: Path
) -> None:
    """Cut anywhere: whole lines are served, and a checkpoint behind the end refuses the file."""
    folder, states, outcomes = whole
    data = (folder / "llm.jsonl").read_bytes()
    draw = random.Random(0)
    for trial in range(30):
        size = draw.randrange(len(data))
        kept = data[:size].count(b"\n")
        (tmp_path / str(trial)).mkdir()
        (tmp_path / str(trial) / "llm.jsonl").write_bytes(data[:size])
        provider = FakeProvider([script(n) for n in range(kept, ASKS)])
        start = draw.randrange(ASKS)
        asker = make_asker(tmp_path / str(trial), provider, total=99, retries=0)
        if start > kept:
            with pytest.raises(BadInput, match=r"resume: .*llm\.jsonl.*copy of the file"):
                asker.load_state_dict(states[start])
            continue
        asker.load_state_dict(states[start])
        assert ask_all(asker, start) == outcomes[start:]
        assert len(provider.asked) == ASKS - kept


def test_a_line_that_is_gone_while_the_server_asked_for_a_pause_is_noticed(tmp_path: Path) -> None:
    """There the next record may be of a later question: the number of the ask tells."""
    now = [1000.0]
    provider = FakeProvider([ProviderError("rate_limited", retry_after_s=10.0), LEFT, LEFT])
    asker = make_asker(tmp_path, provider, retries=0, clock=lambda: now[0])
    outcomes = []
    for number in range(4):
        outcomes.append(asker.ask(question(number, number)).outcome)
        now[0] += 6.0
    assert outcomes == ["failed", "paused", "answered", "answered"]
    path = tmp_path / "llm.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    again = make_asker(tmp_path, FakeProvider(), retries=0, clock=lambda: now[0])
    assert [again.ask(question(n, n)).outcome for n in (0, 1, 2)] == ["failed", "paused", "paused"]
    with pytest.raises(BadInput, match="line 2 is ask 3"):
        again.ask(question(3, 3))


def test_lines_without_number_and_checksum_are_read_as_those_of_an_older_run(
    whole: tuple[Path, list[Json], list[Any]], tmp_path: Path
) -> None:
    folder, _, outcomes = whole
    rows = [json.loads(line) for line in (folder / "llm.jsonl").read_text().splitlines()]
    old = [{k: v for k, v in row.items() if k not in ("crc", "ask")} for row in rows]
    (tmp_path / "llm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    assert ask_all(make_asker(tmp_path, FakeProvider(), total=99, retries=0)) == outcomes


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
NAMES = [*AskRecord.__dataclass_fields__, "crc", "other"]


@settings(max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), gone=st.sets(st.sampled_from(NAMES))
)
def test_any_object_is_a_record_or_a_named_error(changes: Json, gone: set[str]) -> None:
    record = AskRecord(
        1, 1, 1, 0, "novelty", "k", "p", "fake", "1", "1", False, 1, False, [], LEFT, ["left"], 0.1, 5, 0.0, 1
    )
    values = {k: v for k, v in (record.to_json() | changes).items() if k not in gone or k in changes}
    try:
        read = read_record(values)
    except ValueError as error:
        assert len(str(error)) < 200
    else:
        assert read_record(read.to_json()) == read


# the cache


def entry(draw: random.Random) -> Any:
    """Something that no run of ours has written: JSON, bytes, or a value of SQLite."""
    deep = b"[" * draw.choice([2000, 100_000])
    return draw.choice(
        [
            [None, {}],
            [LEFT, None],
            [LEFT, {}, 1],
            [LEFT],
            [[LEFT], {}],
            {"text": LEFT},
            None,
            5,
            LEFT,
            [],
            ["junk", {}],
            ["", {}],
            ["x" * 50_000, {}],
            [LEFT[:-9], {}],
            ["[" * 5000, {}],
            [json.dumps([None, {}]), {}],
            [policy(left=-1.0), {}],
            [policy(left=float("nan")), {}],
            b"\xff\xfe\xfd",
            b'["\xe9", {}]',
            '["é", {}]'.encode("utf-16"),
            b"",
            deep,
            b'["' + b"x" * (LARGEST + 9) + b'", {}]',
            b'["text", {"a": ' + b"9" * 5000 + b"}]",
            json.dumps([LEFT, {}]).encode()[: draw.randrange(1, 40)],
        ]
    )


@pytest.mark.parametrize("trial", range(60))
def test_a_poisoned_entry_is_a_counted_miss_that_never_reaches_the_journal(
    trial: int, tmp_path: Path
) -> None:
    draw = random.Random(trial)
    poison = entry(draw)
    path, said = tmp_path / "answers.sqlite", list[str]()
    asked, good = question(0).request, question(1).request
    provider = FakeProvider([LEFT])
    names = StoredAnswers(AnswerCache(path, said.append), provider.identity())
    names._cache.put(names._name(good.key, good), policy(right=1.0), {})  # type: ignore[union-attr]
    blob = poison if isinstance(poison, bytes) else json.dumps(poison).encode()
    for key in draw.choice([[asked.key], [asked.plan_key], [asked.key, asked.plan_key]]):
        name = names._name(key, asked)
        crc = zlib.crc32(blob, zlib.crc32(name.encode())).to_bytes(4, "big")
        with sqlite3.connect(path) as db:
            db.execute("INSERT INTO answers VALUES (?, ?)", (name, crc + blob))
        db.close()
    asker = make_asker(tmp_path / "run", provider, total=9, cache=AnswerCache(path, said.append))
    first = asker.ask(question(0, 0))
    assert (
        first.outcome == "answered" and first.answer is not None and first.answer.weights == (1,) + (0,) * 6
    )
    assert len(provider.asked) == 1 and 1 <= asker.failures["bad_cache_entry"] <= 2
    assert len(said) == 1 and str(path) in said[0]
    second = asker.ask(question(1, 1))  # the rest of the file still serves
    assert second.outcome == "answered" and asker.counts["cached"] == 1 and len(provider.asked) == 1
    assert [row["text"] for row in records(asker)] == [LEFT, policy(right=1.0)]
    assert not list(tmp_path.glob("*.corrupt-*"))
    again = make_asker(tmp_path / "run", FakeProvider(["other"]), total=9)
    assert [again.ask(question(n, n)).answer for n in (0, 1)] == [first.answer, second.answer]
    assert again.failures == asker.failures and again.counts == asker.counts


@pytest.mark.parametrize(
    "value", [None, 5, 1.5, "text", "\ud800".encode("utf-8", "surrogatepass"), b"abc", b""]
)
def test_values_of_another_type_in_the_table_end_no_run(value: Any, tmp_path: Path) -> None:
    """Without a fitting checksum the file counts as damaged: it is kept beside a fresh one."""
    path, said = tmp_path / "answers.sqlite", list[str]()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, answer)")
        db.execute("INSERT INTO answers VALUES ('k', ?)", (value,))
    db.close()
    cache = AnswerCache(path, said.append)
    assert cache.get("k") is None and len(said) == 1
    cache.put("k", "new", {})
    assert cache.get("k") == CachedAnswer("new", {})


def test_a_second_entry_under_one_key_is_passed_over(tmp_path: Path) -> None:
    """A table without our key constraint may hold two."""
    path, said = tmp_path / "answers.sqlite", list[str]()
    AnswerCache(path, said.append).put("k", "first", {})
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT * FROM answers").fetchall()
        db.execute("DROP TABLE answers")
        db.execute("CREATE TABLE answers (key TEXT, answer BLOB NOT NULL)")
        db.executemany("INSERT INTO answers VALUES (?, ?)", rows * 2)
    db.close()
    assert AnswerCache(path, said.append).get("k") == CachedAnswer("first", {})
    assert said == []


def test_a_copy_of_the_file_serves_the_same(tmp_path: Path) -> None:
    path, said = tmp_path / "answers.sqlite", list[str]()
    cache = AnswerCache(path, said.append)
    cache.put("k", "first", {})
    cache.close()
    shutil.copy(path, tmp_path / "copy.sqlite")
    assert AnswerCache(tmp_path / "copy.sqlite", said.append).get("k") == CachedAnswer("first", {})

"""docs/recorded.md: its tables are the fields that are read, and its example makes a data set."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lore.cli.record import main
from lore.llm.answer import Answer
from lore.llm.providers import recorded_files as recorded
from lore.llm.providers.recorded_files import Header, Prompt, RecordedAnswer, load
from lore.studies import dataset

PAGE = (Path(__file__).parents[2] / "docs" / "recorded.md").read_text(encoding="utf-8")
TABLES = {
    "answers.jsonl": RecordedAnswer,
    "prompts.jsonl, the first line": Header,
    "prompts.jsonl, every other line": Prompt,
}
WORDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "list[str]": "list of texts",
    "dict[str, int]": "text to whole number",
    "dict[str, Any]": "object",
}


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("title", TABLES)
def test_the_tables_name_every_field_with_its_type_and_default(title: str) -> None:
    part = PAGE.split(f"### {title}\n")[1].split("\n##")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line[:3] == "| `"
    ]
    fields = dataclasses.fields(TABLES[title])
    assert [row[:2] for row in rows] == [[f"`{field.name}`", WORDS[str(field.type)]] for field in fields]
    if title == "answers.jsonl":
        defaults = ["" if f.default is dataclasses.MISSING else f"{f.default or 0}" for f in fields]
        assert [row[2].replace("empty", "0") for row in rows] == [d.removesuffix(".0") for d in defaults]


def test_the_page_names_the_limits_that_hold() -> None:
    assert (recorded.LARGEST_LINE, recorded.LARGEST_FILE, recorded.LARGEST_NUMBER) == (2**20, 2**28, 2**53)
    assert (recorded.LONGEST_WORD, dataset.LONGEST_NOTE, recorded.FORMAT) == (10_000, 2000, 1)
    for words in ("1 MiB", "256 MiB", "2^53", "10 000", "2000 characters", "| `format` | whole number | 1 |"):
        assert words in " ".join(PAGE.split())
    for name in recorded.TEXTS:
        assert f"`{name}`" in PAGE.split("Every field but")[1].split("is one line")[0]


def test_the_example_makes_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = block("python")
    name = re.search(r"^# (\S+\.py)", code)
    assert name
    (tmp_path / name[1]).write_text(code)
    for line in block("sh").splitlines():
        command, *arguments = shlex.split(line)
        if command == "python":
            subprocess.run([sys.executable, *arguments], check=True, timeout=60)
        else:
            assert command == "lore-record" and main(arguments) == 0
    data = load(tmp_path / "data" / "doorkey5" / "v1")
    assert len(data.answers) == len(data.prompts) == 5
    assert all(isinstance(data.parsed(one), Answer) for one in data.prompts)
    assert main(["stats", "dataset=data/doorkey5/v1"]) == 0

"""Providers are found by name, and docs/advisers.md says what they do and how to add one."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from lore.base.errors import BadInput
from lore.base.types import GridState, Thing
from lore.config.options import LLMOptions
from lore.llm.answer import KINDS, parse_answer
from lore.llm.providers import PROVIDERS, build_provider
from lore.llm.request import FAILURES, Reply, Request

PAGE = Path(__file__).parents[3] / "docs" / "advisers.md"
ACTIONS = ("left", "right", "forward", "toggle")
STATE = GridState("get to the goal", None, (0, 0), 0, {}, frozenset({(0, 0)}), 0, 100)


def test_providers_are_found_by_name(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key-of-nobody")
    adviser = build_provider(LLMOptions(provider="anthropic", model="claude-haiku-5-5"))
    assert (adviser.name, adviser.model, adviser.privileged) == ("anthropic", "claude-haiku-5-5", False)
    with pytest.raises(BadInput) as caught:
        build_provider(LLMOptions(provider="antropic"))
    assert caught.value.key == "llm.provider" and "anthropic" in str(caught.value)


def install(folder, name, points, code):
    """A package as pip would leave it: a module and its metadata."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "\n".join(f"{key} = {value}" for key, value in points.items())
    (info / "entry_points.txt").write_text(f"[lore.providers]\n{lines}\n")


def test_entry_points_that_cannot_serve_are_refused(tmp_path, monkeypatch):
    points = {"anthropic": "rogue:Rogue", "gone": "rogue:Gone", "missing": "no_such_module:X"}
    install(tmp_path, "rogue", points, "class Rogue: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, words in (
        ("anthropic", "claimed by"),
        ("gone", "cannot be loaded"),
        ("missing", "no_such_module"),
    ):
        with pytest.raises(BadInput, match=words):
            build_provider(LLMOptions(provider=name))


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    """As an entry point of an installed package, and as a row of the table."""
    table = tomllib.loads(block("toml"))["project"]["entry-points"]["lore.providers"]
    (name, place), module = table.popitem(), re.search(r"^# (\w+)\.py", block("python"))[1]
    install(tmp_path, module, {name: place}, block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    adviser = build_provider(LLMOptions(provider=name))
    asked = Request("You advise.", "A door is ahead.", STATE, "key", "plan key", ACTIONS, 512)
    answer = parse_answer(adviser.ask(asked).text, ACTIONS)
    assert answer.plan is not None or answer.weights is not None
    assert adviser.name == name and adviser.identity() and adviser.max_cost_usd(asked) >= 0
    assert not adviser.paid and not adviser.privileged
    monkeypatch.setitem(PROVIDERS, "row", place)
    assert type(build_provider(LLMOptions(provider="row"))) is type(adviser)


def rows(title):
    """First cell -> the other cells, of the table under a heading of the page."""
    part = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line[:3] == "| `"
    ]
    return {name: rest for first, *rest in cells for name in re.findall(r"`([^`]+)`", first)}


@pytest.mark.parametrize("made", [Request, GridState, Thing, Reply])
def test_the_page_names_every_field(made):
    part = PAGE.read_text(encoding="utf-8").split(f"| field of `{made.__name__}` |")[1].split("\n\n")[0]
    listed = {name for row in part.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1:2][0])}
    fields = made._fields if made is Thing else [field.name for field in dataclasses.fields(made)]
    assert listed == set(fields)


def test_the_page_and_the_example_import_from_the_same_place():
    example = PAGE.parents[1] / "examples" / "own_provider" / "compass.py"
    line = "from lore.llm.providers import Reply, Request\n"
    assert line in block("python") and line in example.read_text(encoding="utf-8")


def test_the_page_names_every_failure_and_every_provider():
    failures = rows("Asks that fail")
    assert failures.keys() == FAILURES.keys()
    assert {name: cells[-1] == "yes" for name, cells in failures.items()} == FAILURES
    assert rows("Answers that are refused").keys() == set(KINDS)
    assert rows("Providers").keys() >= PROVIDERS.keys()

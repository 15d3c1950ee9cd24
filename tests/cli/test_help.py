"""--help and --version of every command: a word on each option, the choices, at once and without torch."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lore
from lore.cli import arguments, help
from lore.config import command_options
from lore.config.checks import CHOICES
from lore.config.explain import group_names
from lore.config.fields import fields
from lore.config.options import Config

COMMANDS = ("train", "eval", "bench", "probe", "record")
SOURCE = Path(__file__).parents[2] / "src"
OWN = {
    "eval": [command_options.EvalOptions],
    "bench": [command_options.BenchOptions],
    "probe": [command_options.ProbeOptions],
    "record": [command_options.ExportOptions, command_options.ImportOptions, command_options.StatsOptions],
}


def page(command: str, capsys: pytest.CaptureFixture[str], flag: str = "--help") -> str:
    assert importlib.import_module(f"lore.cli.{command}").main(["seed=1", flag, "nonsense"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert page(command, capsys, "--version") == f"lore-{command} {lore.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_a_word_on_each_option_of_the_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = words(page(command, capsys))
    assert text == words(page(command, capsys, "-h")) and f"lore-{command}" in text
    for cls in OWN.get(command, []):
        for field in fields(cls):
            assert f" {field.key}=" in text and field.comment and words(field.comment) in text, field


def test_help_has_a_word_on_each_option_of_a_run_and_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    text = words(page("train", capsys))
    for field in fields(Config):
        if not dataclasses.is_dataclass(field.hint):
            assert f" {field.key}=" in text and field.comment and words(field.comment) in text, field
    for key, choices in CHOICES.items():
        said = text.partition(f" {key}=")[2][:200]
        assert all(choice in said for choice in choices), key
    for group, names in group_names().items():
        said = text.partition(f" {'+' if group in help.ADDED else ''}{group}= ")[2][:400]
        assert names and all(name in said for name in names), group


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_no_long_line_and_no_empty_heading(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = page(command, capsys).splitlines()
    assert max(map(len, lines)) <= 110 and "--" not in [line.strip() for line in lines]


def test_sizes_stand_in_order_of_size() -> None:
    assert group_names()["size"] == ["tiny", "500k", "1m", "12m", "25m", "50m", "100m", "200m", "400m"]


def test_help_of_the_others_lists_what_they_read(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("bench", "probe", "record"):
        module = importlib.import_module(f"lore.cli.{command}")
        text = words(page(command, capsys).partition("Groups,")[2])
        for field in fields(Config):
            if not dataclasses.is_dataclass(field.hint):
                read = field.key.partition(".")[0] in module.READS
                assert (f" {field.key}=" in text) == read, (command, field.key)


def test_every_flag_of_hydra_is_taken_or_refused_with_a_remedy() -> None:
    """Hydra's own parser is read here, in a test, and nowhere in the package."""
    from hydra._internal.utils import get_args_parser

    taken = {*arguments.FLAGS, *arguments.FLAGS.values(), "-h", "--help", "--version"}
    flags = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    assert flags == taken | {*arguments.NOT_TAKEN, *arguments.SHORT}
    assert set(arguments.SHORT.values()) <= set(arguments.NOT_TAKEN)
    for path in SOURCE.rglob("*.py"):
        assert "hydra._internal" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_they_come_at_once_and_without_torch(command: str, flag: str, tmp_path: Path) -> None:
    code = (
        f"import sys, lore.cli.{command} as c; s = c.main(); assert 'torch' not in sys.modules; sys.exit(s)"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, flag],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        cwd=tmp_path,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 10  # about half a second on an idle machine

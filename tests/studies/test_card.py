"""scripts/gpu, without a card: every part works in tiny sizes, and what fails is said."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lore.cli.gpu import main
from lore.studies import card

ROOT = Path(__file__).parents[2]
QUICK = dataclasses.replace(card.REHEARSAL, seeds=[1], tests=["tests/base/test_rng.py"])


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / card.ROWS).read_text().splitlines()]


def test_each_part_writes_its_row(tmp_path: Path) -> None:
    assert card.try_card(QUICK, tmp_path / "out")
    tests, bench, seeds, run = rows(tmp_path / "out")
    assert [row["part"] for row in (tests, bench, seeds, run)] == ["tests", "bench", "seeds", "run"]
    for row in (tests, bench, seeds, run):
        assert row["ok"] and row["card"] == "cpu" and row["torch"] == torch.__version__ and row["commit"]
    assert bench["median_s"] > 0 and bench["params"] > 0 and 0 < bench["busy_share"] <= 1.5
    assert seeds["finished"] == seeds["processes"] == 1 and seeds["env_steps_per_second"] > 0
    assert run["env_steps"] == QUICK.run_steps and run["gradient_steps"] > 0


def test_a_part_that_fails_costs_no_other_its_row(tmp_path: Path) -> None:
    broken = dataclasses.replace(QUICK, tests=["tests/no_such_file.py"], sizes=[], seeds=[], run_steps=-1)
    assert not card.try_card(broken, tmp_path)
    assert [(row["part"], row["ok"]) for row in rows(tmp_path)] == [("tests", False), ("run", False)]
    assert "no_such_file" in (tmp_path / "tests.log").read_text()


def test_what_is_not_done_in_time_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    started = time.monotonic()
    logs = [tmp_path / "a", tmp_path / "b"]
    assert card._side_by_side([command, command], logs, started + 0.5) == [-1, -1]
    assert time.monotonic() - started < 30


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "no graphics card" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["--cpu"], ["a", "b"], ["--card", "a"], ["--card"]])
def test_without_one_folder_nothing_is_done(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OUT", raising=False)
    assert main(arguments) == 2
    assert "FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_script_in_tiny_sizes(tmp_path: Path) -> None:
    """As it will run on the card: the shell's part too, and the folder from OUT."""
    env = os.environ | {"OUT": str(tmp_path / "out"), "LORE_PYTHON": sys.executable}
    done = subprocess.run(
        [ROOT / "scripts/gpu", "--cpu"], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / card.ROWS)
    parts = [row["part"] for row in rows(tmp_path / "out")]
    assert parts == ["tests", "bench", "seeds", "seeds", "run"]
    assert rows(tmp_path / "out")[0]["passed"] >= 1

"""lore-train and lore-eval as commands: run folder, exit status, resume, sweeps. Training is replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lore.base.errors import BadInput
from lore.cli import eval as eval_cli
from lore.cli import guard
from lore.cli import train as cli
from lore.config.options import Config
from lore.config.stored import load_stored

SOURCE = Path(__file__).parents[2] / "src"
TINY = ["+preset=debug", "env=empty5"]
Train = Callable[[Config, Path], str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts in a folder of its own, with a space in its name."""
    folder = tmp_path / "some where"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LORE_DEBUG", raising=False)
    return folder


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Path]]:
    """Replaces training by a list of what it was called with."""
    calls: list[tuple[Config, Path]] = []

    def train(cfg: Config, run_dir: Path) -> str:
        calls.append((cfg, run_dir))
        return "finished"

    replace_train(monkeypatch, train)
    return calls


def replace_train(monkeypatch: pytest.MonkeyPatch, train: Train) -> None:
    module = ModuleType("lore.training.trainer")
    module.__dict__["train"] = train
    monkeypatch.setitem(sys.modules, "lore.training.trainer", module)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_run_gets_a_folder_with_config_and_provenance(
    elsewhere: Path, training: list[tuple[Config, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TINY, "seed=3"]) == cli.DONE
    ((cfg, run_dir),) = training
    assert run_dir.parents[1] == elsewhere / "outputs"
    assert run_dir.name.endswith("_MiniGrid-Empty-5x5-v0_E_seed3")
    assert load_stored(run_dir) == cfg and cfg.run.dir == str(run_dir)
    record = json.loads((run_dir / "provenance.json").read_text())
    assert record["seed"] == 3 and record["command"] == "lore-train +preset=debug env=empty5 seed=3"
    assert record["versions"]["torch"].startswith("2.") and record["machine"]["cores"] >= 1
    assert {path.name for path in run_dir.iterdir()} == {"config.yaml", "provenance.json", ".lock"}
    captured = capsys.readouterr()
    assert "MiniGrid-Empty-5x5-v0" in captured.out and run_dir.name in captured.out and not captured.err
    assert Path.cwd() == elsewhere


def test_a_rhythm_of_evaluation_that_was_left_open_is_said_and_stored(
    training: list[tuple[Config, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    open_, told = ["env=doorkey8", "run.dir=open"], ["env=doorkey8", "run.eval_every=500", "run.dir=told"]
    assert cli.main(open_) == guard.DONE
    said = [line for line in capsys.readouterr().out.splitlines() if "evaluation every" in line]
    assert said == [
        "lore-train: evaluation every 3500 steps, of 100 episodes a policy; "
        "run.eval_every=N is another number, 0 none"
    ]
    assert cli.main(told) == guard.DONE and "evaluation every" not in capsys.readouterr().out
    assert cli.main(["resume=open"]) == guard.DONE and "evaluation every" not in capsys.readouterr().out
    assert [cfg.run.eval_every for cfg, _ in training] == [3500, 500, 3500]
    assert [load_stored(Path(name)).run.eval_every for name in ("open", "told")] == [3500, 500]


def test_a_folder_can_be_named_and_is_not_used_twice(
    elsewhere: Path, training: list[tuple[Config, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TINY, "hydra.run.dir=mine"]) == cli.DONE
    assert cli.main([*TINY, "run.dir=yours"]) == cli.DONE
    assert [run_dir for _, run_dir in training] == [elsewhere / "mine", elsewhere / "yours"]
    capsys.readouterr()
    assert cli.main([*TINY, "run.dir=mine"]) == cli.BAD_INPUT
    assert "resume=" in one_line(capsys) and len(training) == 2


def test_runs_started_together_do_not_share_a_folder(training: list[tuple[Config, Path]]) -> None:
    for _ in range(3):
        assert cli.main(TINY) == cli.DONE
    assert len({run_dir for _, run_dir in training}) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["run.stpes=1"],
        ["+run.stpes=1"],
        ["run.steps=abc"],
        ["env=nowhere"],
        ["agent.batch_size=10000"],
        ["env.id=nowhere/at-all"],
        ["env.actions=useful", "env.id=BabyAI-GoToLocal-v0"],
        ["--no-such-option"],
        ["--cfg=nothing"],
        ["-m", "seed=0,1", "run.stpes=1"],
        ["-m", "resume=x"],
        ["resume=x"],
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    elsewhere: Path,
    arguments: list[str],
    training: list[tuple[Config, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(arguments) == cli.BAD_INPUT
    assert one_line(capsys).startswith("lore-train: ")
    assert not training and not list(elsewhere.rglob("outputs"))


def test_bad_input_fails_fast_without_torch(elsewhere: Path) -> None:
    code = "import sys, lore.cli.train as c; s = c.main(); assert 'torch' not in sys.modules; sys.exit(s)"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, "run.steps=none"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == cli.BAD_INPUT
    assert done.stderr == "lore-train: run.steps: needs a whole number, not 'none'\n"
    assert time.monotonic() - start < 10  # about half a second on an idle machine


def test_help_and_cfg(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == cli.DONE
    assert "doorkey5" in capsys.readouterr().out
    assert cli.main(["--cfg", "job", "size=tiny"]) == cli.DONE
    assert "deter: 64" in capsys.readouterr().out
    assert eval_cli.main(["--help"]) == cli.DONE
    assert "episodes=100" in capsys.readouterr().out


def test_a_sweep_gives_each_job_its_folder(training: list[tuple[Config, Path]]) -> None:
    assert cli.main(["-m", *TINY, "seed=range(0,3)"]) == cli.DONE
    names = [run_dir.name for _, run_dir in training]
    assert [name.rpartition("_")[2] for name in names] == ["seed0", "seed1", "seed2"]
    assert len({run_dir.parent for _, run_dir in training}) == 1


def test_a_bad_job_of_a_sweep_is_told_before_the_first_one_starts(
    elsewhere: Path, training: list[tuple[Config, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-m", *TINY, "agent.batch_size=4,10000,2"]) == cli.BAD_INPUT
    assert one_line(capsys).startswith("lore-train: agent.batch_size:")
    assert not training and not list(elsewhere.iterdir())


def test_a_job_that_fails_on_its_own_is_told_and_the_others_run(
    training: list[tuple[Config, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Only making the world shows that this id has no table of useful actions."""
    task = ["+preset=debug", "env.id=BabyAI-GoToLocal-v0", "env.actions=all,useful,all"]
    assert cli.main(["-m", *task]) == cli.BAD_INPUT
    assert [cfg.env.actions for cfg, _ in training] == ["all", "all"]
    assert "lore-train: env.actions:" in capsys.readouterr().err


def test_a_failure_leaves_its_traceback_and_status(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(cfg: Config, run_dir: Path) -> str:
        (run_dir / "summary.json").write_text('{"env_steps": 120, "status": "running"}')
        raise RuntimeError("loss is\nnot finite")

    replace_train(monkeypatch, train)
    assert cli.main([*TINY, "run.dir=r"]) == cli.FAILED
    assert (
        one_line(capsys)
        == f"lore-train: RuntimeError: loss is not finite; traceback in {elsewhere}/r/error.txt"
    )
    assert "raise RuntimeError" in (elsewhere / "r" / "error.txt").read_text()
    assert json.loads((elsewhere / "r" / "summary.json").read_text()) == {
        "env_steps": 120,
        "status": "failed",
    }
    assert cli.main(["-m", *TINY, "seed=0,1"]) == cli.FAILED
    monkeypatch.setenv("LORE_DEBUG", "1")
    capsys.readouterr()
    assert cli.main(TINY) == cli.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_130_and_ends_a_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = []

    def train(cfg: Config, run_dir: Path) -> str:
        seeds.append(cfg.seed)
        if cfg.seed == 5:
            raise KeyboardInterrupt
        return "interrupted"

    replace_train(monkeypatch, train)
    assert cli.main(TINY) == guard.INTERRUPTED
    assert cli.main(["-m", *TINY, "seed=1,2"]) == guard.INTERRUPTED
    assert seeds == [0, 1]
    assert cli.main([*TINY, "seed=5", "run.dir=r"]) == guard.INTERRUPTED
    assert "resume=" in capsys.readouterr().err


def test_resume_goes_on_under_the_stored_config(
    elsewhere: Path, training: list[tuple[Config, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TINY, "seed=4", "run.dir=a run"]) == cli.DONE
    assert cli.main(["resume=a run", "run.steps=500"]) == cli.DONE
    (first, _), (second, run_dir) = training
    assert run_dir == elsewhere / "a run" and (second.seed, second.run.steps) == (4, 500)
    first.run.steps = 500
    assert first == second == load_stored(run_dir)
    record = json.loads((run_dir / "provenance.json").read_text())
    assert "run.steps=500" in record["resumed"][0]["command"] and record["seed"] == 4
    capsys.readouterr()
    assert cli.main(["resume=a run", "seed=5"]) == cli.BAD_INPUT
    assert one_line(capsys).startswith("lore-train: seed: ")
    assert len(training) == 2 and not (elsewhere / "outputs").exists()


def test_eval_hands_its_options_on(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    module = ModuleType("lore.studies.checkpoint_evaluation")
    module.__dict__["evaluate_checkpoint"] = lambda options, cfg: seen.append((options, cfg))
    monkeypatch.setitem(sys.modules, "lore.studies.checkpoint_evaluation", module)
    assert eval_cli.main(["run=r"]) == cli.BAD_INPUT
    assert "not a run folder" in one_line(capsys)
    (elsewhere / "r").mkdir()
    (elsewhere / "r" / "config.yaml").write_text("seed: 3")
    assert eval_cli.main(["run=r", "policy=greedy", "episodes=7"]) == cli.DONE
    options, cfg = seen[0]
    assert (options.policy, options.episodes, cfg.seed) == ("greedy", 7, 3)

    def broken(options: object, cfg: object) -> None:
        raise BadInput("checkpoint", "none")

    module.__dict__["evaluate_checkpoint"] = broken
    capsys.readouterr()
    assert eval_cli.main(["run=r"]) == cli.BAD_INPUT
    assert one_line(capsys) == "lore-eval: checkpoint: none"

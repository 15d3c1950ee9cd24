"""A run that was stopped, by Ctrl-C or kill -9, and goes on as if it had not been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import runs

from lore.base.errors import BadInput
from lore.cli import guard
from lore.cli import train as cli
from lore.cli.guard import BAD_INPUT, DONE
from lore.training import evaluation

KILLED = -signal.SIGKILL
MOST = {"write": 8, "row": 8, "rename": 4, "prune": 3}  # points that a run passes in two saves, or more


@pytest.fixture
def whole(finished_run: Callable[..., Path]) -> Path:
    """An uninterrupted run."""
    return finished_run()


VARIANTS = {
    "float32": ["dtype=float32"],
    "three environments": ["run.envs=3"],
    "random": ["agent=random"],
    "shaping": ["env.id=MiniGrid-DoorKey-5x5-v0", "env.shaping=0.5"],
    "time": ["env.timeout=terminal", "env.clock=true", "run.envs=2"],
    "raw147": ["obs=raw147"],
    "rgb64": ["obs=rgb64", "run.steps=70", "run.eval_episodes=2", "env.max_steps=8"],
    "advised": ["agent=prior", "llm=scripted", "llm.cache=null", "env=doorkey5", "env.max_steps=30"],
    "advised side by side": ["agent=prior", "llm=oracle", "llm.cache=null", "run.envs=3"],
    "projected": ["gate=fixed", "gate.beta=2", "gate.kl.mode=project", "agent.replay_value=weight"],
    "followed": ["gate=follow", "gate.follow_steps=60", "agent.replay_value=drop"],
    "distilled, in imagination too": ["prior_net.enabled=true", "gate.mix_in_imagination=true", "run.envs=2"],
    "noise": ["explore.epsilon_start=0.5", "explore.temperature_start=2", "explore.valid_noise=true"],
    "a trial": ["+ablation=G", "gate.veto=true", "run.envs=2", "trial.horizon=1", "trial.cap=0.5"],
    "trusted advice": ["+ablation=G_trusting", "run.envs=2"],
    "kickstart, where the model agrees": [
        "teach=kickstart",
        "teach.filtered=true",
        "teach.anneal_steps=1000",
        "prior_net.enabled=true",
        "trial=coin",
    ],
    "jumpstart": ["+ablation=jumpstart", "run.envs=2"],
    "hint": ["+ablation=hint", "run.envs=2"],
    "clone": ["+ablation=clone", "replay.success_bias=0.5"],
    "ensembles": ["agent.critic_ensemble=2", "agent.disagreement_ensemble=2"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_equals_the_uninterrupted_one(
    variant: str, finished_run: Callable[..., Path], tmp_path: Path
) -> None:
    """Stopped twice, between checkpoints: after 20 ticks, and 13 later."""
    options = VARIANTS[variant]
    runs.run(tmp_path, *options, stop_at=20)
    assert runs.summary(tmp_path)["status"] == "interrupted"
    runs.run(tmp_path, *options, stop_at=13)
    runs.run(tmp_path, *options)
    runs.assert_same_run(finished_run(*options), tmp_path)


def test_a_run_stopped_after_every_few_steps_equals_the_uninterrupted_one(
    whole: Path, tmp_path: Path
) -> None:
    """The stops fall on first, last and middle rows of episodes, on saves and on evaluations."""
    for ticks in (1, 17, 1, 1, 12, 9, 22, 2, 31, 1):
        runs.run(tmp_path, stop_at=ticks)
    runs.run(tmp_path)
    runs.assert_same_run(whole, tmp_path)


def test_ctrl_c_saves_says_how_to_go_on_and_the_rest_is_exact(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some run"
    child = runs.start(folder, "logger.terminal=plain")
    wait_for(child, folder, size=2000)
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=300)
    assert child.returncode == guard.INTERRUPTED, output
    assert "lore-train resume=" in output.splitlines()[-1]
    assert str(folder) in output.splitlines()[-1]
    summary = runs.summary(folder)
    assert summary["status"] == "interrupted"
    assert 0 < summary["env_steps"] < 120
    assert int(runs.checkpoints(folder)[-1].name[5:]) == summary["env_steps"]
    assert cli.main([f"resume={folder}"]) == cli.DONE
    runs.assert_same_run(whole, folder)


def test_sigterm_saves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.signal, "SIGINT", signal.SIGTERM)
    runs.run(tmp_path, stop_at=20)
    assert runs.summary(tmp_path)["status"] == "interrupted"
    assert runs.state(tmp_path)["envs"]["transitions"] == runs.summary(tmp_path)["env_steps"] > 15


def test_a_second_ctrl_c_lets_the_save_finish_and_the_run_goes_on_from_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first comes after tick 50, the second in the middle of the save that it leads to."""
    from lore.training import checkpoint

    real = checkpoint._write

    def write(path: Path, value: object) -> None:
        real(path, value)
        if len(runs.checkpoints(tmp_path)) == 2 and path.name == "replay.pt":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "_write", write)
        runs.run(tmp_path, stop_at=50)
    before, last = (int(path.name[5:]) for path in runs.checkpoints(tmp_path))
    assert before == 30 < last < 60
    assert not list((tmp_path / "checkpoints").glob(".*"))
    runs.run(tmp_path)
    runs.assert_same_run(whole, tmp_path)


def test_a_finished_run_stays_as_it_is(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "again")
    runs.run(tmp_path / "again")
    runs.assert_same_run(whole, tmp_path / "again")
    before = (whole / "metrics.jsonl").read_text().splitlines()
    assert len((tmp_path / "again" / "metrics.jsonl").read_text().splitlines()) == len(before)


def test_a_finished_run_that_is_made_longer_equals_a_long_run(whole: Path, tmp_path: Path) -> None:
    """Its last evaluation falls on run.eval_every; 50 steps would leave one more than the long run has."""
    runs.run(tmp_path, "run.steps=80")
    assert runs.summary(tmp_path)["status"] == "finished"
    runs.run(tmp_path)
    runs.assert_same_run(whole, tmp_path)


def test_a_rhythm_of_evaluation_that_was_left_open_is_kept(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.eval_every=null, for which the rule gives what the other run was told, and two stops."""
    monkeypatch.setattr(evaluation, "USUAL_EVERY", 40)
    runs.run(tmp_path, "run.eval_every=null", stop_at=47)
    runs.run(tmp_path, "run.eval_every=null", stop_at=41)
    runs.run(tmp_path, "run.eval_every=null")
    assert [step for step, _ in runs.summary(tmp_path)["eval_curve"]] == [40, 80, 120]
    runs.assert_same_run(whole, tmp_path)


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "checkpoints" / ".partial-000000000").mkdir(parents=True)
    runs.run(tmp_path)
    runs.assert_same_run(whole, tmp_path)


def test_rows_without_a_checkpoint_are_no_new_run(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    child = runs.start(folder, die="rename:4")
    child.communicate(timeout=300)
    before = {path: path.read_bytes() for path in folder.glob("[!.]*.*")}
    assert before[folder / "metrics.jsonl"]
    (folder / "checkpoints").rename(tmp_path / "elsewhere")
    assert cli.main([f"resume={folder}"]) == BAD_INPUT
    with pytest.raises(BadInput, match=r"metrics\.jsonl"):
        runs.run(folder)
    (error,) = capfd.readouterr().err.splitlines()
    assert "metrics.jsonl" in error and "checkpoints/ back" in error
    assert {path: path.read_bytes() for path in folder.glob("[!.]*.*")} == before
    (tmp_path / "elsewhere").rename(folder / "checkpoints")
    assert cli.main([f"resume={folder}"]) == DONE
    runs.assert_same_run(whole, folder)


def test_a_damaged_latest_checkpoint_costs_one_line_and_no_more_than_itself(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    child = runs.start(folder, die="rename:6")  # each save renames a piece and the checkpoint
    child.communicate(timeout=300)
    latest = runs.checkpoints(folder)[-1]
    assert latest.name == "step-000000060"
    os.truncate(latest / "state.pt", 1000)
    assert cli.main([f"resume={folder}"]) == DONE
    said = [line for line in "".join(capfd.readouterr()).splitlines() if "state.pt" in line]
    assert len(said) == 1
    assert "differs from its checksum; going on from step-000000030" in said[0]
    assert (folder / "checkpoints" / "damaged-step-000000060").is_dir()
    runs.assert_same_run(whole, folder)


def wait_for(child: subprocess.Popen[str], folder: Path, size: int) -> None:
    """Until metrics.jsonl has `size` bytes or the child is gone."""
    path = folder / "metrics.jsonl"
    until = time.monotonic() + 300
    while (
        child.poll() is None
        and time.monotonic() < until
        and not (path.exists() and path.stat().st_size >= size)
    ):
        time.sleep(0.002)


def killed(folder: Path, kind: str, draw: random.Random, whole_size: int, *options: str) -> int:
    """Start or resume the run, kill -9 it at a moment of that kind, and return its exit status.

    start: soon after it started. size: when metrics.jsonl has a size. The others: see tests/runs.py.
    """
    resume = (folder / "config.yaml").exists()
    die = f"{kind}:{draw.randint(1, MOST[kind])}" if kind in MOST else ""
    child = runs.start(folder, *options, die=die, resume=resume)
    if kind == "size":
        path = folder / "metrics.jsonl"
        left = whole_size - (path.stat().st_size if path.exists() else 0)
        wait_for(child, folder, whole_size - left + int(draw.uniform(0.02, 0.3) * left))
        child.kill()
    elif kind == "start":
        time.sleep(draw.uniform(0.2, 4))
        child.kill()
    output, _ = child.communicate(timeout=300)
    assert child.returncode == KILLED, output
    return child.returncode


def ends_with_a_row(path: Path) -> bool:
    return path.read_bytes()[-1:] in (b"\n", b"")


def kill_and_resume(whole: Path, folder: Path, kinds: list[str], *options: str) -> None:
    """One run, killed once for each of `kinds` and resumed each time, ends as the uninterrupted one."""
    draw = random.Random(7)
    size = (whole / "metrics.jsonl").stat().st_size
    log = []
    for kind in kinds:
        status = killed(folder, kind, draw, size, *options)
        saved = [int(path.name[5:]) for path in runs.checkpoints(folder)]
        torn = [path.name for path in folder.glob("*.jsonl") if not ends_with_a_row(path)]
        partial = [path.name for path in (folder / "checkpoints").glob(".partial-*")]
        log.append(f"{kind}: exit {status}, saved {saved}, torn {torn}, half-saved {partial}")
        assert status == KILLED, log
    print("\n" + "\n".join(log))
    child = runs.start(folder, resume=True)
    output, _ = child.communicate(timeout=300)
    assert child.returncode == cli.DONE, output
    runs.assert_same_run(whole, folder)


def test_kill_9_leaves_no_gap_and_no_duplicate(whole: Path, tmp_path: Path) -> None:
    """While training, in half a checkpoint, in half a row, and before a checkpoint has its name."""
    kill_and_resume(whole, tmp_path / "run", ["size", "write", "row", "rename"])


def test_kill_9_with_gate_distillation_controller_journal_and_budget_in_play(tmp_path: Path) -> None:
    """Letter F's parts, with so many asks that the kills fall among them, and a budget that runs out."""
    options = ["env=doorkey5", "env.actions=all", "env.max_steps=30", "llm=oracle", "llm.cooldown_steps=2"]
    options += ["llm.budget_total=20", "prior_net.enabled=true", "gate.mix_in_imagination=true"]
    options += ["gate.warmup_steps=50"]
    options += ["gate.norm_updates=5", "gate.kl.kl_lr=0.5", "gate.kl.delta_target=0.01"]
    whole = runs.run(tmp_path / "whole", *options)
    last = runs.training_rows(whole)[-1]
    assert last["llm/calls_used"] == 20 and last["llm/budget_remaining"] == 0
    assert any(row.get("uncertainty_gate/lambda_kl", 0) > 0 for row in runs.training_rows(whole))
    kill_and_resume(whole, tmp_path / "run", ["size", "write", "row"], *options)


def test_kill_9_in_a_trial_leaves_its_evidence_as_it_was(tmp_path: Path) -> None:
    options = ["+ablation=G", "run.envs=2", "trial.horizon=1", "trial.cap=0.5"]
    whole = runs.run(tmp_path / "whole", *options)
    trial = runs.state(whole)["trial"]
    assert trial["case"]["on"]["count"] and trial["case"]["off"]["count"] and trial["handovers"]
    kill_and_resume(whole, tmp_path / "run", ["row", "write"], *options)


@pytest.mark.slow
def test_kill_9_at_ten_moments_leaves_no_gap_and_no_duplicate(tmp_path: Path) -> None:
    options = ["run.steps=1000", "run.save_every=20"]
    whole = runs.run(tmp_path / "whole", *options)
    kinds = ["start", "size", "write", "row", "start", "size", "prune", "rename", "write", "size"]
    kill_and_resume(whole, tmp_path / "run", kinds, *options)


@pytest.mark.parametrize("steps", [1, 79])
def test_a_length_that_the_run_has_passed_is_refused(
    steps: int, finished_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run("run.steps=80", "agent=random")
    assert cli.main([f"resume={run}", f"run.steps={steps}"]) == 2
    captured = capsys.readouterr()
    assert f"run.steps: is {steps}, but 80 are done; give more" in captured.err and captured.out == ""

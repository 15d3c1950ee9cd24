import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lore.base.types import Episode
from lore.config.options import Config, EnvOptions, HealthOptions, LoggerOptions, RunOptions
from lore.metrics.logger import RunLogger

pytestmark = pytest.mark.usefixtures("no_wandb")
CFG = asdict(Config(env=EnvOptions(id="MiniGrid-Empty-5x5-v0"), run=RunOptions(steps=1000)))
OPTIONS = LoggerOptions(wandb="disabled", terminal="off")
WELL = {"health/alerts": 0}
SICK = {"policy/entropy": 0.25, "success/windowed": 0.0, "loss/actor": float("nan")}


def open_logger(path: Path, **health: Any) -> RunLogger:
    return RunLogger(path, OPTIONS, {**CFG, "health": asdict(HealthOptions(**health))})


def rows(path: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def episode(step: int) -> Episode:
    return Episode(step, 1, 2, 3, "cafe", 0.9, 12, True, 1.1, "none")


def test_rows_in_order_and_readable_at_once(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.write_metrics(
        100, {"b": 1.0, "a": torch.tensor(2.0), "h": np.array([1.0, np.nan]), "bad": float("inf")}
    )
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"env_step": 100, "b": 1.0, "a": 2.0, "h": [1.0, null], "bad": null, "health/alerts": 0}\n'
    )
    logger.write_evaluation(200, 0.5, 0.75, {"eval/length": 3.0})
    logger.write_metrics(200, {"b": 2.0})
    logger.write_evaluation(300, 0.5)
    assert rows(tmp_path)[1:] == [
        {"env_step": 200, "eval/success": 0.5, "eval/success_greedy": 0.75, "eval/length": 3.0, **WELL},
        {"env_step": 200, "b": 2.0, **WELL},
        {"env_step": 300, "eval/success": 0.5, **WELL},
    ]


def test_episode_row(tmp_path: Path) -> None:
    open_logger(tmp_path).write_episode(episode(40))
    assert (tmp_path / "episodes.jsonl").read_text() == (
        '{"env_step": 40, "env": 1, "episode": 2, "seed": 3, "layout": "cafe", "return": 0.9, "length": 12, '
        '"success": true, "shaped_return": 1.1, "adviser": "none"}\n'
    )


def test_env_step_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="env_step"):
        open_logger(tmp_path).write_metrics(1, {"env_step": 2})


def test_a_row_is_one_write(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    file = logger._files["metrics.jsonl"]
    writes: list[bytes] = []

    real = file._file

    class Spy:
        def write(self, line: bytes) -> int | None:
            writes.append(line)
            return real.write(line if len(writes) == 1 else line[:3])

        def fileno(self) -> int:
            return real.fileno()

    file._file = Spy()  # type: ignore[assignment]
    logger.write_metrics(1, {"x": [1.0] * 10_000})
    assert len(writes) == 1 and writes[0].endswith(b"\n")
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        logger.write_metrics(2, {"x": 1.0})
    assert [row["env_step"] for row in rows(tmp_path)] == [1]  # and no torn row


def test_rows_reach_the_disk_with_the_state_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    logger = open_logger(tmp_path)
    monkeypatch.setattr(os, "fsync", synced.append)
    logger.write_metrics(1, {})
    assert not synced
    logger.state_dict()
    assert len(synced) == 3


def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.write_metrics(100, {"x": 1.0})
    logger.write_episode(episode(90))
    file = io.BytesIO()
    torch.save(logger.state_dict(), file)
    file.seek(0)
    logger.write_metrics(200, {"x": 2.0})
    logger.write_episode(episode(190))
    for name in ("metrics.jsonl", "episodes.jsonl"):
        with (tmp_path / name).open("ab") as torn:
            torn.write(b'{"env_step": 300, "x"')

    resumed = open_logger(tmp_path)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [row["env_step"] for row in rows(tmp_path)] == [100]
    resumed.write_metrics(200, {"x": 2.0})
    resumed.write_episode(episode(190))
    assert [row["env_step"] for row in rows(tmp_path)] == [100, 200]
    assert [row["env_step"] for row in rows(tmp_path, "episodes.jsonl")] == [90, 190]
    assert resumed.state_dict()["rows"] == 2


@pytest.mark.parametrize("name", ["metrics.jsonl", "episodes.jsonl"])
def test_a_file_shorter_than_its_offset_is_an_error_that_changes_nothing(tmp_path: Path, name: str) -> None:
    logger = open_logger(tmp_path)
    logger.write_metrics(100, {})
    logger.write_episode(episode(100))
    state = logger.state_dict()
    logger.write_metrics(200, {})
    size = (tmp_path / name).stat().st_size
    os.truncate(tmp_path / name, 5)
    other = {"metrics.jsonl": "episodes.jsonl", "episodes.jsonl": "metrics.jsonl"}[name]
    before = (tmp_path / other).read_bytes()
    with pytest.raises(ValueError, match=name):
        open_logger(tmp_path).load_state_dict(state)
    assert (tmp_path / other).read_bytes() == before and size > 5


def test_an_offset_inside_a_row_is_an_error(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.write_metrics(100, {})
    state = logger.state_dict()
    state["offsets"]["metrics.jsonl"] -= 3
    with pytest.raises(ValueError, match="not the end of a row"):
        open_logger(tmp_path).load_state_dict(state)


def test_a_folder_with_rows_is_not_added_to_by_accident(tmp_path: Path) -> None:
    open_logger(tmp_path).write_metrics(100, {})
    second = open_logger(tmp_path)
    with pytest.raises(ValueError, match="another run"):
        second.write_metrics(100, {})
    assert len(rows(tmp_path)) == 1


def test_alerts_go_to_their_file_to_the_terminal_and_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = open_logger(tmp_path)
    logger.write_metrics(100, {"policy/entropy": 1.9, "loss/actor": 0.0})
    logger.write_metrics(200, SICK)
    logger.write_evaluation(200, 0.0)
    assert [row["health/alerts"] for row in rows(tmp_path)] == [0, 2, 2]
    low, lost = rows(tmp_path, "alerts.jsonl")
    assert list(low) == ["env_step", "level", "name", "value", "limit", "text", "cause", "knob"]
    assert (low["env_step"], low["level"], low["value"], low["limit"]) == (200, "WARNING", 0.25, 0.5)
    assert (lost["name"], lost["level"], lost["value"]) == ("nonfinite_loss", "ERROR", None)
    assert capsys.readouterr().err == (
        "[WARNING] Low entropy detected: 0.25 < 0.5\n[ERROR] Non-finite loss: loss/actor\n"
    )
    assert logger.alerts == {"low_entropy": 1, "nonfinite_loss": 1}


def test_verbose_alerts_say_cause_and_knob(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_logger(tmp_path, verbose=True).write_metrics(100, {"opt/grad_norm": 5e3})
    assert capsys.readouterr().err.splitlines() == [
        "[WARNING] Gradient explosion: 5000 > 1000",
        "  likely cause: a loss on a scale of its own, or steps that are too large",
        "  knob: agent.lr or agent.agc down; agent.warmup up",
    ]


def test_without_the_monitor_nothing_is_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = open_logger(tmp_path, enabled=False)
    logger.write_metrics(100, SICK)
    open_logger(tmp_path, enabled=False).load_state_dict(logger.state_dict())
    assert "health/alerts" not in rows(tmp_path)[0] and logger.alerts == {}
    assert (tmp_path / "alerts.jsonl").read_text() == capsys.readouterr().err == ""


def test_a_resumed_run_gives_the_same_alerts(tmp_path: Path) -> None:
    def run(logger: RunLogger, steps: range) -> None:
        for step in steps:
            logger.write_metrics(step, SICK if step % 4 else {"policy/entropy": 1.0, "loss/actor": 1.0})

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    run(open_logger(whole), range(12))
    logger = open_logger(cut)
    run(logger, range(6))
    file = io.BytesIO()
    torch.save(logger.state_dict(), file)
    file.seek(0)
    run(logger, range(6, 10))
    resumed = open_logger(cut)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(resumed, range(6, 12))
    for name in ("metrics.jsonl", "alerts.jsonl"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert len(rows(cut, "alerts.jsonl")) == 6 and resumed.alerts == {"low_entropy": 3, "nonfinite_loss": 3}


def test_summary(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.write_summary({"wall_s": float("nan"), "eval_curve": [[1, 0.5]]})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"wall_s": None, "eval_curve": [[1, 0.5]]}


@pytest.mark.parametrize(("error", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_leaving_by_an_exception_closes(
    error: type[BaseException], status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(error),
        RunLogger(tmp_path, LoggerOptions(wandb="disabled", terminal="plain"), CFG) as logger,
    ):
        logger.write_metrics(10, {})
        raise error
    assert f"{status.capitalize()} at step 10 of 1000" in capsys.readouterr().err
    with pytest.raises(ValueError, match="closed"):
        logger.write_metrics(20, {})


def test_close_checks_its_word_and_may_come_twice(tmp_path: Path) -> None:
    with open_logger(tmp_path) as logger, pytest.raises(ValueError, match="done"):
        logger.close("done")
    logger.close("finished")

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lore.metrics.summary import auc, make_summary, plain, steps_to_90, write_json

KEYS = {
    "env_id", "arm", "seed", "env_steps", "gradient_steps", "wall_s", "status", "eval_success",
    "eval_success_greedy", "eval_success_advised", "eval_curve", "steps_to_90", "auc", "llm_calls_used",
    "llm_cost_usd", "cache_hit_rate", "influence", "alerts", "adviser",
    "timeout", "clock", "teach", "trial",
}  # fmt: skip


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([], None),
        ([[500, 1.0]], None),
        ([[500, 0.9], [1000, 0.9]], 500),
        ([[500, 0.95], [1000, 0.89], [1500, 0.9], [2000, 1.0], [2500, 1.0]], 1500),
        ([[500, 0.0], [1000, 0.89], [1500, 1.0]], None),
    ],
)
def test_steps_to_90_needs_two_in_a_row(curve: list[list[float]], expected: int | None) -> None:
    assert steps_to_90(curve) == expected


def test_auc_is_the_mean() -> None:
    assert auc([]) is None
    assert auc([[500, 0.0], [1000, 0.5], [1500, 1.0]]) == 0.5


def summary(status: str = "running", curve: list[list[float]] | None = None, **more: Any) -> dict:
    return make_summary(
        env_id="E", arm="none", seed=3, timeout="truncate", clock=False, teach="none",
        env_steps=1000, gradient_steps=50, wall_s=1.5, status=status,
        eval_curve=[[500, 0.9], [1000, 1.0]] if curve is None else curve, eval_success_greedy=0.97,
        **more,
    )  # fmt: skip


def test_the_docs_have_the_keys() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = page.split("## summary.json")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)} == KEYS


def test_summary_has_the_keys_others_rely_on() -> None:
    values = summary()
    assert set(values) == KEYS
    assert values["eval_success"] == 1.0 and values["eval_success_greedy"] == 0.97
    assert values["eval_curve"] == [[500, 0.9], [1000, 1.0]]
    assert values["steps_to_90"] == 500 and values["auc"] == 0.95
    assert values["eval_success_advised"] is None and values["cache_hit_rate"] is None
    assert values["llm_calls_used"] == 0 and values["alerts"] == {} and values["adviser"] is None
    assert (values["timeout"], values["clock"], values["teach"]) == ("truncate", False, "none")
    assert values["trial"] is None
    none = {"mean_kl": 0.0, "prior_share": 0.0, "argmax_flip_share": 0.0, "clear_change_share": None}
    assert values["influence"] == none


def test_summary_tells_the_influence_and_the_alerts() -> None:
    advice = {
        "llm/influence_kl": 0.02, "llm/prior_share": 0.5, "llm/argmax_flip_share": 0.1, "llm/calls_used": 7.0,
        "llm/cache_hit_rate": math.nan,
    }  # fmt: skip
    values = summary(advice=advice, alerts={"low_entropy": 2})
    told = {"mean_kl": 0.02, "prior_share": 0.5, "argmax_flip_share": 0.1}
    assert values["influence"] == told | {"clear_change_share": None}
    assert values["alerts"] == {"low_entropy": 2} and values["llm_calls_used"] == 7
    assert values["cache_hit_rate"] is None
    assert summary(advice={"llm/influence_kl": math.nan})["influence"]["mean_kl"] == 0.0


def test_summary_tells_of_the_trial() -> None:
    trial = {"phase": "benefit shown", "trust": 1.0, "verdicts": [[812, "benefit shown"]]}
    assert summary(trial=trial)["trial"] == trial


def test_summary_before_the_first_evaluation() -> None:
    values = summary(curve=[])
    assert values["eval_success"] is None and values["auc"] is None and values["steps_to_90"] is None


def test_summary_refuses_an_unknown_status() -> None:
    with pytest.raises(ValueError, match="done"):
        summary(status="done")


def test_plain() -> None:
    value = {"a": float("nan"), "b": torch.tensor(2), "c": np.array([1.0, np.inf]), "d": (True, None), "e": 3}
    assert plain(value) == {"a": None, "b": 2, "c": [1.0, None], "d": [True, None], "e": 3}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"n": 1})

    def fail(*_: object) -> None:
        assert json.loads(path.read_text()) == {"n": 1}
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"n": 2})
    assert json.loads(path.read_text()) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_the_new_file_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    write_json(tmp_path / "summary.json", {"x": float("inf")})
    assert calls == ["fsync", "replace"]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"x": None}

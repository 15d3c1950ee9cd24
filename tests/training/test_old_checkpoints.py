"""A checkpoint as older versions wrote it: the run goes on as if nothing had been renamed or added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import runs

from lore.training.old_checkpoints import upgrade


def as_version_0_1_0(state: dict[str, Any]) -> dict[str, Any]:
    """The same state with the keys of version 0.1.0, written out one by one."""
    progress, carry, envs, rng = state["progress"], state["collector"], dict(state["envs"]), state["rng"]
    envs["arms"] = envs.pop("advisers")
    return {
        "agent": state["agent"],
        "act_rng": rng["act"],
        "replay_rng": rng.get("replay"),
        "carry": [carry["deter"], carry["stoch"], carry["prev_action"]],
        "advice_carry": [carry["latched"], carry["value"]],
        "gate": state.get("gate"),
        "gate_dropout": rng["gate_dropout"],
        "guidance": state.get("advice_meter"),
        "report_due": progress["report_due"],
        "skills": state["skills"],
        "envs": envs,
        "metrics": state["metrics"],
        "logger": state["logger"],
        "updates": progress["updates"],
        "curve": progress["curve"],
        "greedy": progress["greedy"],
        "advised": progress["advised"],
        "adviser": state.get("adviser"),
        "window": progress["window"],
        "episodes": [progress["episodes"], progress["successes"]],
        "layouts": progress["layouts"],
        "wall_s": progress["wall_s"],
    }


@pytest.mark.parametrize("options", [[], ["gate=none"], ["agent=random"]], ids=["advised", "alone", "random"])
def test_a_run_of_version_0_1_0_goes_on_as_it_would_have(options: list[str], tmp_path: Path) -> None:
    whole = runs.run(tmp_path / "whole", *options)
    old = runs.run(tmp_path / "old", *options, stop_at=60)
    for folder in runs.checkpoints(old):
        state = torch.load(folder / "state.pt", weights_only=True)
        torch.save(as_version_0_1_0(state), folder / "state.pt")
        (folder / "manifest.json").unlink(missing_ok=True)  # that version had none
    runs.assert_same_run(whole, runs.run(old, *options))


def test_an_advised_run_from_before_the_trials_goes_on_as_it_would_have(tmp_path: Path) -> None:
    whole = runs.run(tmp_path / "whole", "+ablation=F")
    old = runs.run(tmp_path / "old", "+ablation=F", stop_at=60)
    for folder in runs.checkpoints(old):
        state = torch.load(folder / "state.pt", weights_only=True)
        del state["trial"], state["sealed"], state["advice_meter"]["taught"], state["advice_meter"]["vetoes"]
        del state["adviser"]["followed"]
        torch.save(state, folder / "state.pt")
        (folder / "manifest.json").unlink()
    runs.run(old, "+ablation=F")
    left_out = ("llm/corrupted_share",)
    assert runs.rows(old, leave_out=left_out) == runs.rows(whole, leave_out=left_out)
    for part in ("agent", "trial", "envs", "rng"):
        assert runs.difference(runs.state(old)[part], runs.state(whole)[part]) == ""


def test_todays_state_is_left_as_it_is(tmp_path: Path) -> None:
    folder = runs.checkpoints(runs.run(tmp_path, "run.steps=40", "run.eval_every=0"))[-1]
    state = torch.load(folder / "state.pt", weights_only=True)
    assert upgrade(state) is state
    old = as_version_0_1_0(state)
    keys = set(old)
    assert upgrade(old).keys() == state.keys() - {"sealed"} and set(old) == keys

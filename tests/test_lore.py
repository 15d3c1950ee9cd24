"""LoRe as a whole: what changes nothing changes nothing, what acts is seen, each part only where it may."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import runs

from lore.training.checkpoint import load_state

TOO = (
    "opt/",
    "loss/critic_ensemble",
    "loss/disagreement_ensemble",
    "loss/kl",
    "uncertainty_gate/",
    "llm/",
    "health/",
)
"""What an adviser adds to the rows of metrics; opt/ holds the norms of its networks too."""
SAME = {
    "no adviser": ["llm=none"],
    "a dead provider": [*runs.DEAD, "llm.budget_usd=1"],
    "a uniform prior": ["llm=uniform", "llm.cooldown_steps=0", "llm.budget_total=null"],
    "fixed beta 0": ["gate=fixed", "gate.beta=0"],
    "fixed beta 0 with a penalty": ["gate=fixed", "gate.beta=0", "gate.kl.mode=penalty"],
    "fixed beta with a dead provider": ["gate=fixed", "gate.beta=3", *runs.DEAD, "llm.budget_usd=1"],
}


def trace(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k != "eval/success_advised"}
        for row in runs.rows(folder, leave_out=TOO)
    ]


def episodes(folder: Path) -> list[dict]:
    return runs.rows(folder, "episodes.jsonl", leave_out=("adviser",))


def weights(folder: Path) -> torch.Tensor:
    return load_state(folder)["agent"]["optimizer"]["master"]


@pytest.fixture
def alone(finished_run: Callable[..., Path]) -> Path:
    """DreamerV3 without a gate."""
    return finished_run("gate=none")


@pytest.mark.parametrize("name", SAME)
def test_advice_that_cannot_act_leaves_one_trace(
    name: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key-of-nobody")
    folder = runs.run(tmp_path, *SAME[name])
    assert trace(folder) == trace(alone)
    assert episodes(folder) == episodes(alone)
    own = weights(alone)
    assert torch.equal(weights(folder)[: len(own)], own)
    for column in ("action", "deter", "stoch", "reward"):
        assert torch.equal(runs.replay(folder)[column], runs.replay(alone)[column])


def test_advice_that_acts_leaves_another_trace_and_says_so(alone: Path, tmp_path: Path) -> None:
    folder = runs.run(tmp_path, "+ablation=B", "gate.beta=2")
    assert episodes(folder) != episodes(alone)
    influence = runs.summary(folder)["influence"]
    assert influence["mean_kl"] > 0.1
    assert influence["prior_share"] > 0.5
    assert influence["argmax_flip_share"] > 0.1
    rows = runs.replay(folder)
    advised = rows["beta"] > 0
    assert advised.any()
    assert (rows["source"][advised] > 0).all()
    assert (rows["temperature"][advised] > 0).all()


def test_gate_none_asks_nobody(alone: Path) -> None:
    assert not (alone / "llm.jsonl").exists()
    assert not any("llm/" in name or "uncertainty_gate/" in name for row in runs.rows(alone) for name in row)


def test_a_followed_adviser_is_left_after_follow_steps(tmp_path: Path) -> None:
    folder = runs.run(tmp_path, "gate=follow", "gate.follow_steps=60", "replay.capacity=400")
    rows = runs.replay(folder)
    source, beta = rows["source"].flatten(), rows["beta"].flatten()
    acted = beta > 0
    assert acted.any() and not acted[-50:].any()
    assert (source[acted] > 0).all()
    advisers = [json.loads(line)["adviser"] for line in (folder / "episodes.jsonl").read_text().splitlines()]
    assert advisers[0] == "scripted" and advisers[-1] == "none"
    assert advisers == sorted(advisers, reverse=True)  # first the adviser's, then the agent's own


def test_the_distilled_adviser_learns_from_the_provider_and_saves_asks(tmp_path: Path) -> None:
    options = ["llm=oracle", "llm.triggers=false", "llm.latch=false", "llm.cooldown_steps=null"]
    options += [
        "llm.success_cooldown_steps=null",
        "llm.budget_total=null",
        "run.steps=400",
        "replay.capacity=400",
        "run.eval_every=0",
    ]
    options += ["env.max_steps=30", "agent.train_ratio=16", "gate=fixed", "gate.beta=1"]
    without = runs.summary(runs.run(tmp_path / "without", *options))
    with_net = runs.run(tmp_path / "with", *options, "prior_net.enabled=true", "prior_net.max_entropy=0.8")
    last = [row for row in runs.rows(with_net) if "llm/source/prior_net" in row][-1]
    assert last["llm/source/prior_net"] > 0
    assert runs.summary(with_net)["llm_calls_used"] < without["llm_calls_used"]

"""Runs that follow an adviser alone: what they reach, what they cost, and what a dead adviser changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import runs

from lore.base.errors import BadInput
from lore.base.types import Belief, Prior
from lore.config.compose import compose
from lore.config.options import GateOptions
from lore.gate import Gate, Opening, build_gate
from lore.training.acting import Decision
from lore.training.advice_meter import CLEAR, AdviceMeter, clear_changes

DOORKEY = ["agent=prior", "env=doorkey5", "env.max_steps=100", "run.eval_episodes=10", "run.eval_every=500"]
ALONE = [*DOORKEY, "run.steps=500", "run.save_every=500", "llm.cache=null"]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def episodes(folder: Path) -> list[dict]:
    return runs.rows(folder, "episodes.jsonl", leave_out=("adviser",))


def test_the_scripted_adviser_solves_doorkey_for_a_handful_of_asks(tmp_path: Path) -> None:
    folder = runs.run(tmp_path, *ALONE, "llm=scripted")
    summary, asks = runs.summary(folder), rows(folder / "llm.jsonl")
    assert summary["arm"] == "scripted" and summary["eval_success_advised"] == 1.0
    assert summary["eval_success"] < 0.9  # with the advice off it is random play
    assert 1 <= summary["llm_calls_used"] == len(asks) <= 12
    assert summary["influence"]["prior_share"] > 0.5
    assert {row["provider"] for row in asks} == {"scripted competence=1.0 failure=independent seed=0"}


def test_nothing_is_asked_about_a_state_that_ends_an_episode(tmp_path: Path) -> None:
    folder = runs.run(tmp_path, *ALONE, "llm=uniform", "llm.budget_total=null", "env.max_steps=7")
    ends = {row["env_step"] for row in rows(folder / "episodes.jsonl")}
    asked = [row["env_step"] for row in rows(folder / "llm.jsonl")]
    assert len(ends) > 50
    # the first state of the next episode has the same env_step as the last of this: one ask at most is its
    assert max(asked.count(step) for step in ends) <= 1


def test_a_second_run_takes_its_answers_from_the_cache_and_is_charged_alike(tmp_path: Path) -> None:
    cache = f"llm.cache={tmp_path / 'answers.sqlite'}"
    options = [o for o in ALONE if not o.startswith("llm.cache")]
    first = runs.summary(runs.run(tmp_path / "first", *options, cache, "llm=scripted"))
    second = runs.summary(runs.run(tmp_path / "second", *options, cache, "llm=scripted"))
    assert first["cache_hit_rate"] == 0.0 and second["cache_hit_rate"] == 1.0
    assert first["llm_calls_used"] == second["llm_calls_used"]
    assert episodes(tmp_path / "first") == episodes(tmp_path / "second")


def test_a_dead_adviser_changes_no_action(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key-of-nobody")
    dead = runs.run(tmp_path / "dead", *ALONE, *runs.DEAD, "llm.api_retries=0", "llm.breaker_failures=2")
    none = runs.run(tmp_path / "none", *ALONE, "llm=none")
    assert episodes(dead) == episodes(none)
    last = [row for row in rows(dead / "metrics.jsonl") if "llm/failure/connection_refused" in row][-1]
    assert last["llm/failure/connection_refused"] == last["llm/calls_used"] >= 2
    assert last["llm/outcome/breaker"] > 0 and last["llm/prior_share"] == 0


@pytest.mark.parametrize(
    "overrides, key, says",
    [
        (["agent=prior", "llm.provider=nobody"], "llm.provider", "unknown provider"),
        (["agent=prior", "llm=scripted", "llm.ledger=/x"], "llm.ledger_limit", "is needed"),
        (["agent=prior", "llm=scripted", "llm.competence=2"], "llm.competence", "between 0 and 1"),
        (["agent=prior", "llm=recorded"], "llm.dataset", "is missing"),
        (["agent=prior", "llm=recorded", "llm.dataset=/nowhere"], "llm.dataset", "cannot be used"),
        (["agent=prior", "llm=local", "llm.calibration=batch"], "llm.calibration", "asked before"),
        (["agent=prior", "llm=scripted", "llm.plateau_window=1"], "llm.plateau_window", "at least 2"),
    ],
)
def test_wrong_advisers_are_refused_by_key(overrides: list[str], key: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        compose(overrides)
        runs.run(tmp_path, *overrides)
    assert refused.value.key == key and says in str(refused.value)


@given(st.integers(2, 7), st.integers(0, 10**6), st.floats(1e-7, 5.0))
def test_a_change_among_ties_is_no_clear_change(actions: int, seed: int, scale: float) -> None:
    """Against a plain definition; and a push too small to matter never counts, whatever it flips."""
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(8, actions, generator=rng)
    mixed = logits + torch.randn(8, actions, generator=rng)
    for before, after, clear in zip(logits, mixed, clear_changes(logits, mixed).tolist(), strict=True):
        own, new = int(before.argmax()), int(after.argmax())
        p, q = before.softmax(0), after.softmax(0)
        assert clear == (own != new and max(float(p[own] - p[new]), float(q[new] - q[own])) >= CLEAR)
    uniform = 1e-6 * torch.randn(8, actions, generator=rng)
    nudged = 0.01 * torch.randn(8, actions, generator=rng)
    assert not clear_changes(uniform, nudged).any()


def test_what_counts_as_a_change() -> None:
    uniform, decided, other = (
        torch.zeros(1, 3),
        torch.tensor([[2.0, 0.0, 0.0]]),
        torch.tensor([[0.0, 2.0, 0.0]]),
    )
    assert clear_changes(decided, other).item() and clear_changes(uniform, other).item()
    assert not clear_changes(decided, decided).item() and not clear_changes(uniform, decided).item()


def test_the_summary_counts_clear_changes_apart_and_resume_goes_on_counting(tmp_path: Path) -> None:
    options = ["gate=fixed", "gate.beta=0.05", "llm=oracle", "llm.cooldown_steps=0", "env=doorkey5"]
    options += ["env.actions=all", "env.max_steps=30"]
    whole = runs.summary(runs.run(tmp_path / "whole", *options))["influence"]
    assert whole["clear_change_share"] < whole["argmax_flip_share"] and whole["argmax_flip_share"] > 0.1
    runs.run(tmp_path / "parts", *options, stop_at=30)
    assert runs.summary(runs.run(tmp_path / "parts", *options))["influence"] == whole


def test_a_checkpoint_of_an_older_version_leaves_the_share_unknown() -> None:
    meter = AdviceMeter(build_gate(GateOptions(), "cpu"))
    assert meter.totals()["llm/clear_change_share"] == 0.0
    state = meter.state_dict()
    del state["changes"]
    meter.load_state_dict(state)
    assert "llm/clear_change_share" not in meter.totals()


def test_saturation_is_absent_where_a_gate_has_no_largest_beta() -> None:
    """And the terms of a gate of one's own are metrics."""

    class Unbounded(Gate):
        pass

    class Bounded(Gate):
        beta_max = 2.0

    belief = Belief(torch.zeros(1, 3), torch.zeros(1, 1))
    prior = Prior(
        torch.zeros(1, 3),
        torch.ones(1, 3, dtype=torch.bool),
        torch.ones(1),
        torch.zeros(1, dtype=torch.uint8),
    )
    opening = Opening(torch.tensor([0.5]), torch.ones(1, dtype=torch.bool), {"mood": torch.tensor([7.0])})
    for made, saturation in ((Unbounded, None), (Bounded, 0.25)):
        meter = AdviceMeter(made(GateOptions()))
        meter.add(Decision(torch.zeros(1), belief.logits, belief, prior, opening), [False])
        row = meter.result()
        assert row.get("uncertainty_gate/beta_saturation") == saturation
        assert row["uncertainty_gate/avg_beta"] == 0.5 and row["uncertainty_gate/mood"] == 7.0

"""The training loop: one trace a seed, what may not touch it, its rhythm, and what it leaves behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import runs
from tests.counting import CountingEnv

from lore.base.types import TRIAL_PHASES, Batch, Episode, Latent
from lore.dreamer.agent import DreamerV3Agent
from lore.training import trainer
from lore.training.families import EnvFamily

SUMMARY_KEYS = """
    env_id arm seed env_steps gradient_steps wall_s status eval_success eval_success_greedy
    eval_success_advised eval_curve steps_to_90 auc llm_calls_used
    llm_cost_usd cache_hit_rate influence alerts adviser
    timeout clock teach trial
"""


@pytest.fixture
def whole(finished_run: Callable[..., Path]) -> Path:
    """A finished run."""
    return finished_run()


def agent(folder: Path) -> dict[str, Any]:
    return runs.state(folder)["agent"]


def test_two_runs_with_one_seed_give_one_trace(whole: Path, tmp_path: Path) -> None:
    runs.assert_same_run(whole, runs.run(tmp_path))


def test_another_seed_gives_another_trace(whole: Path, tmp_path: Path) -> None:
    other = runs.run(tmp_path, "seed=1")
    assert runs.rows(whole) != runs.rows(other)
    assert runs.rows(whole, "episodes.jsonl") != runs.rows(other, "episodes.jsonl")


def test_the_trace_is_one_of_learning(whole: Path) -> None:
    """Without it the comparisons of this file would be empty: weights move, rewards and time-outs occur."""
    rows = runs.training_rows(whole)
    assert [row["env_step"] for row in rows] == list(range(10, 121, 10))
    assert all(row["opt/update_norm"] > 0.1 for row in rows if row["gradient_steps"] > 10)
    assert {row["success"] for row in runs.rows(whole, "episodes.jsonl")} == {True, False}


@pytest.mark.parametrize("off", ["run.eval_every=0", "run.eval_greedy=false", "run.eval_episodes=2"])
def test_evaluation_leaves_the_training_trace_unchanged(
    off: str, whole: Path, finished_run: Callable[..., Path]
) -> None:
    other = finished_run(off)
    assert runs.rows(other) != runs.rows(whole)
    assert runs.training_rows(other) == runs.training_rows(whole)
    assert runs.rows(other, "episodes.jsonl") == runs.rows(whole, "episodes.jsonl")
    assert runs.difference(agent(other), agent(whole)) == ""


def test_evaluation_off_means_none(finished_run: Callable[..., Path]) -> None:
    folder = finished_run("run.eval_every=0")
    assert not any("eval/success" in row for row in runs.rows(folder))
    assert runs.summary(folder)["eval_success"] is None


def test_the_greedy_policy_leaves_the_sampled_one_its_numbers(
    whole: Path, finished_run: Callable[..., Path]
) -> None:
    other = finished_run("run.eval_greedy=false")
    assert all("eval/success_greedy" not in row for row in runs.rows(other))
    assert runs.rows(other) == runs.rows(whole, leave_out=("eval/success_greedy",))


@pytest.mark.parametrize("name", ["critic_ensemble", "disagreement_ensemble"])
def test_an_ensemble_leaves_the_rest_of_the_trace_unchanged(
    name: str, finished_run: Callable[..., Path], tmp_path: Path
) -> None:
    """opt/ is the norm over all weights, the ensemble's among them."""
    whole = finished_run("gate=none")
    other = runs.run(tmp_path, "gate=none", f"agent.{name}=3")
    assert runs.training_rows(other)[-1][f"loss/{name}"] > 0
    assert runs.rows(other, leave_out=(f"loss/{name}", "opt/")) == runs.rows(whole, leave_out=("opt/",))
    assert runs.rows(other, "episodes.jsonl") == runs.rows(whole, "episodes.jsonl")
    for part in ("master", "first", "second"):
        mine, theirs = agent(whole)["optimizer"][part], agent(other)["optimizer"][part]
        assert len(theirs) > len(mine)
        assert torch.equal(mine, theirs[: len(mine)]), part


@pytest.mark.parametrize(
    ("envs", "ratio", "B", "T", "prefill"), [(1, 4.0, 2, 8, 30), (3, 6.5, 3, 7, 31), (1, 0.25, 2, 8, 9)]
)
def test_gradient_steps_keep_to_the_train_ratio(
    envs: int, ratio: float, B: int, T: int, prefill: int, tmp_path: Path
) -> None:
    folder = runs.run(
        tmp_path,
        f"run.envs={envs}",
        f"agent.train_ratio={ratio}",
        f"agent.batch_size={B}",
        f"agent.seq_len={T}",
        f"run.prefill={prefill}",
        "run.log_every=1",
        "run.eval_every=0",
        "size.deter=8",
    )
    rows = runs.training_rows(folder)
    assert len(rows) > 120 / envs - 1
    for row in rows:
        assert row["gradient_steps"] == int(max(0, row["env_step"] - prefill) * ratio // (B * T)), row
    assert runs.summary(folder)["gradient_steps"] == rows[-1]["gradient_steps"] > 0


def test_rows_count_the_transitions_of_all_environments(tmp_path: Path) -> None:
    folder = runs.run(tmp_path, "run.envs=3", "agent=random")
    steps = [row["env_step"] for row in runs.training_rows(folder)]
    assert [step // 10 for step in steps] == list(range(1, 13))
    ends = runs.rows(folder, "episodes.jsonl")
    assert {row["env"] for row in ends} == {0, 1, 2}
    assert sum(row["length"] for row in ends) <= runs.summary(folder)["env_steps"] < 123


def test_a_random_agent_trains_nothing(finished_run: Callable[..., Path]) -> None:
    folder = finished_run("agent=random")
    summary = runs.summary(folder)
    assert (summary["status"], summary["gradient_steps"]) == ("finished", 0)
    assert len(summary["eval_curve"]) == 3
    assert not (runs.checkpoints(folder)[-1] / "replay.pt").exists()


@pytest.mark.parametrize("obs", ["raw147", "rgb64"])
def test_every_kind_of_observation_is_learned_from(obs: str, tmp_path: Path) -> None:
    few = ["run.steps=48", "run.eval_every=40", "run.eval_episodes=2", "env.max_steps=6"]
    folder = runs.run(tmp_path, f"obs={obs}", *few)
    last = [row for row in runs.training_rows(folder) if "loss/obs" in row][-1]
    assert last["gradient_steps"] == 2
    assert last["loss/obs"] > 0
    assert runs.summary(folder)["env_steps"] == 48


def test_shaping_is_paid_in_training_and_no_success(tmp_path: Path) -> None:
    options = ["env.id=MiniGrid-DoorKey-5x5-v0", "env.shaping=0.5", "run.steps=40", "run.eval_every=0"]
    rows = runs.rows(runs.run(tmp_path, *options), "episodes.jsonl")
    assert [row["return"] for row in rows] == [0, 0]
    assert any(row["shaped_return"] != 0 for row in rows)
    assert not any(row["success"] for row in rows)
    assert runs.replay(tmp_path)["reward"].count_nonzero() > 0


def test_replayed_rows_hold_the_clock_and_end_for_good_where_the_timeout_is_terminal(tmp_path: Path) -> None:
    options = ["env.max_steps=5", "run.steps=48", "run.eval_every=0"]
    for timeout in ("truncate", "terminal"):
        folder = runs.run(tmp_path / timeout, *options, "env.clock=true", f"env.timeout={timeout}")
        rows = runs.replay(folder)
        timed_out = rows["is_last"] & (rows["obs/clock"][..., 0] == 0)
        assert timed_out.sum() >= 3
        assert bool(rows["is_terminal"][timed_out].all()) == (timeout == "terminal")
        assert set(rows["obs/clock"][..., 0][rows["is_first"]].tolist()) == {1.0}


def test_evaluation_counts_a_terminal_timeout_as_it_counts_any_other(tmp_path: Path) -> None:
    """A random agent has no clock to read and no critic: the same episodes, in training and evaluation."""
    runs.run(tmp_path / "truncate", "agent=random")
    runs.run(tmp_path / "terminal", "agent=random", "env.timeout=terminal", "env.clock=true")
    for name in ("metrics.jsonl", "episodes.jsonl"):
        assert runs.rows(tmp_path / "truncate", name) == runs.rows(tmp_path / "terminal", name)
    assert 0 < runs.summary(tmp_path / "terminal")["eval_success"] < 1


def test_the_summary_has_every_key_and_the_curve(whole: Path) -> None:
    summary = runs.summary(whole)
    assert sorted(summary) == sorted(SUMMARY_KEYS.split())
    rows = [row for row in runs.rows(whole) if "eval/success" in row]
    assert summary["eval_curve"] == [[row["env_step"], row["eval/success"]] for row in rows]
    assert [row["env_step"] for row in rows] == [40, 80, 120]
    assert summary["auc"] == pytest.approx(sum(row["eval/success"] for row in rows) / 3)
    assert summary["eval_success"] == rows[-1]["eval/success"]
    assert summary["eval_success_greedy"] == rows[-1]["eval/success_greedy"]
    assert summary["env_id"] == "MiniGrid-Empty-Random-5x5-v0"
    assert (summary["seed"], summary["arm"], summary["status"]) == (0, "E", "finished")
    assert (summary["env_steps"], summary["gradient_steps"]) == (120, 22)
    assert 0 < summary["wall_s"] < 60
    influence = {"mean_kl", "prior_share", "argmax_flip_share", "clear_change_share"}
    assert set(summary["influence"]) == influence


def test_the_summary_tells_how_advice_taught_and_was_tried(whole: Path, tmp_path: Path) -> None:
    told = [(s["timeout"], s["clock"], s["teach"], s["trial"]) for s in [runs.summary(whole)]]
    assert told == [("truncate", False, "none", None)]
    few = ["run.eval_every=0", "size=tiny"]
    summary = runs.summary(runs.run(tmp_path / "G", "+ablation=G", *few))
    assert (summary["timeout"], summary["clock"], summary["teach"]) == ("terminal", True, "informed")
    last = runs.training_rows(tmp_path / "G")[-1]
    trial = summary["trial"]
    keys = ("trust", "benefit_e", "harm_e", "advised_share")
    assert {key: trial[key] for key in keys} == {key: last[f"trial/{key}"] for key in keys}
    assert trial["phase"] == TRIAL_PHASES[int(last["trial/phase"])]
    assert len(trial["verdicts"]) == last["trial/verdicts"]
    mixed = runs.summary(runs.run(tmp_path / "F", "+ablation=F", "gate.mix_in_imagination=true", *few))
    assert mixed["teach"] == "mix"
    alone = runs.summary(runs.run(tmp_path / "alone", "+ablation=A_time", *few))
    assert (alone["clock"], alone["teach"], alone["trial"]) == (True, "none", None)


def test_the_summary_follows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled success is 0.5, 1, 0.5, 1, 1, 0.75 in turn, greedy 0.25; the file is read before each."""
    plan = iter([2, 4, 2, 4, 4, 3])
    seen: list[tuple[str, int, float | None]] = []

    def play(
        evaluator: object, agent: object, env_step: int, greedy: bool = False, between: object = None
    ) -> list[Episode]:
        if not greedy and env_step > 20:
            summary = runs.summary(tmp_path)
            seen.append((summary["status"], summary["env_steps"], summary["steps_to_90"]))
        won = 1 if greedy else next(plan)
        lost = Episode(env_step, 0, 0, 0, "", 0.0, 18, False, 0.0)
        return [replace(lost, return_=1.0, success=True)] * won + [lost] * (4 - won)

    monkeypatch.setattr(trainer.Evaluator, "run", play)
    runs.run(tmp_path, "gate=none", "run.eval_every=20")
    assert seen == [("running", step, 80 if step > 80 else None) for step in range(20, 101, 20)]
    summary = runs.summary(tmp_path)
    assert (summary["status"], summary["steps_to_90"], summary["eval_success_greedy"]) == (
        "finished",
        80,
        0.25,
    )
    assert (summary["auc"], summary["eval_success"]) == (pytest.approx(4.75 / 6), 0.75)


def test_a_run_that_ends_between_evaluations_is_evaluated_at_its_end(tmp_path: Path) -> None:
    folder = runs.run(tmp_path, "run.steps=50", "agent=random")
    assert [step for step, _ in runs.summary(folder)["eval_curve"]] == [40, 50]


def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in CountingEnv: 5 to 8 steps an episode, odd seeds time out."""

    def family(*_: object) -> EnvFamily:
        tags = itertools.count()
        made = partial(CountingEnv, length=5, spread=4, ends="alternate", actions=3)
        return EnvFamily(lambda *args, **options: made(tag=next(tags)))

    monkeypatch.setattr(trainer, "refuse_what_is_missing", family)


def test_rows_stay_aligned_through_wrap_around_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three environments, a ring of 24 ticks, more than 40 ticks, stopped after 25; no gradient step."""
    counting(monkeypatch)
    inferred: dict[tuple[float, ...], Latent] = {}
    real = DreamerV3Agent.infer

    def infer(agent: DreamerV3Agent, carry: Any, obs: dict[str, torch.Tensor], *rest: Any) -> Any:
        latent, belief = real(agent, carry, obs, *rest)
        for i, row in enumerate(obs["count"].tolist()):
            inferred[tuple(row[:3])] = Latent(latent.deter[i], latent.stoch[i])
        return latent, belief

    monkeypatch.setattr(DreamerV3Agent, "infer", infer)
    options = ["gate=none", "run.envs=3", "run.eval_every=0", "run.prefill=119"]
    runs.run(tmp_path, *options, stop_at=25)
    stored = runs.replay(runs.run(tmp_path, *options))
    count, action, reward = stored["obs/count"], stored["action"], stored["reward"]
    assert count.shape == (24, 3, 4)
    ended = 0
    for t in range(24):
        for i in range(3):
            tag, seed, step, last = count[t, i].tolist()
            over = step == 5 + seed % 4
            assert tag == i
            assert stored["is_first"][t, i] == (step == 0)
            assert stored["is_last"][t, i] == over
            assert stored["is_terminal"][t, i] == (over and seed % 2 == 0)
            assert reward[t, i] == pytest.approx(step + last / 10 if step else 0)
            if t and step:
                assert count[t - 1, i].tolist()[:3] == [tag, seed, step - 1]
                assert last == action[t - 1, i]
            elif t:
                assert stored["is_last"][t - 1, i]
            ended += over
            latent = inferred[tag, seed, step]
            assert torch.equal(stored["deter"][t, i], latent.deter)
            assert torch.equal(stored["stoch"][t, i].long(), latent.stoch.long())
    assert ended > 6


def test_a_gradient_step_refreshes_the_latents_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[Batch, Latent]] = []
    real = DreamerV3Agent.update

    def update(agent: DreamerV3Agent, batch: Batch, report: bool) -> Any:
        metrics, latent = real(agent, batch, report)
        done.append((batch, latent))
        return metrics, latent

    monkeypatch.setattr(DreamerV3Agent, "update", update)
    runs.run(tmp_path, "run.steps=34", "run.prefill=30", "run.eval_every=0")
    assert len(done) == 1
    batch, latent = done[0]
    stored = torch.load(runs.checkpoints(tmp_path)[-1] / "replay.pt", weights_only=True)
    index, deter, stoch = batch.index.flatten(), latent.deter.flatten(0, 1), latent.stoch.flatten(0, 1)
    once = [n for n, row in enumerate(index.tolist()) if index.tolist().count(row) == 1]
    assert once
    for n in once:
        assert torch.equal(stored["deter"][index[n], 0], deter[n])
        assert torch.equal(stored["stoch"][index[n], 0].long(), stoch[n].long())

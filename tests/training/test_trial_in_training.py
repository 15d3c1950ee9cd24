"""Trials and teachers in whole runs: what never acts changes nothing, and what acts is what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import runs

from lore.base.errors import BadInput
from lore.cli import train as cli
from lore.cli.guard import BAD_INPUT
from lore.config.compose import compose
from lore.training import build, paired
from lore.training.checkpoint import load_state
from lore.training.evaluation import Evaluator
from lore.training.paired import GRADUATED, HARMFUL, ON_TRIAL, OUTGROWN, SHOWN, Paired
from lore.training.trainer import Trainer

WHOLE = "replay.capacity=240"
"""All rows of a run of 120 steps stay in the replay."""
HANDED = ["+ablation=G", "trial.horizon=1", "trial.cap=1", "run.envs=2", "gate.dropout=0"]
"""Unaided episodes that last longer than an advised one are handed over; all of it in two environments."""

# advice that never acts

SILENT = {
    "never drawn": ["+ablation=G", "trial.share=0"],
    "never drawn, with a veto": ["+ablation=G", "trial.share=0", "gate.veto=true"],
    "nobody there": ["+ablation=G_trusting", *runs.DEAD, "llm.budget_usd=1", "llm.api_retries=0"],
    "heard and distilled, never followed": ["+ablation=kickstart", "teach.weight=0"],
    "on trial, never followed": ["+ablation=G", "gate.beta_max=0", "gate.veto=true"],
}


@pytest.mark.parametrize("name", SILENT)
def test_advice_that_never_acts_leaves_the_run_of_a_time_bit_for_bit(
    name: str, finished_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key-of-nobody")
    alone, run = finished_run("+ablation=A_time"), runs.run(tmp_path, *SILENT[name])
    for here, there in zip(runs.rows(run), runs.rows(alone), strict=True):
        kept = {key for key in there if not key.startswith("opt/") and key != "health/alerts"}
        assert {key: here[key] for key in kept} == {key: there[key] for key in kept}
        if name == "never drawn" and "opt/grad_norm" in there:  # one sum over more networks, all zero
            assert here["opt/grad_norm"] == pytest.approx(there["opt/grad_norm"], rel=1e-6)
    who = ("adviser",) if name not in ("never drawn", "never drawn, with a veto") else ()
    assert runs.rows(run, "episodes.jsonl", who) == runs.rows(alone, "episodes.jsonl", who)
    here, there = load_state(run)["agent"], load_state(alone)["agent"]
    for part in ("master", "first", "second"):
        own = there["optimizer"][part]
        assert torch.equal(here["optimizer"][part][: len(own)], own)
    assert runs.difference(here["slow_critic"], there["slow_critic"]) == ""
    for stream, where in there["rng"].items():
        assert torch.equal(here["rng"][stream], where), stream
    assert torch.equal(load_state(run)["rng"]["act"], load_state(alone)["rng"]["act"])
    assert (runs.training_rows(run)[-1]["loss/prior_net"] > 0) == name.endswith("never followed")


# what is recorded


def story(folder: Path, envs: int = 1) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """Every episode that ended, with the ticks of its actions (its last row is no action) in the replay."""
    rows = runs.replay(folder)
    episodes = runs.rows(folder, "episodes.jsonl")
    out = []
    for env in range(envs):
        begins = rows["is_first"][:, env].nonzero().squeeze(1).tolist()
        ends = rows["is_last"][:, env].nonzero().squeeze(1).tolist()
        own = [episode for episode in episodes if episode["env"] == env]
        # an episode's last row is delivered one tick after its last action; that of the run may be missing
        for episode, begin in zip(own, begins, strict=False):
            assert begin + episode["length"] in [*ends, len(rows["is_first"])]
            out.append((episode | {"env": env}, torch.arange(begin, begin + episode["length"])))
    assert len(out) == len(episodes)
    return out


def test_in_an_unaided_episode_advice_moves_nothing_asks_nothing_and_is_learned_from(
    finished_run: Callable[..., Path],
) -> None:
    folder = finished_run("+ablation=G_trusting", WHOLE)
    rows, heard = runs.replay(folder), 0
    acting = advised = steps = 0
    asked = [row["env_step"] for row in runs.rows(folder, "llm.jsonl")]
    assert asked
    kinds = set()
    for episode, ticks in story(folder):
        beta, source = rows["beta"][ticks, 0], rows["source"][ticks, 0]
        spoken = source > 0
        kinds.add(episode["adviser"])
        assert episode.get("handed_over") is None
        steps += len(ticks)
        if episode["adviser"] == "none":
            assert not beta.any()
            heard += int(spoken.sum())
            begin = episode["env_step"] - episode["length"]
            assert not [step for step in asked if begin <= step < episode["env_step"]]
        else:
            assert (beta[~spoken] == 0).all()
            advised += int(spoken.sum())
            acting += int((beta > 0).sum())
    assert kinds == {"none", "scripted"} and heard > 20 and acting > 5
    last = runs.training_rows(folder)[-1]
    if steps == 120:  # no episode was under way
        assert last["llm/prior_share"] == pytest.approx(advised / 120)


def test_the_network_is_taught_by_rows_of_unaided_episodes(tmp_path: Path) -> None:
    cfg = compose([*runs.TINY, "+ablation=G_trusting", WHOLE])
    folder = runs.run(tmp_path, "+ablation=G_trusting", WHOLE)
    with _trainer(cfg, folder) as trainer:
        assert trainer.learner is not None and trainer.replay is not None
        net = trainer.learner.heads["prior_net"]
        batch = trainer.replay.sample(16, 8)
        unaided = (batch.beta == 0) & (batch.source > 0)
        weight = net.net.weight_in
        loss = net.loss(torch.randn(16, 8, weight.shape[1]).to(weight.dtype), batch)
        assert unaided.any() and (loss[unaided] > 0).float().mean() > 0.5
        assert not loss[batch.source == 0].any()


class _trainer:
    """The trainer of a finished run, restored."""

    def __init__(self, cfg: Any, folder: Path):
        from dataclasses import asdict

        from lore.metrics.logger import RunLogger

        self.cfg, self.folder = cfg, folder
        self.logger = RunLogger(folder, cfg.logger, asdict(cfg), arm="G")

    def __enter__(self) -> Trainer:
        self.logger.__enter__()
        trainer = Trainer(self.cfg, self.folder, self.logger)
        trainer.restore()
        return trainer

    def __exit__(self, *error: Any) -> None:
        self.logger.__exit__(*error)


def test_after_a_handover_advice_acts_and_the_episode_says_from_where(
    finished_run: Callable[..., Path],
) -> None:
    folder = finished_run(*HANDED, WHOLE)
    rows, handed = runs.replay(folder), 0
    for episode, ticks in story(folder, envs=2):
        beta = rows["beta"][ticks, episode["env"]]
        source = rows["source"][ticks, episode["env"]]
        at = episode.get("handed_over")
        if episode["adviser"] != "none":
            assert at is None
            continue
        if at is None:
            assert not beta.any()
            continue
        assert 0 < at < episode["length"]
        handed += 1
        assert not beta[:at].any()
        acts = (beta[at:] > 0)[source[at:] > 0].tolist()
        assert acts[0] and acts == sorted(acts, reverse=True)  # for at most a horizon, then no more
    assert handed >= 2
    trial = load_state(folder)["trial"]
    under_way = [e for e in trial["entries"] if e["number"] in trial["running"] and e["handed"] is not None]
    assert handed <= trial["handovers"] <= handed + len(under_way)


def test_an_episode_that_ends_with_its_horizon_was_not_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next step would be advised, and there is none."""
    limit = 18
    monkeypatch.setattr(Paired, "horizon", property(lambda _: float(limit)))
    folder = runs.run(tmp_path, "+ablation=G", "trial.cap=1", "run.eval_every=0")
    episodes = runs.rows(folder, "episodes.jsonl")
    assert any(e["length"] == limit and e["adviser"] == "none" for e in episodes)
    assert not any("handed_over" in e for e in episodes)
    assert load_state(folder)["trial"]["handovers"] == 0


# stopped and resumed, in each phase


def force(monkeypatch: pytest.MonkeyPatch, phases: dict[int, str]) -> None:
    """Episode NUMBER's end -> the phase that begins with it, whatever was bet."""
    real = Paired.end

    def end(trial: Paired, env: int, return_: float, success: bool) -> list[str]:
        told = real(trial, env, return_, success)
        over = trial.tally.episodes_advised + trial.tally.episodes_unaided
        phase = phases.get(over, trial.phase)
        if phase == SHOWN and trial.phase == ON_TRIAL:
            trial._show_benefit()
        elif phase != trial.phase:
            trial.graduation = [trial.tally.steps, 1.0]
            trial._enter(phase, "forced", anew=phase != GRADUATED)
        return told

    monkeypatch.setattr(Paired, "end", end)
    monkeypatch.setattr(Paired, "_settle", lambda *_: None)
    monkeypatch.setattr(Paired, "_graduate", lambda *_: None)


@pytest.mark.parametrize("last", [SHOWN, GRADUATED, OUTGROWN, HARMFUL])
def test_a_run_stopped_around_its_verdicts_equals_the_uninterrupted_one(
    last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stops: in a handed-over episode, in the ticks that bring a verdict, and some ticks after."""
    if last != SHOWN:  # that comes of the bets; the others of a script alone
        force(monkeypatch, {3: HARMFUL} if last == HARMFUL else {4: SHOWN, 8: last})
    monkeypatch.setattr(paired, "HALF_LIFE", 20)
    options = [*HANDED, "run.steps=150", "llm.success_cooldown_steps=0"]
    real, moments = Trainer.tick, []

    def tick(trainer: Trainer) -> None:
        real(trainer)
        trial = trainer.trial
        handed = [entry for entry in trial.running if entry and entry.handed is not None]
        moments.append((trial.phase, bool(handed)))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "tick", tick)
        whole = runs.run(tmp_path / "whole", *options)
    names = [phase for phase, _ in moments]
    assert names[-1] == last
    turns = [n for n in range(1, len(names)) if names[n] != names[n - 1]]
    handed = [n for n in range(1, len(moments)) if moments[n][1] and moments[n - 1][1]]
    assert len(turns) == {SHOWN: 1, GRADUATED: 2, OUTGROWN: 2, HARMFUL: 1}[last] and handed
    stops = sorted({handed[0] + 1, *(n + 1 for n in turns), *(n + 4 for n in turns)})
    for before, stop in zip([0, *stops], stops, strict=False):
        runs.run(tmp_path / "parts", *options, stop_at=stop - before)
    runs.run(tmp_path / "parts", *options)
    runs.assert_same_run(whole, tmp_path / "parts")
    trust = [row["trial/trust"] for row in runs.training_rows(whole)]
    assert (trust[-1] > 0) == (last in (SHOWN, GRADUATED))


# a hint, and a veto, in a run


def test_a_hint_is_seen_where_it_may_act_and_nowhere_else(finished_run: Callable[..., Path]) -> None:
    folder = finished_run("+ablation=hint", WHOLE)
    rows = runs.replay(folder)
    hint, source = rows["obs/hint"], rows["source"]
    assert hint.shape[-1] == rows["prior"].shape[-1]
    seen = {"none": 0, "scripted": 0}
    for episode, ticks in story(folder):
        spoken = source[ticks, 0] > 0
        if episode["adviser"] == "none":
            assert not hint[ticks, 0].any()
            seen["none"] += int(spoken.sum())
        else:
            want = torch.where(spoken.unsqueeze(-1), rows["prior"][ticks, 0].softmax(-1), 0.0)
            assert torch.equal(hint[ticks, 0], want)
            seen["scripted"] += int(spoken.sum())
    assert min(seen.values()) > 5
    assert not rows["beta"].any()
    assert not hint[rows["is_last"]].any()


def test_an_evaluation_shows_a_hint_only_with_advice_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lore.dreamer.agent import DreamerV3Agent

    seen: dict[bool, list[bool]] = {True: [], False: []}
    now: list[bool] = []
    infer, play = DreamerV3Agent.infer, Evaluator.run

    def look(agent: Any, carry: Any, obs: dict[str, torch.Tensor], *rest: Any) -> Any:
        if now:
            seen[now[0]].append(bool(obs["hint"].any()))
        return infer(agent, carry, obs, *rest)

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        now[:] = [kwargs.get("advice") is not None]
        try:
            return play(self, *args, **kwargs)
        finally:
            now.clear()

    monkeypatch.setattr(DreamerV3Agent, "infer", look)
    monkeypatch.setattr(Evaluator, "run", run)
    runs.run(tmp_path, "+ablation=hint", "run.steps=60", "run.eval_every=60")
    assert seen[False] and not any(seen[False])
    assert any(seen[True])


def test_room_for_a_hint_without_a_gate_is_zeros(finished_run: Callable[..., Path]) -> None:
    assert not runs.replay(finished_run("gate=none", "env.hint=true"))["obs/hint"].any()


@pytest.fixture
def severe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A veto in about half of the states, so that tiny runs meet it."""
    from lore.training import acting

    def veto(outcomes: torch.Tensor, advised: torch.Tensor) -> torch.Tensor:
        assert outcomes.shape == (5, len(advised), 3) and outcomes.isfinite().all()
        return outcomes.sum((0, 2)) * 1e6 % 2 < 1

    monkeypatch.setattr(acting, "vetoed", veto)


def test_vetoed_steps_are_counted_and_advice_does_not_act_in_them(severe: None, tmp_path: Path) -> None:
    options = ["gate.veto=true", "gate.dropout=0", "gate.warmup_steps=0", "gate.kl.mode=none", WHOLE]
    folder = runs.run(tmp_path / "whole", *options)
    rows = runs.replay(folder)
    live, spoken = ~rows["is_last"], rows["source"] > 0
    stopped = (live & spoken & (rows["beta"] == 0)).sum().item()
    assert stopped > 5 and (live & (rows["beta"] > 0)).sum() > 5
    last = runs.training_rows(folder)[-1]
    assert last["llm/vetoed_share"] == pytest.approx(stopped / live.sum().item())
    runs.run(tmp_path / "parts", *options, stop_at=37)
    runs.assert_same_run(folder, runs.run(tmp_path / "parts", *options))


def test_advised_evaluations_leave_no_trace_in_training_with_a_veto(severe: None, tmp_path: Path) -> None:
    options = ["+ablation=G_trusting", "gate.veto=true"]
    seen = runs.run(tmp_path / "seen", *options)
    unseen = runs.run(tmp_path / "unseen", *options, "run.eval_advised=false")
    assert runs.training_rows(seen) == runs.training_rows(unseen)
    assert (seen / "episodes.jsonl").read_bytes() == (unseen / "episodes.jsonl").read_bytes()
    for part in ("agent", "adviser", "trial", "envs", "rng", "collector", "advice_meter"):
        a, b = runs.state(seen)[part], runs.state(unseen)[part]
        assert runs.difference(a, b) == "", part


# what cannot be


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        (["teach=informed"], "prior_net.enabled", "use true"),
        (["teach=kickstart"], "prior_net.enabled", "use true"),
        (["teach=informed", "gate=none"], "teach", "teach=none"),
        (["teach=clone", "gate=none"], "teach", "teach=none"),
        (["teach=clone", "agent=prior", "gate=follow"], "teach", "teach=none"),
        (["teach=clone", "llm=none"], "llm", "teach=none"),
        (
            ["teach=informed", "prior_net.enabled=true", "gate.mix_in_imagination=true"],
            "gate.mix_in_imagination",
            "leave one out",
        ),
        (["gate=follow", "gate.veto=true", "gate.kl.mode=none"], "gate.veto", "gate=lore or fixed"),
        (["gate=none", "gate.veto=true"], "gate.veto", "gate=lore or fixed"),
        (["agent=prior", "gate=follow", "gate.veto=true"], "gate.veto", "agent=dreamer"),
        (["gate=hint", "env.hint=true", "gate.veto=true"], "gate.veto", "gate=lore or fixed"),
        (["gate=hint", "env.hint=true", "teach=mix", "prior_net.enabled=true"], "teach", "gate=lore"),
        (
            [
                "gate=hint",
                "env.hint=true",
                "gate.kl.mode=none",
                "prior_net.enabled=true",
                "gate.mix_in_imagination=true",
            ],
            "gate.mix_in_imagination",
            "a gate that mixes",
        ),
        (["gate=none", "trial=coin"], "gate", "trial=none"),
        (["gate=none", "trial=jumpstart"], "gate", "trial=none"),
        (["llm=none", "trial=paired"], "llm", "trial=none"),
        (["+ablation=G", "llm=none"], "llm", "teach=none"),
        (["+ablation=hint", "llm=none"], "llm", "trial=none"),
        (["gate=hint", "gate.kl.mode=none"], "env.hint", "env.hint=true"),
        (["gate=hint", "env.hint=true", "gate.kl.mode=penalty"], "gate.kl.mode", "none"),
    ],
)
def test_a_combination_that_cannot_work_ends_before_training_with_one_line(
    overrides: list[str],
    key: str,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(overrides) == BAD_INPUT
    said = capfd.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"lore-train: {key}: ") and remedy in line and not said.out
    assert not list(tmp_path.iterdir())


def test_a_test_of_returns_in_a_world_without_bounds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from lore.envs import adapter

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapter, "declared_range", lambda world: None)
    assert cli.main([*runs.TINY, "+ablation=G"]) == BAD_INPUT
    lines = [line for line in capfd.readouterr().err.splitlines() if "trial" in line]
    assert len(lines) == 1 and lines[0].startswith("lore-train: trial: ") and "trial=coin" in lines[0]
    assert not list(tmp_path.rglob("metrics.jsonl"))
    with pytest.raises(BadInput, match="trial"):
        build.build_advice_trial(
            compose(["+ablation=G"]), type("Envs", (), {"return_range": None, "num_envs": 1})
        )

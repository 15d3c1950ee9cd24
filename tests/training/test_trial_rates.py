"""What trial=paired promises, simulated with the class that training uses.

python -m tests.training.test_trial_rates prints the figures of docs/trial.md.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from tests.training.trial_worlds import Deceptive, Drifting, Loop, Steady, trial_of

from lore.training.paired import GRADUATED, HARMFUL, ON_TRIAL, SHOWN, Entry, Paired

DRIFTS = ("rises", "handover", "sways", "copies")
LIMIT = 16  # steps of an episode of the drifting learners


class ByEnd(Paired):
    """Settles bets in the order in which episodes end: the mistake that the order of beginnings avoids."""

    def begin(self, env: int) -> bool:
        """Do not queue the episode yet."""
        on = super().begin(env)
        if self.queue and self.queue[-1] is self.running[env]:
            self.queue.pop()
        return on

    def _decide(self, entry: Entry, outcome: float) -> None:
        if entry.share > 0:
            self.queue.append(entry)
        super()._decide(entry, outcome)


def null_run(kind: str, envs: int, seed: int, rule: type[Paired] = Paired, cap: float = 0.2) -> Loop:
    """200 episodes in a world where advice adds eps at most, or until a verdict."""
    rng = random.Random(f"{kind}/{seed}")
    deceives = kind == "deceptive"
    world = Deceptive(rng, LIMIT) if deceives else Drifting(rng, LIMIT, kind)
    trial = trial_of(envs, seed, rule, horizon=None if deceives else 4.0, cap=cap)
    loop = Loop(trial, world, envs, flat=True)
    loop.run(200)
    return loop


def false_verdicts(kinds: tuple[str, ...], envs: int, runs: int, rule: type[Paired] = Paired) -> Counter[str]:
    """Phases after runs in which advice adds nothing, half of them without a cap; and broken caps."""
    phases: Counter[str] = Counter()
    for seed in range(runs):
        loop = null_run(kinds[seed % len(kinds)], envs, seed, rule, cap=(0.2, 1.0)[seed // len(kinds) % 2])
        phases[loop.trial.phase] += 1
        phases["cap broken"] += loop.excess > envs * LIMIT
        phases["handed over"] += loop.trial.handovers
    return phases


def verdicts(
    world: Callable[[random.Random], Steady], runs: int, horizon: float | None = 4.0, envs: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Episodes and steps until a verdict of benefit, (runs,) each; inf where 400 episodes bring none."""
    out = np.full((2, runs), np.inf)
    for seed in range(runs):
        rng = random.Random(seed)
        loop = Loop(trial_of(envs, 10_000 + seed, horizon=horizon), world(rng), envs)
        loop.run(400)
        assert loop.excess <= envs * loop.world.limit
        if loop.trial.phase == SHOWN:
            out[:, seed] = loop.ended, loop.trial.tally.steps
    return out[0], out[1]


def doorkey8(rng: random.Random, unaided: float = 0.09, advised: float = 1.0) -> Steady:
    """A limit of 640 steps, 25 steps with advice."""
    return Steady(rng, 640, (advised, unaided), (25, 320))


def babyai(rng: random.Random) -> Steady:
    """A limit of 72 steps, 18 with advice; random play never succeeds."""
    return Steady(rng, 72, (0.98, 0.0), (18, 40))


def doorkey5(rng: random.Random) -> Steady:
    """A limit of 250 steps, 20 with advice."""
    return Steady(rng, 250, (1.0, 0.09), (20, 120))


def turned(unaided: float, honest: int, runs: int, before: float = 1.0) -> tuple[np.ndarray, Counter[str]]:
    """Advised episodes from the turn of an adviser until it is no longer trusted; and the phase then."""
    counts, phases = [], Counter[str]()
    for seed in range(runs):
        world = Steady(random.Random(seed), 12, (before, 0.1), (2, 6))
        loop = Loop(trial_of(1, seed), world, 1)
        loop.run(1000)
        trial, tally = loop.trial, loop.trial.tally
        start = tally.episodes_advised
        world.rates = (before, unaided)
        loop.run(1000, lambda t: t.phase == SHOWN and t.tally.episodes_advised < start + honest)  # noqa: B023
        if trial.phase != SHOWN:
            phases["before"] += 1
            continue
        world.rates, start = (0.0, unaided), tally.episodes_advised
        loop.run(400, lambda t: t.phase == SHOWN)
        phases[trial.phase] += 1
        if trial.phase == ON_TRIAL:
            counts.append(tally.episodes_advised - start)
    return np.array(counts), phases


def hasty(runs: int, horizon: float | None) -> Counter[str]:
    """First verdicts on advice that succeeds in 0.3 of the episodes, in 3 steps, beside 0.9, in 30, alone.

    left: Runs in which benefit was shown, and 100 further episodes ended that phase.
    """
    phases: Counter[str] = Counter()
    for seed in range(runs):
        world = Steady(random.Random(seed), 60, (0.3, 0.9), (3, 30))
        loop = Loop(trial_of(1, seed, horizon=horizon), world, 1)
        loop.run(400)
        phases[loop.trial.phase] += 1
        if loop.trial.phase == SHOWN:
            loop.run(100, lambda trial: trial.phase == SHOWN)
            phases["left"] += loop.trial.phase != SHOWN
    return phases


def check_false_verdicts(envs: int, runs: int) -> None:
    phases = false_verdicts((*DRIFTS, "deceptive"), envs, runs)
    assert phases[SHOWN] <= 0.05 * runs and phases[HARMFUL] <= 0.05 * runs
    assert phases["cap broken"] == 0 and phases["handed over"] > runs


@pytest.mark.parametrize("envs", [1, 4, 16])
def test_false_verdicts_with_horizon_handover_and_drift(envs: int) -> None:
    check_false_verdicts(envs, 300)


@pytest.mark.slow
@pytest.mark.parametrize("envs", [1, 4, 16])
def test_false_verdicts_in_ten_thousand_runs(envs: int) -> None:
    check_false_verdicts(envs, 10_000)


def test_counted_by_their_end_episodes_of_unequal_length_deceive() -> None:
    """Advised successes and unaided failures end first, though advice adds nothing."""
    rates = {}
    for rule in (Paired, ByEnd):
        phases = Counter(null_run("deceptive", 16, seed, rule, cap=1.0).trial.phase for seed in range(100))
        rates[rule] = phases[SHOWN] / 100
    assert rates[Paired] <= 0.05 and rates[ByEnd] > 0.5


def test_before_a_verdict_a_fifth_of_the_steps_and_the_grace_is_advised() -> None:
    """Advice that never succeeds, over 300 episodes in 1, 4 and 16 environments of unequal episodes."""
    for envs in (1, 4, 16):
        for kind in ("never", "sways"):
            rng = random.Random(envs)
            world = Steady(rng, LIMIT, (0.0, 0.0), (4, 4)) if kind == "never" else Drifting(rng, LIMIT, kind)
            loop = Loop(trial_of(envs, 3), world, envs, flat=True)
            loop.run(300)
            assert loop.trial.phase == ON_TRIAL
            assert 0 < loop.excess <= envs * LIMIT


def check_power(runs: int) -> None:
    episodes, _ = verdicts(doorkey5, runs)
    assert np.median(episodes) <= 11 and np.quantile(episodes, 0.9) <= 20
    episodes, _ = verdicts(doorkey5, runs, horizon=None)
    assert np.median(episodes) <= 12 and np.quantile(episodes, 0.9) <= 20


def test_a_large_benefit_is_found_within_11_episodes() -> None:
    check_power(200)


@pytest.mark.slow
def test_a_large_benefit_is_found_in_ten_thousand_runs() -> None:
    check_power(10_000)


def test_the_horizon_saves_steps_where_failures_are_long() -> None:
    _, whole = verdicts(doorkey8, 60, horizon=None)
    _, within = verdicts(doorkey8, 60)
    assert np.median(within) < 0.5 * np.median(whole)
    _, whole = verdicts(babyai, 100, horizon=None)
    _, within = verdicts(babyai, 100)
    assert np.median(within) < 1.15 * np.median(whole)  # failures are short: there is nothing to save


def test_a_horizon_favours_the_fast_until_the_verdict() -> None:
    """What docs/trial.md warns of: fast advice that is worse over whole episodes; those count afterwards."""
    assert hasty(50, None)[SHOWN] <= 3
    phases = hasty(50, 4.0)
    assert phases[SHOWN] > 25 and phases["left"] >= phases[SHOWN] - 2


@pytest.mark.parametrize("unaided", [0.0, 0.3, 0.6])
def test_a_turncoat_is_on_trial_again_within_35_advised_episodes(unaided: float) -> None:
    counts, phases = turned(unaided, 40, 150)
    assert np.quantile(counts, 0.9) <= 35
    assert set(phases) <= {ON_TRIAL, GRADUATED, "before"} and phases[ON_TRIAL] >= 0.8 * 150


WORLDS: dict[str, Callable[[random.Random], Steady]] = {
    "doorkey5, 0.09 alone": doorkey5,
    "doorkey8, 0.02 alone": lambda rng: doorkey8(rng, 0.02),
    "doorkey8, 0.09 alone": doorkey8,
    "doorkey8, adviser 0.5": lambda rng: doorkey8(rng, 0.05, 0.5),
    "babyai, 0 alone": babyai,
}


def figures(runs: int) -> None:
    """Print what docs/trial.md tells; 10 000 runs take about half an hour."""
    for kind in (*DRIFTS, "deceptive"):
        for envs in (1, 4, 16):
            phases = false_verdicts((kind,), envs, runs)
            shares = [round(100 * phases[key] / runs, 2) for key in (SHOWN, HARMFUL)]
            print(f"{kind}, {envs} envs: % benefit, harm {shares}", flush=True)
    few = 3 * runs // 10
    for envs in (4, 16):
        counted = Counter(null_run("deceptive", envs, i, ByEnd, cap=1.0).trial.phase for i in range(few))
        print(f"counted by end, {envs} envs: benefit {100 * counted[SHOWN] / few:.1f} %", flush=True)
    for before in (1.0, 0.7):
        for unaided in (0.0, 0.3, 0.6):
            counts, phases = turned(unaided, 40, runs // 10, before)
            middle, most = np.quantile(counts, [0.5, 0.9])
            print(
                f"turned from {before}, {unaided} alone: {middle:.0f} {most:.0f}, {dict(phases)}", flush=True
            )
    for name, world in WORLDS.items():
        for envs in (1, 4):
            for horizon in (None, 2.0, 3.0, 4.0, 6.0, 8.0):
                cells = [
                    f"{np.quantile(x, share, method='higher'):.0f}"
                    for x in verdicts(world, runs // 25, horizon, envs)
                    for share in (0.5, 0.9)
                ]
                print(f"{name}, {envs} envs, h {horizon}: episodes, steps {' '.join(cells)}", flush=True)
    for horizon in (None, 4.0):
        print(f"fast and worse, h {horizon}: {hasty(runs // 25, horizon)}", flush=True)


if __name__ == "__main__":
    figures(10_000)

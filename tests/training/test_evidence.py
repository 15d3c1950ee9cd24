"""Bets and detector: their formulas, and the rates that they promise, over 10^4 trials."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from lore.training.evidence import BETS, Decline, Wealth, effect

TRIALS = 10_000
BOUND = 40.0  # 1 * 2 / alpha, of the first trial


class Gamblers:
    """`Wealth` of many trials at once: the formulas of docs/trial.md, written anew."""

    def __init__(self, trials: int, sign: int, eps: float = 0.05):
        self.sign, self.eps = sign, eps
        self.logs = np.zeros((trials, len(BETS)))

    def bet(self, r: np.ndarray, on: np.ndarray, p: float, m: np.ndarray) -> np.ndarray:
        z = (r - m) * (on / p - ~on / (1 - p))
        least = np.maximum(m / p, (1 - m) / (1 - p))
        most = np.maximum((1 - m) / p, m / (1 - p))
        stake = (self.sign * z - self.eps) / ((least if self.sign > 0 else most) + self.eps)
        self.logs += np.log1p(np.array(BETS) * stake[:, None])
        return np.exp(self.logs).mean(1)


def centres(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return (sums / np.maximum(counts, 1)).mean(0)


def ever_shown(success, episodes: int, seed: int, p: float = 0.5, trials: int = TRIALS) -> np.ndarray:
    """Episodes until a verdict of benefit and one of harm (2, trials), inf for none.

    success: (episode, on, past mean return) -> probability of success.
    """
    rng = np.random.default_rng(seed)
    gamblers = Gamblers(trials, 1), Gamblers(trials, -1)
    sums, counts = np.zeros((2, trials)), np.zeros((2, trials))
    first = np.full((2, trials), np.inf)
    for i in range(episodes):
        on = rng.random(trials) < p
        m = centres(sums, counts)
        r = (rng.random(trials) < success(i, on, m)).astype(float)
        for row, gambler in enumerate(gamblers):
            reached = gambler.bet(r, on, p, m) >= BOUND
            first[row] = np.where(reached, np.minimum(first[row], i + 1), first[row])
        for row, side in enumerate((on, ~on)):
            sums[row] += r * side
            counts[row] += side
    return first


def test_the_effect_is_unbiased_for_any_share_and_centre() -> None:
    """Over the draw: advised minus unadvised return."""
    for share in (0.05, 0.5, 0.8):
        for centre in (0.0, 0.3, 1.0):
            mean = share * effect(0.7, True, share, centre) + (1 - share) * effect(0.2, False, share, centre)
            assert mean == pytest.approx(0.5)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8])
def test_no_bet_ruins_and_none_gains_where_advice_adds_only_eps(sign: int, share: float) -> None:
    """The mean factor of an episode is at most 1 at the edge of the null, for returns at either end."""
    for centre in (0.0, 0.2, 0.5, 1.0):
        for low in (0.0, 0.3, 0.95):
            on, off = (low + 0.05, low) if sign > 0 else (low, low + 0.05)
            mean = 0.0
            for advised, rate in ((True, on), (False, off)):
                for return_, chance in ((1.0, rate), (0.0, 1 - rate)):
                    wealth = Wealth(sign, 0.05)
                    wealth.bet(return_, advised, share, centre)
                    assert wealth.value > 0
                    mean += (share if advised else 1 - share) * chance * wealth.value
            assert mean == pytest.approx(1.0, abs=1e-12)


def test_while_nothing_succeeds_no_wealth_grows() -> None:
    rng = random.Random(0)
    wealths = Wealth(1, 0.05), Wealth(-1, 0.05)
    for _ in range(1000):
        before = [wealth.value for wealth in wealths]
        advised = rng.random() < 0.5
        for wealth in wealths:
            wealth.bet(0.0, advised, 0.5, 0.0)
        assert all(w.value <= b for w, b in zip(wealths, before, strict=True))


def test_the_wealth_is_the_formula() -> None:
    """Against the vectorised form, and finite after ten thousand wins."""
    rng = np.random.default_rng(0)
    for sign in (1, -1):
        wealth, other = Wealth(sign, 0.05), Gamblers(1, sign)
        for _ in range(50):
            r, m, on = rng.random(1), rng.random(1), rng.random(1) < 0.3
            value = other.bet(r, on, 0.3, m)
            wealth.bet(float(r[0]), bool(on[0]), 0.3, float(m[0]))
            assert wealth.value == pytest.approx(float(value[0]))
    for _ in range(10_000):
        wealth.bet(0.0, True, 0.5, 1.0)
    assert 1e300 < wealth.value < math.inf


DRIFTS = {
    "no drift": lambda i, on, m: 0.3 + 0.05 * on,
    "learns": lambda i, on, m: min(i / 150, 0.95) + 0.05 * on,
    "learns, forgets, learns": lambda i, on, m: 0.45 + 0.45 * math.sin(i / 12) + 0.05 * on,
    "follows its own past": lambda i, on, m: np.clip(1.2 * m, 0.02, 0.95) + 0.05 * on,
    "flees its own past": lambda i, on, m: np.where(m > 0.4, 0.05, 0.9) + 0.05 * on,
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_false_verdicts_are_rare_whatever_the_learner_does(drift: str) -> None:
    """Advice adds eps and no more, the worst that the null allows; then it takes eps away."""
    benefit, _ = np.isfinite(ever_shown(DRIFTS[drift], 200, seed=1)).mean(1)
    mirrored = DRIFTS[drift]
    _, harm = np.isfinite(ever_shown(lambda i, on, m: mirrored(i, ~on, m), 200, seed=2)).mean(1)
    assert benefit <= 0.025 and harm <= 0.025  # alpha / 2 is the share of the first trial


def test_a_benefit_that_is_there_is_found_soon() -> None:
    """Success 1.0 against 0.09; and harm as soon where the two are exchanged."""
    benefit, none = ever_shown(lambda i, on, m: np.where(on, 1.0, 0.09), 60, seed=3)
    assert np.median(benefit) <= 11 and np.quantile(benefit, 0.9) <= 20
    assert np.isfinite(none).mean() <= 0.001
    _, harm = ever_shown(lambda i, on, m: np.where(on, 0.09, 1.0), 60, seed=4)
    assert np.median(harm) <= 11 and np.quantile(harm, 0.9) <= 20


def alarms(success, level: float, episodes: int, seed: int, trials: int = TRIALS) -> np.ndarray:
    """Advised episodes until the detector's alarm at 400, inf for none; the formula, written anew."""
    rng = np.random.default_rng(seed)
    sums, first = np.zeros((trials, len(BETS))), np.full(trials, np.inf)
    for i in range(episodes):
        r = (rng.random(trials) < success(i)).astype(float)
        sums = (sums + 1) * (1 + np.array(BETS) * ((level - r) / (1 - level))[:, None])
        first = np.where(sums.mean(1) >= 400, np.minimum(first, i + 1), first)
    return first


def test_the_detector_is_the_formula() -> None:
    detector, level = Decline(0.4), 0.4
    sums = np.zeros(len(BETS))
    for r in (0.0, 0.2, 1.0, 0.0, 0.7):
        detector.add(r)
        sums = (sums + 1) * (1 + np.array(BETS) * (level - r) / (1 - level))
        assert detector.value == pytest.approx(sums.mean())
    detector.add(1.0)
    assert detector.value > 0


def test_false_alarms_are_as_rare_as_promised() -> None:
    """At success equal to the level, the worst that is no decline: 400 episodes and more, in the mean."""
    for level in (0.3, 0.5):
        first = alarms(lambda i, level=level: level, level, 2000, seed=5, trials=2000)
        assert np.minimum(first, 2000).mean() >= 400
        kept = np.isinf(alarms(lambda i, level=level: 2 * level, level, 2000, seed=6, trials=2000))
        assert kept.mean() > 0.95


def test_a_turncoat_is_found_within_35_advised_episodes() -> None:
    """Success 1.0 for 30 advised episodes, then 0."""
    first = alarms(lambda i: float(i < 30), 0.5, 100, seed=7, trials=100) - 30
    assert np.quantile(first, 0.9) <= 35

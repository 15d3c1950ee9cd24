"""Simulated learners and advisers for the tests of trials, and a loop that plays them."""

from __future__ import annotations

import random
from collections.abc import Callable

from lore.config.options import TrialOptions
from lore.training.paired import ON_TRIAL, Paired

Fate = tuple[int, bool]
"""How an episode ends from here: steps left, success."""


class Steady:
    """Fixed rates of success; a success is as long as is said, a failure lasts until the limit."""

    def __init__(
        self, rng: random.Random, limit: int, rates: tuple[float, float], lengths: tuple[float, float]
    ):
        self.rng, self.limit, self.rates, self.lengths = rng, limit, rates, lengths

    def fate(self, acts: bool) -> Fate:
        """`rates` and `lengths` are of advised and of unaided play."""
        if self.rng.random() >= self.rates[not acts]:
            return self.limit, False
        mean = self.lengths[not acts]
        return max(1, min(round(self.rng.gauss(mean, mean / 3)), self.limit)), True

    def after(self, advised: bool, handed: bool, success: bool) -> None:
        """An episode ended: nothing is learned."""


class Drifting(Steady):
    """Both succeed alike, advised by eps more; the learner moves by what it has seen.

    kind: `rises` with time; `handover`: advised steps after a handover teach, all else unteaches; `sways`;
    `copies`: advised successes teach at once, in the episodes that run as well.
    """

    def __init__(self, rng: random.Random, limit: int, kind: str):
        super().__init__(rng, limit, (0.0, 0.0), (limit / 8, limit / 8))
        self.kind, self.skill, self.ended = kind, 0.1, 0

    def fate(self, acts: bool) -> Fate:
        """Success by today's skill; a failure may come at any time."""
        self.rates = (self.skill + 0.05, self.skill)
        steps, success = super().fate(acts)
        return (steps if success else self.rng.randint(1, self.limit)), success

    def after(self, advised: bool, handed: bool, success: bool) -> None:
        """An episode ended: learn."""
        self.ended += 1
        if self.kind == "rises":
            change = 0.005
        elif self.kind == "handover":
            change = 0.1 if handed else -0.02
        elif self.kind == "sways":
            change = 0.1 if self.ended // 10 % 2 else -0.1
        else:
            change = 0.1 if advised and success else -0.03
        self.skill = min(max(self.skill + change, 0.02), 0.95)


class Deceptive(Steady):
    """Advice adds nothing, but its successes come early and its failures late; unaided play the other way."""

    def __init__(self, rng: random.Random, limit: int):
        super().__init__(rng, limit, (0.5, 0.5), (1, limit))

    def fate(self, acts: bool) -> Fate:
        """Half of the episodes succeed."""
        success = self.rng.random() < 0.5
        return (1 if success == acts else self.limit), success


def trial_of(
    envs: int, seed: int, kind: type[Paired] = Paired, horizon: float | None = 4.0, cap: float = 0.2
) -> Paired:
    """A trial that begins."""
    options = TrialOptions(name="paired", horizon=horizon, cap=cap)
    return kind(options, envs, random.Random(seed), (0.0, 1.0))


def on_trial(trial: Paired) -> bool:
    """Whether there is no verdict yet."""
    return trial.phase == ON_TRIAL


class Loop:
    """Steps all environments in turn.

    flat: a success is worth 1 whenever it comes; else less the later it is, as in MiniGrid.
    excess: most advised steps above the cap while on trial.
    """

    def __init__(self, trial: Paired, world: Steady, envs: int, flat: bool = False):
        self.trial, self.world, self.envs, self.flat = trial, world, envs, flat
        self.acts = [trial.begin(env) for env in range(envs)]
        self.left = [world.fate(on) for on in self.acts]
        self.lengths = [0] * envs
        self.ended, self.excess = 0, 0.0

    def run(self, episodes: int, going: Callable[[Paired], bool] = on_trial) -> None:
        """Go on until so many episodes more have ended, or `going` says no."""
        trial, until = self.trial, self.ended + episodes
        while self.ended < until and going(trial):
            for env in range(self.envs):
                self._step(env)
            if on_trial(trial):
                excess = trial.case.advised_steps - trial.options.cap * trial.case.steps
                self.excess = max(self.excess, excess)

    def _step(self, env: int) -> None:
        trial, limit = self.trial, self.world.limit
        if trial.acts(env) != self.acts[env]:  # another one plays on
            self.acts[env] = not self.acts[env]
            steps, success = self.world.fate(self.acts[env])
            self.left[env] = steps, success and self.lengths[env] + steps <= limit
        trial.step(env)
        self.lengths[env] += 1
        steps, success = self.left[env]
        self.left[env] = steps - 1, success
        if steps > 1 and self.lengths[env] < limit:
            return
        entry = trial.running[env]
        assert entry is not None
        value = 1.0 if self.flat else 1 - 0.9 * self.lengths[env] / limit
        handed = trial.handed_over(env) is not None
        trial.end(env, value if success else 0.0, success)
        self.world.after(entry.advised, handed, success)
        self.ended, self.lengths[env] = self.ended + 1, 0
        self.acts[env] = trial.begin(env)
        self.left[env] = self.world.fate(self.acts[env])

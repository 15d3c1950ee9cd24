"""Whether advice may act in an episode, and how far it is trusted in learning.

A trial draws at the start of every training episode whether the adviser takes part. `paired` compares advised
with unadvised episodes of the same, changing agent, and trusts advice only after a verdict whose errors are
bounded: docs/trial.md. The rules here know neither networks nor language models.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict
from typing import Any, Protocol

from lore.base.errors import BadInput
from lore.config.options import TrialOptions
from lore.training.paired import Paired
from lore.training.tally import WINDOW, Mean, Tally, set_stream, stream_state

STAGES = 10  # steps of jumpstart's curriculum
TOLERANCE = 0.05  # how far success may lie below its best for jumpstart to go on


class Trial(Protocol):
    """Decides in which steps of training advice may act.

    For every environment: `begin`, then `acts` and `step` in turn, then `end`.
    """

    @property
    def trust(self) -> float:
        """How far advice is trusted in learning now, in [0, 1]."""
        ...

    @property
    def unaided_success(self) -> float:
        """Success of the latest episodes without advice; of the first few, those to come count as 0."""
        ...

    def begin(self, env: int) -> bool:
        """An episode begins in an environment: draw.

        Returns:
            Whether it is advised from its beginning.
        """
        ...

    def acts(self, env: int) -> bool:
        """Say whether advice may act in the next step of an environment. It may change within an episode."""
        ...

    def step(self, env: int) -> None:
        """One step was taken in an environment, advised as `acts` said before."""
        ...

    def end(self, env: int, return_: float, success: bool) -> list[str]:
        """The episode of an environment ended.

        Args:
            env: The environment.
            return_: The raw return.
            success: Whether it succeeded.

        Returns:
            What the user should be told, a line each; mostly none.
        """
        ...

    def handed_over(self, env: int) -> int | None:
        """Say from which step of the running episode advice acts, where it began without; None: none."""
        ...

    def metrics(self) -> dict[str, float]:
        """Give the metrics trial/ of a row."""
        ...

    def summary(self) -> dict[str, Any]:
        """Give what the summary of a run tells of the trial."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        ...


class Always:
    """Advice may act in every step, and is trusted: no trial. It has no state and no metrics."""

    trust, unaided_success = 1.0, 0.0

    def begin(self, env: int) -> bool:
        """Advised, always."""
        return True

    def acts(self, env: int) -> bool:
        """Advised, always."""
        return True

    def step(self, env: int) -> None:
        """Nothing is counted."""

    def end(self, env: int, return_: float, success: bool) -> list[str]:
        """Nothing is counted."""
        return []

    def handed_over(self, env: int) -> int | None:
        """No episode begins without advice."""
        return None

    def metrics(self) -> dict[str, float]:
        """No metrics."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """No state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """No state."""


class Untested:
    """Base of the trials that come to no verdict: advice is trusted from the start, and is counted."""

    trust = 1.0

    def __init__(self) -> None:
        self.tally = Tally()

    @property
    def unaided_success(self) -> float:
        """As counted."""
        return self.tally.unaided_success

    def handed_over(self, env: int) -> int | None:
        """What begins without advice ends without."""
        return None

    def metrics(self) -> dict[str, float]:
        """Give the counts."""
        return {"trial/trust": self.trust, **self.tally.metrics()}

    def summary(self) -> dict[str, Any]:
        """Give the counts; there is no verdict."""
        row = {"phase": "untested", "trust": self.trust, "benefit_e": None, "harm_e": None}
        return row | {"advised_share": self.tally.advised_share, "verdicts": []}


class Coin(Untested):
    """A fixed share of the episodes is advised; advice is trusted from the start."""

    def __init__(self, options: TrialOptions, num_envs: int, rng: random.Random):
        """Take the share.

        Args:
            options: `share`.
            num_envs: Environments side by side.
            rng: Stream of the draws; its state is part of this one's.
        """
        super().__init__()
        self.share, self.rng = options.share, rng
        self.advised = [False] * num_envs

    def begin(self, env: int) -> bool:
        """Draw."""
        self.advised[env] = self.rng.random() < self.share
        return self.advised[env]

    def acts(self, env: int) -> bool:
        """As the episode was drawn."""
        return self.advised[env]

    def step(self, env: int) -> None:
        """Count the step."""
        self.tally.step(self.advised[env])

    def end(self, env: int, return_: float, success: bool) -> list[str]:
        """Count the episode."""
        self.tally.end(self.advised[env], success)
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"rng": stream_state(self.rng), "tally": asdict(self.tally), "advised": list(self.advised)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        set_stream(self.rng, state["rng"])
        self.tally, self.advised = Tally(**state["tally"]), list(state["advised"])


class JumpStart(Untested):
    """Advice acts in the first h steps of an episode; h falls while success holds (JSRL, arXiv 2204.02372).

    Stage 0: the adviser acts in whole episodes. Then h goes from H to 0 in STAGES equal steps, where H is the
    mean length of the successes of stage 0 (of all its episodes, where none succeeded). A stage ends when the
    success of its latest WINDOW episodes is at most TOLERANCE below the best of any stage so far.
    """

    def __init__(self, num_envs: int):
        """Begin with whole episodes.

        Args:
            num_envs: Environments side by side.
        """
        super().__init__()
        self.stage, self.best = 0, 0.0
        self.window: list[bool] = []  # success of the latest episodes that began in this stage
        self.won, self.all = Mean(), Mean()  # lengths of the episodes of stage 0
        self.running: list[list[float]] = [[0, 0, math.inf]] * num_envs  # stage, steps and h of the episode

    @property
    def horizon(self) -> float:
        """The h of an episode that begins now."""
        if not self.stage:
            return math.inf
        return round((self.won if self.won.count else self.all).value * (1 - self.stage / STAGES))

    def begin(self, env: int) -> bool:
        """Advised as long as h is not 0."""
        self.running[env] = [self.stage, 0, self.horizon]
        return self.acts(env)

    def acts(self, env: int) -> bool:
        """In the first h steps."""
        _, steps, horizon = self.running[env]
        return steps < horizon

    def step(self, env: int) -> None:
        """Count the step."""
        self.tally.step(self.acts(env))
        self.running[env][1] += 1

    def end(self, env: int, return_: float, success: bool) -> list[str]:
        """Count the episode; the next stage may begin."""
        stage, steps, horizon = self.running[env]
        self.tally.end(horizon > 0, success)
        if stage != self.stage or self.stage == STAGES:
            return []
        if not self.stage:
            self.all.add(steps)
            if success:
                self.won.add(steps)
        self.window = [*self.window, success][-WINDOW:]
        rate = sum(self.window) / WINDOW
        if len(self.window) < WINDOW or rate < self.best - TOLERANCE - 1e-9:
            return []
        self.best = max(self.best, rate)
        self.stage, self.window = self.stage + 1, []
        return [f"advice now acts in the first {self.horizon} steps of an episode"]

    def metrics(self) -> dict[str, float]:
        """Give the counts, and h once there is one."""
        return super().metrics() | ({"trial/horizon": self.horizon} if self.stage else {})

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "tally": asdict(self.tally),
            "stage": self.stage,
            "best": self.best,
            "window": list(self.window),
            "won": asdict(self.won),
            "all": asdict(self.all),
            "running": [list(row) for row in self.running],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.tally = Tally(**state["tally"])
        self.stage, self.best, self.window = state["stage"], state["best"], list(state["window"])
        self.won, self.all = Mean(**state["won"]), Mean(**state["all"])
        self.running = [list(row) for row in state["running"]]


def build_trial(
    options: TrialOptions, num_envs: int, rng: random.Random, return_range: tuple[float, float] | None
) -> Trial:
    """Make the trial of a run.

    Args:
        options: The group `trial`.
        num_envs: Training environments side by side.
        rng: Stream of the draws, at its start; its state is saved with the trial's.
        return_range: Least and greatest raw return of an episode of the task; None where it declares none.

    Raises:
        BadInput: The task declares no such bounds, which `paired` needs.
    """
    if options.name == "none":
        return Always()
    if options.name == "coin":
        return Coin(options, num_envs, rng)
    if options.name == "jumpstart":
        return JumpStart(num_envs)
    low, high = bounds = return_range or (-math.inf, math.inf)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadInput(
            "trial",
            f"paired compares returns between two finite bounds, and this task declares {low} to {high}; "
            "let its return_range say the lowest and the highest return, or use trial=coin",
        )
    return Paired(options, num_envs, rng, bounds)

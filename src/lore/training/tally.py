"""What every trial has: counts for its rows and its summary, and a random stream that can be saved."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

WINDOW = 20
"""Episodes of each kind over which success is compared."""


@dataclass
class Mean:
    """A mean of numbers that come one by one; 0 before the first."""

    total: float = 0.0
    count: int = 0

    @property
    def value(self) -> float:
        """The mean."""
        return self.total / self.count if self.count else 0.0

    def add(self, number: float) -> None:
        """Take a number."""
        self.total += number
        self.count += 1


@dataclass
class Tally:
    """Counts over a whole run.

    Attributes:
        steps: Environment steps.
        advised_steps: Those in which advice might act.
        episodes_advised: Episodes that ended and were advised from their beginning.
        episodes_unaided: Those that were not.
        advised: Success of the latest WINDOW advised episodes.
        unaided: The same of unaided episodes.
    """

    steps: int = 0
    advised_steps: int = 0
    episodes_advised: int = 0
    episodes_unaided: int = 0
    advised: list[bool] = field(default_factory=list)
    unaided: list[bool] = field(default_factory=list)

    @property
    def advised_share(self) -> float:
        """Share of the steps in which advice might act."""
        return self.advised_steps / max(self.steps, 1)

    @property
    def unaided_success(self) -> float:
        """Success of the latest WINDOW unaided episodes; one that is still to come counts as a failure."""
        return sum(self.unaided) / WINDOW

    def step(self, acts: bool) -> None:
        """Count an environment step."""
        self.steps += 1
        self.advised_steps += acts

    def end(self, advised: bool, success: bool | None) -> None:
        """Count an episode that ended; where its success tells nothing (None) the windows stay."""
        latest = [] if success is None else [success]
        if advised:
            self.episodes_advised += 1
            self.advised = [*self.advised, *latest][-WINDOW:]
        else:
            self.episodes_unaided += 1
            self.unaided = [*self.unaided, *latest][-WINDOW:]

    def metrics(self) -> dict[str, float]:
        """Give the metrics trial/ of the counts; a success rate is absent before its first episode."""
        row: dict[str, float] = {
            "trial/advised_share": self.advised_share,
            "trial/episodes_advised": self.episodes_advised,
            "trial/episodes_unaided": self.episodes_unaided,
        }
        for name, window in (("advised", self.advised), ("unaided", self.unaided)):
            if window:
                row[f"trial/{name}_success"] = sum(window) / len(window)
        return row


def stream_state(rng: random.Random) -> list[Any]:
    """Return the state of a random stream as plain values."""
    version, numbers, gauss = rng.getstate()
    return [version, list(numbers), gauss]


def set_stream(rng: random.Random, state: list[Any]) -> None:
    """Let a random stream go on from a state that `stream_state` gave."""
    version, numbers, gauss = state
    rng.setstate((version, tuple(numbers), gauss))

"""How far a run is: the counts and scores that its rows, its summary and its checkpoints tell."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lore.base.types import Episode
from lore.metrics.sinks.terminal_view import WINDOW


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        updates: Gradient steps.
        todo: What is left of a tick that a stop has cut short; a resumed run begins with it.
        report_due: Whether the next gradient step measures the world model's predictions: one does for a row.
        curve: [env_step, success] of every evaluation.
        greedy: Success of the latest evaluation with the greedy policy, None before.
        advised: The same with advice on.
        episodes: Training episodes that have ended.
        successes: Those that earned a reward.
        window: Success of the latest WINDOW of them.
        layouts: The layouts that training has met, each once.
        wall_s: Seconds of training in the sessions before this one.
    """

    updates: int = 0
    todo: list[str] = field(default_factory=list)
    report_due: bool = True
    curve: list[list[float]] = field(default_factory=list)
    greedy: float | None = None
    advised: float | None = None
    episodes: int = 0
    successes: int = 0
    window: list[bool] = field(default_factory=list)
    layouts: set[str] = field(default_factory=set)
    wall_s: float = 0.0

    def __post_init__(self) -> None:
        self._started = time.monotonic()

    @property
    def total_wall_s(self) -> float:
        """Seconds of training in all sessions, this one included."""
        return self.wall_s + time.monotonic() - self._started

    def add_episode(self, episode: Episode) -> None:
        """Count a training episode that has ended.

        Args:
            episode: The episode.
        """
        self.episodes += 1
        self.successes += episode.success
        self.window = [*self.window, episode.success][-WINDOW:]
        self.layouts.add(episode.layout)

    def success_row(self) -> dict[str, float]:
        """Give the metrics success/ of training; none before the first episode has ended."""
        if not self.episodes:
            return {}
        return {
            "success/windowed": sum(self.window) / len(self.window),
            "success/cumulative": self.successes / self.episodes,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        return {**asdict(self), "layouts": sorted(self.layouts), "wall_s": self.total_wall_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the time of this session counts from now.

        Args:
            state: What `state_dict` gave.
        """
        for each in fields(self):
            setattr(self, each.name, state[each.name])
        self.layouts = set(state["layouts"])
        self._started = time.monotonic()

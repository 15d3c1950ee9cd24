"""When an ask is worth considering: novelty, surprise, a plateau, a boundary of the episode."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Any

from lore.base.types import GridState

NAMES = ("novelty", "td_error", "plateau", "boundary")


class Novelty:
    """1 / sqrt(visits of a key so far): above `threshold` in a key's first 1 / threshold^2 visits."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.visits: Counter[str] = Counter()

    def visit(self, key: str) -> bool:
        """Count a visit; whether the key is still new."""
        before = self.visits[key]
        self.visits[key] += 1
        return before == 0 or 1.0 / math.sqrt(before) > self.threshold


class Surprise:
    """|TD error| above `threshold` running standard deviations of it (Welford 1962)."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def observe(self, error: float) -> bool:
        """Count an error; whether it stands out among those before. One that is not finite does not."""
        if not math.isfinite(error):
            return False
        stands_out = self.count > 1 and abs(error) > self.threshold * math.sqrt(self.squares / self.count)
        self.count += 1
        step = error - self.mean
        self.mean += step / self.count
        self.squares += step * (error - self.mean)
        return stands_out


class Plateau:
    """Success that does not move: two halves of a full window of episodes whose means are as good as equal.

    A share of 0.95 and more is no plateau but the end of learning.
    """

    MARGIN, SOLVED = 0.05, 0.95

    def __init__(self, window: int):
        self.outcomes: deque[bool] = deque(maxlen=window)

    def record_episode(self, success: bool) -> None:
        self.outcomes.append(success)

    def is_flat(self) -> bool:
        window = self.outcomes.maxlen or 0
        if window < 2 or len(self.outcomes) < window:
            return False
        values = list(self.outcomes)
        early, late = (sum(half) / len(half) for half in (values[: window // 2], values[window // 2 :]))
        return abs(late - early) < self.MARGIN and sum(values) / window < self.SOLVED


class Boundary:
    """The episode's start, a key picked up, a door opened: told from two states, one after the other."""

    def __init__(self) -> None:
        self.carried = ""
        self.ahead: list[int] | None = (
            None  # cell in front of the agent one state ago, if a shut door was there
        )

    def observe(self, state: GridState) -> bool:
        """Whether one was crossed on the way to `state`."""
        carried = "" if state.carrying is None else " ".join(state.carrying)
        got_key = carried != self.carried and carried.startswith("key")
        was_shut = None if self.ahead is None else state.cells.get((self.ahead[0], self.ahead[1]))
        opened = was_shut is not None and was_shut.state == "open"
        self.carried = carried
        self.ahead = list(state.ahead) if state.thing_at(state.ahead).shut else None
        return state.step == 0 or got_key or opened


class Triggers:
    """All of them for one run."""

    def __init__(self, novelty_threshold: float, td_error_threshold: float, plateau_window: int):
        self.novelty, self.surprise = Novelty(novelty_threshold), Surprise(td_error_threshold)
        self.plateau = Plateau(plateau_window)

    def fire(self, key: str, td_error: float | None, boundary: bool) -> list[str]:
        """Names of those that fire at this step. td_error: of the step before, None where not known."""
        found = {
            "novelty": self.novelty.visit(key),
            "td_error": td_error is not None and self.surprise.observe(td_error),
            "plateau": self.plateau.is_flat(),
            "boundary": boundary,
        }
        return [name for name in NAMES if found[name]]

    def state_dict(self) -> dict[str, Any]:
        surprise = self.surprise
        return {
            "visits": dict(self.novelty.visits),
            "surprise": [surprise.count, surprise.mean, surprise.squares],
            "plateau": list(self.plateau.outcomes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.novelty.visits = Counter(state["visits"])
        self.surprise.count, self.surprise.mean, self.surprise.squares = state["surprise"]
        self.plateau.outcomes.clear()
        self.plateau.outcomes.extend(state["plateau"])

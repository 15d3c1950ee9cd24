"""When an ask is worth considering: novelty, surprise, a plateau, a boundary of the episode."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Any

from lore.base.types import GridState

NAMES = ("novelty", "td_error", "plateau", "boundary")


class Novelty:
    """Fires where a key is new.

    1 / sqrt(visits so far) is above `threshold` in the first 1 / threshold^2 visits of a key.
    """

    def __init__(self, threshold: float):
        """Begin with no visits.

        Args:
            threshold: A key is new while 1 / sqrt(visits so far) is above it.
        """
        self.threshold = threshold
        self.visits: Counter[str] = Counter()

    def visit(self, key: str) -> bool:
        """Count a visit.

        Args:
            key: The plan key of the state.

        Returns:
            True where the key is still new.
        """
        before = self.visits[key]
        self.visits[key] += 1
        return before == 0 or 1.0 / math.sqrt(before) > self.threshold


class Surprise:
    """Fires where |TD error| is above `threshold` times the running standard deviation of the TD error.

    Source of the running variance: Welford 1962.
    """

    def __init__(self, threshold: float):
        """Begin with no errors.

        Args:
            threshold: Standard deviations above which an error stands out.
        """
        self.threshold = threshold
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def observe(self, error: float) -> bool:
        """Count a TD error. An error that is not finite is not counted.

        Args:
            error: The TD error of one step.

        Returns:
            True where it stands out among the errors before.
        """
        if not math.isfinite(error):
            return False
        stands_out = self.count > 1 and abs(error) > self.threshold * math.sqrt(self.squares / self.count)
        self.count += 1
        step = error - self.mean
        self.mean += step / self.count
        self.squares += step * (error - self.mean)
        return stands_out


class Plateau:
    """Fires where success does not move: both halves of a full window of episodes have means within MARGIN.

    A share of successes of SOLVED and more is no plateau but the end of learning.
    """

    MARGIN, SOLVED = 0.05, 0.95

    def __init__(self, window: int):
        """Begin with no episodes.

        Args:
            window: Episodes to look at; below 2 it never fires.
        """
        self.outcomes: deque[bool] = deque(maxlen=window)

    def record_episode(self, success: bool) -> None:
        """Note whether an episode was a success.

        Args:
            success: Whether the task was solved.
        """
        self.outcomes.append(success)

    def is_flat(self) -> bool:
        """Say whether the window is full, and success neither moves nor has come to its end."""
        window = self.outcomes.maxlen or 0
        if window < 2 or len(self.outcomes) < window:
            return False
        values = list(self.outcomes)
        early, late = (sum(half) / len(half) for half in (values[: window // 2], values[window // 2 :]))
        return abs(late - early) < self.MARGIN and sum(values) / window < self.SOLVED


class Boundary:
    """Fires at the episode's start, and where a key was picked up or a door opened.

    It tells by comparing two states in a row.
    """

    def __init__(self) -> None:
        self.carried = ""
        # The cell in front of the agent one state ago, if a shut door was there.
        self.ahead: list[int] | None = None

    def observe(self, state: GridState) -> bool:
        """Say whether a boundary was crossed on the way to a state. Call it once for every state.

        Args:
            state: What the agent knows now.
        """
        carried = "" if state.carrying is None else " ".join(state.carrying)
        got_key = carried != self.carried and carried.startswith("key")
        was_shut = None if self.ahead is None else state.cells.get((self.ahead[0], self.ahead[1]))
        opened = was_shut is not None and was_shut.state == "open"
        self.carried = carried
        self.ahead = list(state.ahead) if state.thing_at(state.ahead).shut else None
        return state.step == 0 or got_key or opened


class Triggers:
    """All triggers of one run."""

    def __init__(self, novelty_threshold: float, td_error_threshold: float, plateau_window: int):
        """Begin with nothing seen.

        Args:
            novelty_threshold: See Novelty.
            td_error_threshold: See Surprise; in standard deviations.
            plateau_window: Episodes that Plateau looks at; below 2 it never fires.
        """
        self.novelty, self.surprise = Novelty(novelty_threshold), Surprise(td_error_threshold)
        self.plateau = Plateau(plateau_window)

    def fire(self, key: str, td_error: float | None, boundary: bool) -> list[str]:
        """Return the names of the triggers that fire at this step, in the order of NAMES.

        Args:
            key: The plan key of the state.
            td_error: TD error of the step before; None where it is not known.
            boundary: Whether a boundary was crossed.
        """
        found = {
            "novelty": self.novelty.visit(key),
            "td_error": td_error is not None and self.surprise.observe(td_error),
            "plateau": self.plateau.is_flat(),
            "boundary": boundary,
        }
        return [name for name in NAMES if found[name]]

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far, without the boundaries of the environments."""
        surprise = self.surprise
        return {
            "visits": dict(self.novelty.visits),
            "surprise": [surprise.count, surprise.mean, surprise.squares],
            "plateau": list(self.plateau.outcomes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Args:
            state: What `state_dict` returned.
        """
        self.novelty.visits = Counter(state["visits"])
        self.surprise.count, self.surprise.mean, self.surprise.squares = state["surprise"]
        self.plateau.outcomes.clear()
        self.plateau.outcomes.extend(state["plateau"])

"""A circuit breaker: after some failures in a row nobody asks for a while, then one ask tries again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Breaker:
    """Closed: every ask may go. Open: none for `pause` environment steps, then one: the trial.

    A trial that goes well closes the breaker, one that fails opens it anew. The outcome of a trial may never
    come, because something else held the ask back after `allow`: then another trial follows after a further
    pause. Report the outcome of every ask that went to a provider, and of no other.

    Attributes:
        openings: How often the breaker was opened.
    """

    def __init__(self, failures: int, pause: int) -> None:
        """Begin closed.

        Args:
            failures: Failures in a row that open the breaker.
            pause: Environment steps from an opening to the trial.
        """
        self.failures, self.pause = failures, pause
        self.openings = 0
        self._in_row = 0
        self._resume: int | None = None  # environment step of the next trial; None: closed
        self._trial = False  # a trial is under way

    def would_allow(self, env_step: int) -> bool:
        """Say whether `allow` would say yes; nothing changes.

        Args:
            env_step: Environment step of the run.

        Returns:
            True where an ask may go now.
        """
        return self._resume is None or env_step >= self._resume

    def allow(self, env_step: int) -> bool:
        """Say whether an ask may go now. Call it right before sending: a yes while open begins the trial.

        Args:
            env_step: Environment step of the run.

        Returns:
            True where the ask may go.
        """
        if not self.would_allow(env_step):
            return False
        if self._resume is not None:
            self._trial, self._resume = True, env_step + self.pause
        return True

    def record_success(self) -> None:
        """Note that an ask was answered: the breaker closes."""
        self._in_row, self._resume, self._trial = 0, None, False

    def record_failure(self, env_step: int, kind: str) -> str | None:
        """Note that an ask failed.

        Failures of asks sent earlier may arrive while the breaker is open. They change nothing but the count
        in a row.

        Args:
            env_step: Environment step of the run.
            kind: Kind of the failure, a word of FAILURES or of the provider.

        Returns:
            A line for the user where this failure opens the breaker, else None.
        """
        self._in_row += 1
        if self._in_row < self.failures or (self._resume is not None and not self._trial):
            return None
        self.openings += 1
        self._resume, self._trial = env_step + self.pause, False
        return (
            f"LLM: {self._in_row} failures in a row, the last: {kind}; asking pauses for {self.pause} steps, "
            f"until step {self._resume}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, the step of the next trial and whether a trial is under way."""
        return {
            "openings": self.openings,
            "in_row": self._in_row,
            "resume": self._resume,
            "trial": self._trial,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Args:
            state: What `state_dict` returned.
        """
        self.openings, self._in_row = state["openings"], state["in_row"]
        self._resume, self._trial = state["resume"], state["trial"]

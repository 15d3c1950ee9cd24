"""A circuit breaker: after some failures in a row nobody asks for a while, then one ask tries again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Breaker:
    """Closed: every ask may go. Open: none for `pause` environment steps, then one: the trial.

    A trial that goes well closes it, one that fails opens it anew. A trial whose outcome never comes
    (something else held it back after `allow`) is followed by another after a further pause. Tell it the
    outcome of every ask that went to a provider, and of no other.
    """

    def __init__(self, failures: int, pause: int) -> None:
        """failures: so many in a row open it. pause: in environment steps."""
        self.failures, self.pause = failures, pause
        self.openings = 0
        self._in_row = 0
        self._resume: int | None = None  # environment step of the next trial; None: closed
        self._trial = False  # a trial is under way

    def would_allow(self, env_step: int) -> bool:
        """Whether `allow` would say yes; nothing changes.

        Args:
            env_step: environment step of the run.

        Returns:
            True where an ask may go now.
        """
        return self._resume is None or env_step >= self._resume

    def allow(self, env_step: int) -> bool:
        """Whether an ask may go now. Call it right before sending: a yes while open begins the trial."""
        if not self.would_allow(env_step):
            return False
        if self._resume is not None:
            self._trial, self._resume = True, env_step + self.pause
        return True

    def record_success(self) -> None:
        """An ask was answered: closed."""
        self._in_row, self._resume, self._trial = 0, None, False

    def record_failure(self, env_step: int, kind: str) -> str | None:
        """An ask failed. Returns a line for the user when this opens it, None otherwise.

        Failures of asks sent earlier, which arrive while it is open, change nothing but the count in a row.
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
        return {
            "openings": self.openings,
            "in_row": self._in_row,
            "resume": self._resume,
            "trial": self._trial,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.openings, self._in_row = state["openings"], state["in_row"]
        self._resume, self._trial = state["resume"], state["trial"]

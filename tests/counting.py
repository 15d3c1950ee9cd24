"""A task in which every number says where it came from, to prove that rows stay aligned."""

from __future__ import annotations

from typing import Any

import numpy as np

from lore.base.types import ObsSpec


class CountingEnv:
    """An environment for VectorEnv whose observation at step t of an episode is (tag, seed, t, last action).

    observation: count float32 (4,) = [tag, seed % 1000, t, last action or -1]. reward: at step t,
    t + last action / 10. An episode lasts `length` steps, or `length + seed % spread` with spread > 0,
    and ends as `ends` says: "terminal", "timeout" (truncated only) or "alternate" (odd seeds time out).
    """

    remember = False

    def __init__(
        self, tag: int = 0, length: int = 3, ends: str = "terminal", spread: int = 0, actions: int = 5
    ) -> None:
        assert ends in ("terminal", "timeout", "alternate"), ends
        self.obs_spec = {"count": ObsSpec((4,), dtype="float32")}
        self.action_names = [f"a{i}" for i in range(actions)]
        self.tag, self.length, self.ends, self.spread = tag, length, ends, spread
        self.seed, self.t, self.last = 0, 0, -1

    def reset(self, *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self.seed, self.t, self.last = seed, 0, -1
        return self._observe(), {"layout": f"{seed % 1000:03d}"}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        assert self.t < self.episode_length(self.seed), "stepped past the end"
        self.t, self.last = self.t + 1, action
        reward = self.t + action / 10
        over = self.t == self.episode_length(self.seed)
        timeout = self.ends == "timeout" or (self.ends == "alternate" and self.seed % 2 == 1)
        return self._observe(), reward, over and not timeout, over and timeout, {"raw_reward": reward}

    def episode_length(self, seed: int) -> int:
        return self.length + (seed % self.spread if self.spread else 0)

    def _observe(self) -> dict[str, np.ndarray]:
        return {"count": np.array([self.tag, self.seed % 1000, self.t, self.last], np.float32)}

"""An episode's time limit: whether something follows it, and how much of it is left."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from lore.envs.privileged.truth import core

TIMEOUTS = ("truncate", "terminal")


class TerminalTimeout(gym.Wrapper):
    """An episode that ends by its time limit is terminated as well: nothing follows, as after lava."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Args:
            action: Number of a MiniGrid action.

        Returns:
            Observation, reward, terminated (by the time limit too), truncated, and info.
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(reward), terminated or truncated, truncated, info


class Clock:
    """Tells the time limit of the running episode, and the share of it that is left."""

    def __init__(self, env: gym.Env) -> None:
        """Take up a task.

        Args:
            env: The task, wrapped or not.
        """
        self._world = core(env)
        self._registered = None if env.spec is None else env.spec.max_episode_steps

    @property
    def limit(self) -> int:
        """Most steps that the episode can have.

        It is the world's own limit, which BabyAI levels set at each reset, or the one that the world is
        registered with where that is lower.
        """
        own = self._world.max_steps
        return own if self._registered is None else min(own, self._registered)

    def left(self) -> float:
        """Compute (limit - steps) / limit: 1 at the first observation, 0 at that of the time limit."""
        return (self.limit - self._world.step_count) / self.limit

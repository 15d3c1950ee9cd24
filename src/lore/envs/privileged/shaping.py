"""Potential-based reward shaping (Ng, Harada and Russell 1999): optimal policies stay optimal."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from lore.base.errors import BadInput
from lore.envs.privileged.truth import Route

GAMMA = 1 - 1 / 333  # the agent's default discount (horizon 333)
_LIMIT = 2.0  # potentials stay above -_LIMIT; that is also the value where success is out of reach
_PROBES = 8  # resets tried at start, so that a task without a potential is refused before the run


class PotentialShaping(gym.Wrapper):
    """Adds F = coefficient * (gamma * phi(s') - phi(s)) to the reward.

    phi(s) = -(way remaining in s) / (way remaining at the episode's start), so -1 at the start and 0 at
    success: an undiscounted solved episode earns `coefficient` on top of its own reward. phi of a terminal
    state is 0, of the last state before a time-out that truncates its own value. The unshaped reward is in
    `info["raw_reward"]`.
    The way is privileged knowledge: it shapes rewards, and the observation never holds it.
    """

    def __init__(self, env: gym.Env, coefficient: float, gamma: float = GAMMA) -> None:
        """Wrap a task, and reset it a few times to see that it has a potential.

        Args:
            env: The task.
            coefficient: What a solved episode earns on top of its reward.
            gamma: Discount of the agent.

        Raises:
            BadInput: The task has no potential (see `truth.Route`); the message names `env.shaping`.
        """
        super().__init__(env)
        self.coefficient, self.gamma = coefficient, gamma
        self._route = Route(env)
        self._whole = 1
        self._phi = 0.0
        for seed in range(_PROBES):
            self.reset(seed=seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; its way to success is measured.

        Args:
            seed: Seed of the episode; None goes on with the random stream of the task.
            options: Passed on to the task, as Gymnasium defines.

        Returns:
            The task's observation and info.

        Raises:
            BadInput: The task has no potential; the message names `env.shaping`.
        """
        obs, info = self.env.reset(seed=seed, options=options)
        self._route.reset()
        whole = self._route.remaining()
        if whole is None:
            raise BadInput(
                "env.shaping", "this task has no potential (no single goal to reach); use env.shaping=0"
            )
        self._whole = max(whole, 1)
        self._phi = self._potential()
        return obs, info

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action, and shape the reward.

        Args:
            action: Number of a MiniGrid action.

        Returns:
            Observation, shaped reward, terminated, truncated, and info with "raw_reward", the reward without
            shaping.
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        phi = 0.0 if terminated else self._potential()
        bonus = self.coefficient * (self.gamma * phi - self._phi)
        self._phi = phi
        return obs, float(reward) + bonus, terminated, truncated, {**info, "raw_reward": float(reward)}

    def _potential(self) -> float:
        remaining = self._route.remaining()
        return -_LIMIT if remaining is None else max(-remaining / self._whole, -_LIMIT)

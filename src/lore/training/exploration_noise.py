"""The original's exploration knobs: epsilon, a sampling temperature, noise among valid actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lore.base.types import GridState
from lore.config.options import ExploreOptions


class ActionNoise:
    """Turns the logits that would be sampled from into those of the noisy policy:

    (1 - epsilon) * softmax(logits / temperature) + epsilon * uniform over all (or all valid) actions.
    """

    def __init__(
        self,
        options: ExploreOptions,
        steps: int,
        action_names: Sequence[str],
        valid_actions: Callable[[GridState, Sequence[str]], list[bool]] | None = None,
    ):
        """Take the knobs.

        Args:
            options: The knobs.
            steps: Environment steps of the run, over which both knobs move where anneal_steps is not given.
            action_names: Names of the task's actions.
            valid_actions: (state, names) -> which can change something; needed for options.valid_noise.
        """
        self.valid_actions = valid_actions
        self.options, self.steps, self.names = options, options.anneal_steps or steps, action_names
        self.on = max(options.epsilon_start, options.epsilon_end) > 0 or (
            options.temperature_start,
            options.temperature_end,
        ) != (1.0, 1.0)

    def epsilon(self, env_step: int) -> float:
        """Give the share of random actions, in [0, 1].

        Args:
            env_step: Environment steps of the run so far.
        """
        return self._at(self.options.epsilon_start, self.options.epsilon_end, env_step)

    def temperature(self, env_step: int) -> float:
        """Give the number that logits are divided by, above 0.

        Args:
            env_step: Environment steps of the run so far.
        """
        return self._at(self.options.temperature_start, self.options.temperature_end, env_step)

    def __call__(self, logits: Tensor, states: Sequence[GridState], env_step: int) -> Tensor:
        """Add the noise.

        Args:
            logits: Logits of the policy, (N, A).
            states: What the agent knows of its worlds, N of them, for valid_noise.
            env_step: Environment steps of the run so far.

        Returns:
            Logits of the noisy policy, (N, A); `logits` itself where every knob is off.
        """
        if not self.on:
            return logits
        chosen = torch.ones_like(logits)
        if self.options.valid_noise:
            assert self.valid_actions is not None
            valid = [self.valid_actions(state, self.names) for state in states]
            chosen = torch.tensor(valid, dtype=logits.dtype, device=logits.device)
        epsilon = self.epsilon(env_step)
        policy = (logits / self.temperature(env_step)).softmax(-1)
        return ((1.0 - epsilon) * policy + epsilon * chosen / chosen.sum(-1, keepdim=True)).log()

    def _at(self, start: float, end: float, env_step: int) -> float:
        return start + (end - start) * min(1.0, env_step / self.steps)

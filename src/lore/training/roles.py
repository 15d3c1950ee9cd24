"""What acting needs of others: an agent, an adviser, and the adviser as a network.

Letters: N environments, A actions, F features, K critics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lore.base.types import Belief, Carry, GridState, Latent, Prior


class Agent(Protocol):
    """What acting needs of an agent."""

    device: torch.device

    def initial(self, n: int) -> Carry:
        """Return the carry before the first step.

        Args:
            n: N, the number of environments.
        """

    def infer(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, rng: torch.Generator
    ) -> tuple[Latent, Belief]:
        """Estimate the state of every environment, and say what the agent would do there.

        Args:
            carry: What the step before left, of N environments.
            obs: Observation key -> (N, *shape), on the agent's device.
            is_first: (N,) bool, where an episode begins: such a row starts from an empty state.
            rng: Draws the latents; on the agent's device.

        Returns:
            The latent of N environments, and the agent's belief: logits (N, A) and features (N, F).
        """

    def doubt(self, feat: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Ask the ensembles how unsure the agent is.

        Args:
            feat: Features, (N, F).
            logits: Logits of the policy in the same states, (N, A).

        Returns:
            Name (value_var, disagreement) -> (N,) float32, at least 0; empty without ensembles.
        """

    def value(self, feat: Tensor) -> Tensor:
        """Estimate the return with the critic.

        Args:
            feat: Features, (N, F).

        Returns:
            (N,) float32, in units of reward.
        """

    def outcomes(self, feat: Tensor, rng: torch.Generator) -> Tensor:
        """Imagine one step by every action; only a gate with a veto asks.

        Args:
            feat: Features, (N, F).
            rng: Draws what is imagined; on the agent's device.

        Returns:
            What each of K critics expects of each action, in return scales, (K, N, A).
        """


class Adviser(Protocol):
    """What acting needs of an adviser; LLMController is one."""

    def advise(
        self,
        states: Sequence[GridState],
        env_step: int,
        td_error: Sequence[float] | None = None,
        latched: Sequence[bool] | None = None,
        learned: Sequence[Sequence[float] | None] | None = None,
        over: Sequence[bool] | None = None,
        may_ask: Sequence[bool] | None = None,
    ) -> Prior:
        """Advise on one step of N environments.

        Args:
            states: What the agent knows of its worlds, N of them.
            env_step: Environment steps of the run so far.
            td_error: (N) TD errors of the critic for the steps that led here, NaN where an episode begins;
                None where they are not known.
            latched: (N), where the gate allows asking; None: everywhere.
            learned: For each environment the distilled adviser's distribution, (A,), or None where the
                network is not confident; None without a distilled adviser.
            over: (N), where an episode has ended, so that no action counts; None: nowhere.
            may_ask: (N), where advice may act, so that an ask is worth its price; None: everywhere.
        """


class Distilled(Protocol):
    """What acting needs of the distilled adviser."""

    def confident(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Give distilled advice, and say where it counts.

        Args:
            feat: Features, (N, F).

        Returns:
            Weights of the actions, (N, A), and where the network is confident of them, (N,) bool.
        """

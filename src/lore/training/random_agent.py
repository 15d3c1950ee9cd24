"""The uniform policy, with the interface of an agent: the floor that every result stands on."""

from __future__ import annotations

import torch
from torch import Tensor

from lore.base.types import Belief, Carry, Latent


class RandomAgent:
    """Draws every action with equal probability; has no state and nothing to learn."""

    def __init__(self, num_actions: int, device: torch.device | str = "cpu"):
        """Say what is drawn from.

        Args:
            num_actions: A.
            device: Where the tensors are made.
        """
        self.num_actions, self.device = num_actions, torch.device(device)

    def initial(self, n: int) -> Carry:
        """Return the carry before the first step: an empty latent, and action 0 everywhere.

        Args:
            n: N, the number of environments.
        """
        nothing = torch.zeros(n, 0, device=self.device)
        return Carry(Latent(nothing, nothing), torch.zeros(n, dtype=torch.long, device=self.device))

    def infer(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, rng: torch.Generator
    ) -> tuple[Latent, Belief]:
        """Give equal logits, whatever was seen.

        Args:
            carry: What the step before left; its empty latent is handed on.
            obs: Not looked at.
            is_first: (N,) bool; only N is read.
            rng: Nothing is drawn.

        Returns:
            The empty latent, and a belief with logits (N, A) of zeros and features (N, 0).
        """
        logits = torch.zeros(len(is_first), self.num_actions, device=self.device)
        return carry.latent, Belief(logits, carry.latent.deter)

    def doubt(self, feat: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Return no doubt: the agent has no ensembles.

        Args:
            feat: (N, 0), not looked at.
            logits: (N, A), not looked at.
        """
        return {}

    def value(self, feat: Tensor) -> Tensor:
        """Expect no return.

        Args:
            feat: (N, 0).

        Returns:
            Zeros, (N,).
        """
        return torch.zeros(len(feat), device=self.device)

    def outcomes(self, feat: Tensor, rng: torch.Generator) -> Tensor:
        """Have no critics, and so no veto.

        Args:
            feat: (N, 0).
            rng: Nothing is drawn.

        Raises:
            NotImplementedError: Always; `lore.config.checks` refuses gate.veto with this agent.
        """
        raise NotImplementedError("a random agent has no critics")

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state.

        Args:
            state: Empty, as `state_dict` gave it.
        """
        assert not state, "a random agent has no state"

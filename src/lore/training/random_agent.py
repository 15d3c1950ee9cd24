"""The uniform policy, with the interface of an agent: the floor that every result stands on."""

from __future__ import annotations

import torch
from torch import Tensor

from lore.base.types import Belief, Carry, Latent


class RandomAgent:
    """Draws every action with equal probability; has no state and nothing to learn."""

    def __init__(self, num_actions: int, device: torch.device | str = "cpu"):
        self.num_actions, self.device = num_actions, torch.device(device)

    def initial(self, n: int) -> Carry:
        nothing = torch.zeros(n, 0, device=self.device)
        return Carry(Latent(nothing, nothing), torch.zeros(n, dtype=torch.long, device=self.device))

    def infer(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, rng: torch.Generator
    ) -> tuple[Latent, Belief]:
        """Equal logits (N, A), whatever was seen."""
        logits = torch.zeros(len(is_first), self.num_actions, device=self.device)
        return carry.latent, Belief(logits, carry.latent.deter)

    def doubt(self, feat: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Nothing: it has no ensembles."""
        return {}

    def value(self, feat: Tensor) -> Tensor:
        """feat (N, 0) -> zeros (N,): it expects nothing."""
        return torch.zeros(len(feat), device=self.device)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        assert not state, "a random agent has no state"

"""From observation to action: infer, sample. The same code acts in training and in evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lore.nn import fused
from lore.types import Belief, Carry, Latent, ObsSpec


class Agent(Protocol):
    """What acting needs of an agent."""

    device: torch.device

    def initial(self, n: int) -> Carry: ...

    def infer(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, rng: torch.Generator
    ) -> tuple[Latent, Belief]: ...


@dataclass
class Decision:
    """action: (N,) long, drawn from belief.logits."""

    action: Tensor
    belief: Belief


class GuidedPolicy:
    """policy(carry, obs) -> carry, decision. greedy: the likeliest action instead of a sample."""

    def __init__(self, agent: Agent, spec: dict[str, ObsSpec], rng: torch.Generator, greedy: bool = False):
        self.agent, self.spec, self.rng, self.greedy = agent, spec, rng, greedy

    def __call__(self, carry: Carry, obs: dict[str, np.ndarray]) -> tuple[Carry, Decision]:
        """obs: key -> (N, *shape), and is_first (N,). A row with is_first starts from an empty state."""
        device = self.agent.device
        seen = {k: torch.from_numpy(obs[k]).to(device) for k in self.spec}
        is_first = torch.from_numpy(obs["is_first"]).to(device)
        latent, belief = self.agent.infer(carry, seen, is_first, self.rng)
        if self.greedy:
            action = belief.logits.argmax(-1)
        else:
            uniform = torch.rand(len(is_first), generator=self.rng, device=device)
            action = fused.sample(belief.logits.unsqueeze(1), uniform.unsqueeze(1)).squeeze(1).long()
        return Carry(latent, action), Decision(action, belief)

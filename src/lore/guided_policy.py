"""From observation to action: infer, sample. The same code acts in training and in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lore.nn import fused
from lore.types import Belief, Carry, GridState, Latent, ObsSpec, Prior


class Agent(Protocol):
    """What acting needs of an agent."""

    device: torch.device

    def initial(self, n: int) -> Carry: ...

    def infer(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, rng: torch.Generator
    ) -> tuple[Latent, Belief]: ...


class Adviser(Protocol):
    """What acting needs of an adviser; LLMController is one."""

    def advise(
        self, states: Sequence[GridState], env_step: int, *, over: Sequence[bool] | None = None
    ) -> Prior: ...


@dataclass
class Decision:
    """action: (N,) long, drawn from logits (N, A). prior: the advice it was drawn under, None without."""

    action: Tensor
    logits: Tensor
    belief: Belief
    prior: Prior | None = None


class GuidedPolicy:
    """policy(carry, obs) -> carry, decision. greedy: the likeliest action instead of a sample.

    adviser: asked at every step; where it advises, its distribution is followed in place of the agent's.
    """

    def __init__(
        self,
        agent: Agent,
        spec: dict[str, ObsSpec],
        rng: torch.Generator,
        greedy: bool = False,
        adviser: Adviser | None = None,
    ):
        self.agent, self.spec, self.rng, self.greedy, self.adviser = agent, spec, rng, greedy, adviser

    def __call__(
        self, carry: Carry, obs: dict[str, np.ndarray], states: Sequence[GridState] = (), env_step: int = 0
    ) -> tuple[Carry, Decision]:
        """obs: key -> (N, *shape), and is_first (N,). A row with is_first starts from an empty state.

        states: (N) of them, and env_step: the run's, for the adviser.
        """
        device = self.agent.device
        seen = {k: torch.from_numpy(obs[k]).to(device) for k in self.spec}
        is_first = torch.from_numpy(obs["is_first"]).to(device)
        latent, belief = self.agent.infer(carry, seen, is_first, self.rng)
        prior = None
        if self.adviser is not None:
            over = obs["is_last"].tolist() if "is_last" in obs else None
            prior = self.adviser.advise(states, env_step, over=over)
        logits = belief.logits
        if prior is not None:
            advised = (prior.source > 0).unsqueeze(-1).to(device)
            logits = torch.where(advised, prior.logits.to(device), logits)
        if self.greedy:
            action = logits.argmax(-1)
        else:
            uniform = torch.rand(len(is_first), generator=self.rng, device=device)
            action = fused.sample(logits.unsqueeze(1), uniform.unsqueeze(1)).squeeze(1).long()
        return Carry(latent, action), Decision(action, logits, belief, prior)

"""Who takes part in a gradient step besides DreamerV3; DreamerV3 itself never hears of advice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lore.base.types import Batch
from lore.dreamer.actor_critic import ActorCritic

Doubt = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Features (N, F) and actor logits (N, A) -> what the ensembles say of them: name -> (N,)."""


class Guide(Protocol):
    """Who takes part in a gradient step besides DreamerV3; `lore.training.learning` has one.

    env_step: of the run, set before an update. gate: the gate of the run. doubt: the agent's `doubt`.
    """

    env_step: int

    @property
    def gate(self) -> object: ...

    @property
    def mixes_imagination(self) -> bool: ...

    @property
    def reads_replay(self) -> bool: ...

    def imagined_bonus(self, feat: Tensor, logits: Tensor, doubt: Doubt) -> Tensor: ...

    def calibrate(self, feat: Tensor, logits: Tensor, doubt: Doubt) -> None: ...

    def kl_loss(
        self, logits: Tensor, batch: Batch, imagined: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...

    def value_weight(self, logits: Tensor | None, batch: Batch) -> Tensor | None: ...


class ImaginedPolicy:
    """Draws imagined actions, and keeps what the guide added to the logits at each step."""

    def __init__(self, actor_critic: ActorCritic, guide: Guide | None, doubt: Doubt, rng: torch.Generator):
        self._actor_critic, self._doubt, self._rng = actor_critic, doubt, rng
        self._guide = guide if guide is not None and guide.mixes_imagination else None
        self._added: list[Tensor] = []

    def __call__(self, feat: Tensor) -> Tensor:
        """feat (N, F) -> actions (N,)."""
        if self._guide is None:
            return self._actor_critic.sample(feat, self._rng)
        logits = self._actor_critic.logits(feat)
        added = self._guide.imagined_bonus(feat, logits, self._doubt)
        self._added.append(added)
        return self._actor_critic.draw(logits + added, self._rng)

    def bonus(self) -> Tensor | None:
        """(H, N, A), of all steps but the last; None where nothing was added."""
        return torch.stack(self._added[:-1]) if self._added else None

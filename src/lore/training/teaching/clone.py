"""teach=clone: imitation of what was done in advised episodes that succeeded."""

from __future__ import annotations

import torch
from torch import Tensor

from lore.base.types import Batch
from lore.dreamer.guide import Moment
from lore.training.teaching.teacher import Metrics, Teacher


class Clone(Teacher):
    """The loss mu * confidence * (-log pi(a|s)) on rows where advice acted and whose episode succeeded.

    mu = weight * trust * (1 - unaided success): what the agent can do alone need not be shown. Advice that
    failed never enters. `replay.success_bias` draws a share of each batch from such episodes (MoDem, Hansen
    et al. 2022, arXiv 2212.05698).
    """

    def replay_loss(self, logits: Tensor, batch: Batch, now: Moment) -> tuple[Tensor, Metrics] | None:
        """See Teacher."""
        strength = self.options.weight * now.trust * (1.0 - now.unaided)
        rows = (batch.beta > 0) & batch.won
        loss = -logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        metrics = {
            "teach/weight": torch.full((), strength, device=loss.device),
            "teach/cloned_share": rows.float().mean(),
        }
        return strength * torch.where(rows, batch.confidence.float() * loss, 0.0), metrics

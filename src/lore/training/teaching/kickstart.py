"""teach=kickstart: a pull towards the distilled adviser beside the entropy bonus."""

from __future__ import annotations

import torch
from torch import Tensor

from lore.dreamer.guide import Lookahead, Moment
from lore.training.teaching.teacher import Metrics, Teacher


class Kickstart(Teacher):
    """The loss lambda_t * v(s) * KL(sg q_phi || pi) in every imagined state.

    lambda_t falls linearly from `weight` to 0 over `anneal_steps` environment steps, times trust (Schmitt et
    al. 2018, arXiv 1803.03835). v = 1 is the loss of LLM4Teach (Zhou et al. 2023, arXiv 2311.13373); with
    `filtered`, v(s) is 1 where one imagined step by the advised action promises at least V(s) - `margin`.
    """

    def regularise(
        self, feat: Tensor, log_probs: Tensor, lookahead: Lookahead, now: Moment
    ) -> tuple[Tensor, Metrics] | None:
        """See Teacher."""
        assert self.distilled is not None
        left = 1.0 if self.options.anneal_steps is None else 1.0 - now.env_step / self.options.anneal_steps
        strength = self.options.weight * max(0.0, left) * now.trust
        if not strength:
            return None
        advised, _ = self.distilled.distribution(feat)  # (A, H, N)
        valid = torch.ones_like(log_probs[0])
        if self.options.filtered:
            promised, value = lookahead(feat.flatten(0, -2), advised.argmax(0).flatten())
            valid = (promised >= value - self.options.margin).float().view(valid.shape)
        kl = -(torch.special.entr(advised) + advised * log_probs).sum(0)
        entropy = -(log_probs.exp() * log_probs).sum(0)
        metrics = {
            "teach/weight": torch.full((), strength, device=kl.device),
            "teach/kl": kl.detach().mean(),
            "teach/valid_share": valid.mean(),
        }
        return self.entropy * entropy - strength * valid * kl, metrics

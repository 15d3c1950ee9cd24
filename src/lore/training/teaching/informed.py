"""teach=informed: the entropy bonus, measured against an informed policy instead of the uniform one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lore.dreamer.guide import Lookahead, Moment
from lore.training.teaching.teacher import Metrics, Teacher


class Informed(Teacher):
    """The bonus -eta(s) * KL(pi(.|s) || q_w(.|s)) in every imagined state.

    q_w = (1 - w)/A + w * sg(q_phi) mixes the uniform policy with the distilled adviser q_phi, and

        w(s) = w_max * clip(1 - MI(s)/mi_max, 0, 1) * trust,   eta(s) = eta + (eta_q - eta) * w(s)/w_max

    follow the mutual information MI of action and member, a share of log A: where the members differ, or
    advice is not trusted, w is 0 and the bonus is DreamerV3's entropy bonus less a constant. The fixed point
    is pi ~ q_w * exp(advantage / eta(s)) (KL-regularised policies: Galashov et al. 2019, arXiv 1905.01240).
    """

    def regularise(
        self, feat: Tensor, log_probs: Tensor, lookahead: Lookahead, now: Moment
    ) -> tuple[Tensor, Metrics] | None:
        """See Teacher. Without trust the entropy bonus stays, and the network is not even asked."""
        assert self.distilled is not None
        if not now.trust:
            return None
        advised, disagreement = self.distilled.distribution(feat)
        share = now.trust * (1.0 - disagreement / self.options.mi_max).clamp(0.0, 1.0)  # w / w_max
        eta = self.entropy + (self.options.eta_q - self.entropy) * share
        return informed_bonus(log_probs, advised, self.options.w_max * share, eta)


def informed_bonus(log_probs: Tensor, advised: Tensor, w: Tensor, eta: Tensor) -> tuple[Tensor, Metrics]:
    """Compute -eta * KL(pi || q_w).

    Args:
        log_probs: log pi, (A, ...), with gradient.
        advised: q_phi, (A, ...).
        w: Share of q_phi in q_w, (...), in [0, 1].
        eta: Strength, (...).

    Returns:
        The bonus, (...), with gradient, and metrics, 0-d.
    """
    target = ((1.0 - w) / len(log_probs) + w * advised).log()
    kl = (log_probs.exp() * (log_probs - target)).sum(0)
    with torch.no_grad():
        metrics = {
            "teach/weight": w.mean(),
            "teach/eta": eta.mean(),
            "teach/kl": kl.mean(),
            "teach/advised_entropy": torch.special.entr(advised).sum(0).mean() / math.log(len(advised)),
        }
    return -eta * kl, metrics

"""Advice added to the policy: l_mix = l_wm + beta * sg(l~), so pi_mix ~ pi_wm * pi_llm^beta.

Letters: N rows, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def centred(prior: Tensor, mask: Tensor) -> Tensor:
    """Subtract the mean from advice.

    A masked action gets the lowest value among the allowed ones: advice, never a ban. Differences are taken
    first, so a constant added to l_llm changes nothing, and equal advice gives exact zeros.

    Args:
        prior: Advice l_llm, (N, A).
        mask: The actions that the adviser allows, (N, A) bool.

    Returns:
        l_llm less its mean, (N, A).
    """
    mask = mask | ~mask.any(-1, keepdim=True)
    lowest = torch.where(mask, prior, torch.inf).amin(-1, keepdim=True)
    level = torch.where(mask, prior, lowest)
    level = level - level.amax(-1, keepdim=True)
    return level - level.mean(-1, keepdim=True)


def mix(logits: Tensor, beta: Tensor, bonus: Tensor) -> Tensor:
    """Add advice to the policy's logits.

    Args:
        logits: l_wm, (..., A).
        beta: Strength of the advice, (...).
        bonus: l~, (..., A); no gradient goes through it.

    Returns:
        l_mix, (..., A); where beta is 0 it is l_wm, bit for bit.
    """
    mixed = logits + beta.unsqueeze(-1) * bonus.detach()
    return torch.where(beta.unsqueeze(-1) > 0, mixed, logits)


def divergence(mixed: Tensor, logits: Tensor) -> Tensor:
    """Compute KL(sg(pi_mix) || pi_wm) in nats.

    The gradient is through log pi_wm alone: through both sides it would make pi_wm deterministic.

    Args:
        mixed: l_mix, (..., A).
        logits: l_wm, (..., A).

    Returns:
        The KL, (...).
    """
    log_mix = mixed.detach().log_softmax(-1)
    return (log_mix.exp() * (log_mix - logits.log_softmax(-1))).sum(-1)

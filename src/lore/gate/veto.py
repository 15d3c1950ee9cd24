"""The critic's veto: advice does not act where the world model and the critics speak clearly against it.

Letters: K critics, N states, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 0.02  # return scales that an advised action may promise less than the best
SURE = 1.64  # standard deviations over the critics: one-sided 95 %


def vetoed(outcomes: Tensor, advised: Tensor) -> Tensor:
    """Say where an advised action promises clearly less than the best one.

    With G_k(a) what critic k expects of action a, the veto falls where the mean over k of
    G_k(advised) - max_a G_k(a), plus SURE standard deviations of the same, is below -MARGIN.

    Args:
        outcomes: G_k(a) in return scales, (K, N, A), K at least 2.
        advised: The advised actions, (N,) long.

    Returns:
        (N,) bool.
    """
    chosen = outcomes.gather(-1, advised.expand(len(outcomes), -1).unsqueeze(-1)).squeeze(-1)  # (K, N)
    loss = chosen - outcomes.amax(-1)
    sure: Tensor = loss.mean(0) + SURE * loss.std(0) < -MARGIN
    return sure & torch.isfinite(loss).all(0)

"""Where a monotone function of one number meets a level, for many rows at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

POINTS, PASSES = 48, 4  # the last bracket is (1 / 47)^4 of the first: 2e-7


def bracket(
    falling: Callable[[Tensor], Tensor], level: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The narrow part of [low, high] in which falling(x) passes `level`, low and high (N,).

    falling: x (N, G) -> (N, G), not rising in x. At the lower end it is still above the level, unless it
    never was: then the bracket lies at `low`; where it never falls below it, at `high`.
    """
    share = torch.linspace(0, 1, POINTS, dtype=low.dtype, device=low.device)
    for _ in range(PASSES):
        x = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * share  # (N, G)
        above = (falling(x) > level.unsqueeze(-1)).sum(-1, keepdim=True).clamp(1, POINTS - 1)
        low, high = x.gather(-1, above - 1).squeeze(-1), x.gather(-1, above).squeeze(-1)
    return low, high

"""Where a monotone function of one number meets a level, for many rows at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

POINTS, PASSES = 48, 4  # the last interval is (1 / 47)^4 of the first: 2e-7


def crossing_interval(
    falling: Callable[[Tensor], Tensor], level: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the narrow interval in which a falling function crosses a level, for N rows at once.

    Args:
        falling: The function, x (N, G) -> (N, G); it never rises in x.
        level: The level of each row, (N,).
        low: Lower end of the interval that is searched, (N,).
        high: Upper end, (N,).

    Returns:
        Lower and upper end of the narrow interval, (N,) each. Where the function starts below the level, the
            interval lies at `low`; where it never falls below the level, at `high`.
    """
    share = torch.linspace(0, 1, POINTS, dtype=low.dtype, device=low.device)
    for _ in range(PASSES):
        x = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * share  # (N, G)
        above = (falling(x) > level.unsqueeze(-1)).sum(-1, keepdim=True).clamp(1, POINTS - 1)
        low, high = x.gather(-1, above - 1).squeeze(-1), x.gather(-1, above).squeeze(-1)
    return low, high

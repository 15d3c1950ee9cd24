"""Networks side by side that learn from different halves of the data: where they differ, they do not know.

Source: Osband et al. 2016 (arXiv 1602.04621, bootstrap masks).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lore.nn.layers import NORM_EPS, trunc_normal


class MemberMLP(nn.Module):
    """K two-layer networks side by side: (N, fan_in) -> (K, N, fan_out). scale: of the output weights."""

    def __init__(
        self, members: int, fan_in: int, units: int, fan_out: int, rng: torch.Generator, scale: float = 1.0
    ):
        super().__init__()
        self.weight_in = nn.Parameter(trunc_normal((members, fan_in, units), fan_in, 1.0, rng))
        self.bias_in = nn.Parameter(torch.zeros(members, 1, units))
        self.scale = nn.Parameter(torch.ones(members, 1, units))
        self.weight_out = nn.Parameter(trunc_normal((members, units, fan_out), units, scale, rng))
        self.bias_out = nn.Parameter(torch.zeros(members, 1, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.matmul(x, self.weight_in) + self.bias_in  # (K, N, units)
        hidden = F.silu(F.rms_norm(hidden, (hidden.shape[-1],), eps=NORM_EPS) * self.scale)
        return torch.baddbmm(self.bias_out, hidden, self.weight_out)


def bootstrap_mask(index: Tensor, members: int) -> Tensor:
    """Which members learn from which replay row: (...) row numbers -> (K, ...) of 0 and 2, mean 1.

    A fixed hash of the row, so that a member sees the same half of the data every time it comes up.
    """
    row = index.unsqueeze(0) * members + torch.arange(members, device=index.device).view(
        -1, *[1] * index.dim()
    )
    mixed = row * 2654435761 & 0xFFFFFFFF
    mixed = (mixed ^ (mixed >> 15)) * 2246822519 & 0xFFFFFFFF
    return 2.0 * (mixed >> 17 & 1).float()

"""Networks side by side that learn from different halves of the data: where they differ, they do not know.

Source: Osband et al. 2016 (arXiv 1602.04621, bootstrap masks).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lore.nn import fused, products
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
        """Outputs of all members.

        Args:
            x: (N, fan_in), the same for every member. No gradient reaches it.

        Returns:
            (K, N, fan_out), in the type of x.
        """
        x = x.detach()
        if len(x) >= products.ONEDNN_ROWS and fused.native_kernel("norm_silu", x) is not None:
            weights = (self.weight_in, self.bias_in, self.scale, self.weight_out, self.bias_out)
            return _Members.apply(x, *weights)  # type: ignore[return-value]
        hidden = torch.matmul(x, self.weight_in) + self.bias_in  # (K, N, units)
        hidden = F.silu(F.rms_norm(hidden, (hidden.shape[-1],), eps=NORM_EPS) * self.scale)
        return torch.baddbmm(self.bias_out, hidden, self.weight_out)


class _Members(torch.autograd.Function):
    """`MemberMLP.forward` for many rows: the first layers of all members are one product."""

    @staticmethod
    def forward(ctx, x, weight_in, bias_in, scale, weight_out, bias_out):  # type: ignore[override]
        members, _, units = weight_in.shape
        side_by_side = weight_in.transpose(0, 1).flatten(1)  # (fan_in, K * units)
        z = products.linear(x, side_by_side.t(), bias_in.flatten())
        z = z.view(len(x), members, units).transpose(0, 1).contiguous()  # (K, N, units)
        hidden = torch.empty_like(z)
        roots = [fused.norm_silu_forward(z[k], scale[k, 0], hidden[k])[1] for k in range(members)]
        ctx.save_for_backward(x, z, hidden, scale, weight_out, *roots)
        return torch.baddbmm(bias_out, hidden, weight_out)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, z, hidden, scale, weight_out, *roots = ctx.saved_tensors
        members, rows, units = z.shape
        grad = grad.contiguous()
        grad_hidden = torch.bmm(grad, weight_out.mT)
        grad_z, grad_scale = z.new_empty(rows, members, units), torch.empty_like(scale)
        for k in range(members):
            into_z, into_scale = fused.norm_silu_back(grad_hidden[k], z[k], roots[k], scale[k, 0])
            grad_z[:, k], grad_scale[k, 0] = into_z, into_scale
        flat = grad_z.flatten(1)  # (N, K * units)
        grad_in = products.outer_sum(x, flat).view(x.shape[1], members, units).transpose(0, 1)
        grad_bias_in = products.column_sum(flat).view(members, 1, units)
        grad_bias_out = torch.stack([products.column_sum(g) for g in grad]).unsqueeze(1)
        return None, grad_in, grad_bias_in, grad_scale, torch.bmm(hidden.mT, grad), grad_bias_out


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

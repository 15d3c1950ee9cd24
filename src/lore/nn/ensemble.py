"""Networks side by side that learn from different halves of the data: where they differ, they do not know.

Source: Osband et al. 2016 (arXiv 1602.04621, bootstrap masks).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lore.nn import fused, products
from lore.nn.layers import NORM_EPS, trunc_normal

ROWS_STEP = 16  # rows of a member are filled up to a multiple: oneDNN prepares each new size at some cost


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
        learns = fused.needs_grad(self.weight_in)
        if not learns and fused.native_kernel("members", x) is not None:
            return self._few(x) if len(x) < products.ONEDNN_ROWS else self._many(x)
        hidden = torch.matmul(x, self.weight_in) + self.bias_in  # (K, N, units)
        hidden = F.silu(F.rms_norm(hidden, (hidden.shape[-1],), eps=NORM_EPS) * self.scale)
        return torch.baddbmm(self.bias_out, hidden, self.weight_out)

    @torch.no_grad()
    def with_choices(self, x: Tensor, choices: int) -> Tensor:
        """Outputs of all members for each row with each of some choices.

        Args:
            x: (N, fan_in - A).
            choices: A; a choice is the last A inputs, one of them 1.

        Returns:
            (K, N * A, fan_out), the choices of a row one after the other, in the type of x.
        """
        if fused.native_kernel("members", x) is not None:
            return self._few(x, choices)
        chosen = torch.eye(choices, dtype=x.dtype, device=x.device).repeat(len(x), 1)
        return self(torch.cat([x.repeat_interleave(choices, 0), chosen], 1))

    def _few(self, x: Tensor, choices: int = 0) -> Tensor:
        """`forward` in one native call; between its input and output it rounds nothing to a shorter type."""
        members, _, units = self.weight_in.shape
        rows, outputs = len(x) * max(1, choices), self.weight_out.shape[2]
        out = x.new_empty(members, rows, outputs)
        space = torch.empty(rows * (units + outputs) + (len(x) + 1) * units)
        weights = (self.weight_in, self.bias_in, self.scale, self.weight_out, self.bias_out)
        kernel = fused.native_kernel("members", x)
        assert kernel is not None
        sizes = (members, len(x), x.shape[1], choices, units, outputs)
        kernel(x.contiguous(), *weights, out, space, *sizes, NORM_EPS)
        return out

    def _many(self, x: Tensor) -> Tensor:
        """`forward` with the first layers of all members as one product."""
        members, _, units = self.weight_in.shape
        side_by_side = self.weight_in.transpose(0, 1).flatten(1)  # (fan_in, K * units)
        z = products.linear(x, side_by_side.t(), self.bias_in.flatten())
        z = z.view(len(x), members, units).transpose(0, 1).contiguous()  # (K, N, units)
        hidden = torch.empty_like(z)
        for k in range(members):
            fused.norm_silu_forward(z[k], self.scale[k, 0], hidden[k])
        return torch.baddbmm(self.bias_out, hidden, self.weight_out)

    def on_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """Outputs of each member for some rows, where there are kernels; differentiable in the weights.

        Args:
            x: (N, fan_in). No gradient reaches it.
            rows: Numbers of each member's rows, (K, P).

        Returns:
            (K, P, fan_out), in the type of x.
        """
        weights = (self.weight_in, self.bias_in, self.scale, self.weight_out, self.bias_out)
        return _OnRows.apply(x.detach(), rows, *weights)  # type: ignore[return-value]


class _OnRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, weight_in, bias_in, scale, weight_out, bias_out):  # type: ignore[override]
        inputs = x.index_select(0, rows.flatten()).view(*rows.shape, -1)  # (K, P, fan_in)
        z = torch.baddbmm(bias_in, inputs, weight_in)
        hidden, roots = fused.norm_silu_groups(z, scale)
        ctx.save_for_backward(inputs, z, hidden, roots, scale, weight_out)
        return torch.baddbmm(bias_out, hidden, weight_out)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        inputs, z, hidden, roots, scale, weight_out = ctx.saved_tensors
        grad = grad.contiguous()
        grad_z, grad_scale = fused.norm_silu_groups_back(torch.bmm(grad, weight_out.mT), z, roots, scale)
        return (
            None,
            None,
            torch.bmm(inputs.mT, grad_z),
            products.column_sums(grad_z),
            grad_scale.to(scale.dtype),
            torch.bmm(hidden.mT, grad),
            products.column_sums(grad),
        )


def bootstrapped(
    net: MemberMLP, x: Tensor, target: Tensor, index: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Mean over members of a loss, of which each member learns from its half of the rows.

    On a CPU the other half is not computed. On a card, where counting the rows would make the host wait, it
    is computed and multiplied by 0: the definition.

    Args:
        net: The members.
        x: Their input, (..., F). No gradient reaches it.
        target: What their outputs are compared with, (..., *).
        index: Row numbers in the replay, (...).
        loss: Outputs (K, N, fan_out) and targets (N, *) or (K, N, *) -> the losses (K, N).

    Returns:
        (...), float32 (float64 for such outputs).
    """
    flat, targets = x.detach().flatten(0, -2), target.detach().flatten(0, index.dim() - 1)
    members = len(net.weight_in)
    mask = bootstrap_mask(index.flatten(), members)  # (K, N)
    if len(flat) < products.ONEDNN_ROWS or fused.native_kernel("members", flat) is None:
        return (mask * loss(net(flat), targets)).mean(0).view(index.shape)
    most = int(mask.count_nonzero(1).max())
    chosen = -(-most // ROWS_STEP) * ROWS_STEP
    rows = mask.argsort(dim=1, descending=True, stable=True)[
        :, :chosen
    ]  # (K, P): a member's own rows, some more
    flat_rows = rows.flatten()
    chosen_targets = targets.index_select(0, flat_rows).view(*rows.shape, *targets.shape[1:])
    losses = mask.gather(1, rows) * loss(net.on_rows(flat, rows), chosen_targets) / members
    return torch.zeros(len(flat)).index_add(0, flat_rows, losses.flatten()).view(index.shape)


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

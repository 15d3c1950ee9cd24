"""Matrix products, by whatever is fast for them on this device.

On AMD processors MKL, torch's default for float32, runs at half of oneDNN's speed; with few rows neither
matters. Letters: N rows, I inputs, O outputs, g blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lore.nn.fused import NAMES, native_kernel, needs_grad

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
BFLOAT16 = ONEDNN is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether this processor computes bfloat16 products (AVX-512 or better); elsewhere torch emulates them."""
ONEDNN_ROWS = 64  # with fewer, starting it costs more than it saves


def _onednn(x: Tensor, rows: int) -> bool:
    """Whether oneDNN does this float32 product: on AMD processors MKL leaves half of their speed unused."""
    return x.dtype == torch.float32 and rows >= ONEDNN_ROWS and x.device.type == "cpu" and ONEDNN is not None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One product, without gradient.

    Args:
        x: (N, I).
        weight: (O, I).
        bias: (O,).

    Returns:
        x @ weight.T + bias, (N, O).
    """
    one_pass = bias is not None and x.dtype == torch.bfloat16 and x.is_contiguous()  # torch takes two
    if not (one_pass and BFLOAT16) and not _onednn(x, max(len(x), len(weight), x.shape[1])):
        return F.linear(x, weight, bias)
    # it wants operands that are dense one way or the other
    x, weight = (m if m.is_contiguous() or m.t().is_contiguous() else m.contiguous() for m in (x, weight))
    assert ONEDNN is not None
    return ONEDNN(x, weight, bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear map of the last axis; differentiable.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,).

    Returns:
        x @ weight.T + bias, (..., O).
    """
    rows = x.numel() // x.shape[-1]
    if rows < ONEDNN_ROWS or x.device.type != "cpu" or x.dtype not in NAMES:
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, -1)
    inputs = (x, weight) if bias is None else (x, weight, bias)
    flat = _Linear.apply(flat, weight, bias) if needs_grad(*inputs) else product(flat, weight, bias)
    return flat.view(*x.shape[:-1], len(weight))  # type: ignore[attr-defined]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if need_x else None,
            product(grad.t(), x.t()) if need_weight else None,
            column_sum(grad) if need_bias else None,
        )


def column_sum(x: Tensor) -> Tensor:
    """Sum over rows, without gradient. Equal columns have exactly equal sums.

    Args:
        x: (N, K).

    Returns:
        (K,), in the type of x.
    """
    kernel = native_kernel("column_sum", x)
    if kernel is None:
        return x.sum(0)
    out = x.new_empty(x.shape[1])
    kernel(x.contiguous(), out, *x.shape)
    return out


def column_sums(x: Tensor) -> Tensor:
    """`column_sum` of K groups of rows: (K, N, U) -> (K, 1, U), in the type of x."""
    kernel = native_kernel("column_sums", x)
    if kernel is None:
        return x.sum(1, keepdim=True)
    out = x.new_empty(len(x), 1, x.shape[2])
    kernel(x.contiguous(), out, *x.shape)
    return out


def outer_sum(x: Tensor, y: Tensor) -> Tensor:
    """Sum over rows of their outer products, without gradient.

    Args:
        x: (N, I).
        y: (N, O).

    Returns:
        x.T @ y, (I, O).
    """
    return product(x.t(), y.t())


def multiply_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """Each block of rows times the weight of its block; differentiable.

    Args:
        x: (g, N, I).
        weight: (g, I, O).

    Returns:
        (g, N, O).
    """
    if needs_grad(x, weight) or not _onednn(x, x.shape[1]):
        return torch.bmm(x, weight)
    out = x.new_empty(*x.shape[:2], weight.shape[2])
    for block, rows, kernel in zip(out, x, weight, strict=True):
        block.copy_(product(rows, kernel.t()))
    return out

"""Linear layer, norm and SiLU in one pass over the rows, and the layout of weights that this takes.

On a processor that multiplies bfloat16 (AVX-512 BF16) dense.cpp computes both; everywhere else, and for
other types, `products.linear` and `fused.norm_silu` do, which are the definition. Letters: N rows, I inputs,
O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lore.nn import fused
from lore.nn.fused import NORM_EPS, native_kernel, needs_grad
from lore.nn.products import ONEDNN_ROWS, column_sum, linear, product

LARGEST = 1 << 20  # entries of a weight; oneDNN divides larger ones better
VECTOR = 16  # outputs that are computed together


def multiplies(x: Tensor) -> bool:
    """Whether rows like those of x are multiplied by dense.cpp."""
    if x.dtype != torch.bfloat16 or x.numel() // max(1, x.shape[-1]) < ONEDNN_ROWS:
        return False
    answer = native_kernel("multiplies", x)
    return answer is not None and bool(answer())


def pack(weight: Tensor) -> Tensor:
    """A weight in the order in which dense.cpp reads it.

    Args:
        weight: (..., I, O) bfloat16 of any strides; I is even.

    Returns:
        (..., words) int32: for each 16 outputs (filled up with zeros) and each two inputs, 16 pairs.
    """
    blocks = weight.reshape(-1, *weight.shape[-2:])
    inputs, outputs = blocks.shape[1:]
    words = -(-outputs // VECTOR) * VECTOR * (inputs // 2)
    out = torch.empty(len(blocks), words, dtype=torch.int32)
    kernel = native_kernel("pack", blocks)
    assert kernel is not None
    kernel(blocks, *blocks.stride(), out, *blocks.shape)
    return out.view(*weight.shape[:-2], words)


def dense(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """SiLU of the RMS norm of a linear layer, differentiable.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,).
        scale: (O,), of the norm.

    Returns:
        (..., O), in the type of x.
    """
    fits = weight.numel() <= LARGEST and weight.shape[1] % 2 == 0 and multiplies(x)
    if not fits:
        return fused.norm_silu(linear(x, weight, bias), scale)
    flat = x.reshape(-1, x.shape[-1])
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    if needs_grad(x, weight, bias, scale):
        y = _Dense.apply(flat, weight, bias, scale)
    else:
        y = _dense(flat, weight, bias, scale, None, None)
    return y.view(*x.shape[:-1], len(weight))  # type: ignore[attr-defined]


def _dense(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, z: Tensor | None, r: Tensor | None
) -> Tensor:
    """y (N, O); z (N, O) takes what enters the norm and r (N,) the inverse root mean squares, if given."""
    y = x.new_empty(len(x), len(weight))
    kernel = native_kernel("dense", x)
    assert kernel is not None
    sizes = (len(x), x.shape[1], len(weight))
    kernel(x, x.stride(0), weight.contiguous(), bias, scale, z, y, len(weight), r, *sizes, NORM_EPS)
    return y


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        z, r = x.new_empty(len(x), len(weight)), torch.empty(len(x))
        y = _dense(x, weight, bias, scale, z, r)
        ctx.save_for_backward(x, weight, scale, z, r)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight, scale, z, r = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        grad_z, grad_scale = fused.norm_silu_back(grad, z, r, scale)
        return (
            product(grad_z, weight.t()) if need_x else None,
            product(grad_z.t(), x.t()) if need_weight else None,
            column_sum(grad_z) if need_bias else None,
            grad_scale.to(scale.dtype),
        )

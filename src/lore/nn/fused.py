"""The element-wise parts of DreamerV3: what stands between two matrix products.

Torch would pass over memory once for every small operation; each function here passes over it once. Every
function is written twice. The torch operations in this file are the definition: they run on a graphics card,
in float64, and without a C++ compiler. For float32 and bfloat16 on a CPU the function of the same name in
kernels.cpp is called instead; tests hold it to the definition.

Functions whose docstring says "differentiable" may be used under autograd. The others have no gradient:
beside `gru` stands `gru_back`, and so on; `dreamer/scan.py` and `nn/dense.py` put them together.

Letters in shapes: N rows, U units, D deter, g blocks, o = D / g, S latents, K classes, A actions, M targets.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CDLL, c_void_p
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lore.nn.cpu.native import kernels_in_use

NORM_EPS = 1e-4
LONGEST = 16384  # units in a row, as in kernels.cpp
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def native_kernel(name: str, x: Tensor) -> Callable[..., int | None] | None:
    """The C++ function of this name for tensors like x.

    Args:
        name: without its ending for the type, such as "gru".
        x: a tensor of the type, device and row length that the function is to be called with.

    Returns:
        A function of tensors, tuples of tensors (structs in C++), numbers, and None for what is left out; or
        None where torch computes it: on a card, in float64, for rows longer than LONGEST, without a compiler.
    """
    fits = x.is_cpu and x.dtype in NAMES and (x.dim() == 0 or x.shape[-1] <= LONGEST)
    lib = kernels_in_use() if fits else None
    return None if lib is None else _caller(lib, f"{name}_{NAMES[x.dtype]}")


@cache
def _caller(lib: CDLL, name: str) -> Callable[..., int | None]:
    function = getattr(lib, name)

    def call(*args: Tensor | tuple[Tensor, ...] | float | None) -> int | None:
        return function(*map(_plain, args))

    return call


def _plain(value: Any) -> Any:
    """A tensor as its address, tensors together as the C++ struct of their addresses."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, tuple):
        return (c_void_p * len(value))(*[x.data_ptr() for x in value])
    return value


def needs_grad(*inputs: Tensor) -> bool:
    """Whether autograd records what is computed from any of the inputs."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def wide(x: Tensor) -> Tensor:
    """x in the type of arithmetic. Arithmetic is float32, or float64 where the input is."""
    return x if x.dtype == torch.float64 else x.float()


def norm_silu(z: Tensor, scale: Tensor) -> Tensor:
    """SiLU of the RMS norm; differentiable.

    Args:
        z: (..., U).
        scale: (U,), of the norm.

    Returns:
        (..., U), in the type of z.
    """
    if native_kernel("norm_silu", z) is None:
        return F.silu(F.rms_norm(z, (z.shape[-1],), scale, NORM_EPS))
    if needs_grad(z, scale):
        return _NormSilu.apply(z, scale)  # type: ignore[return-value]
    return norm_silu_forward(z, scale)[0]


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        z = z.contiguous()
        y, r = norm_silu_forward(z, scale)
        ctx.save_for_backward(z, r, scale)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        z, r, scale = ctx.saved_tensors
        gz, gscale = norm_silu_back(grad, z, r, scale)
        return gz, gscale.to(scale.dtype)


def norm_silu_forward(z: Tensor, scale: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`norm_silu` with what its gradient needs.

    Args:
        z: (..., U).
        scale: (U,), of the norm.
        out: (N, U) rows to write to, of any stride.

    Returns:
        y (..., U), and the inverse root mean square r (...) of each row, float32.
    """
    kernel = native_kernel("norm_silu", z)
    if kernel is None:
        r = wide(z).square().mean(-1).add_(NORM_EPS).rsqrt_()
        y = F.silu(wide(z) * r.unsqueeze(-1) * scale).to(z.dtype)
        return (y if out is None else out.copy_(y)), r
    z = z.contiguous()
    y = torch.empty(z.shape, dtype=z.dtype) if out is None else out
    r = torch.empty(z.shape[:-1])
    units = z.shape[-1]
    kernel(z, scale, y, units if out is None else out.stride(0), r, r.numel(), units, NORM_EPS)
    return y, r


def norm_silu_back(grad: Tensor, z: Tensor, r: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of `norm_silu`.

    Args:
        grad: of y, (..., U).
        z: (..., U), as it was given to `norm_silu_forward`.
        r: (...), as that gave it.
        scale: (U,), of the norm.

    Returns:
        Gradients of z (..., U) and of the scale (U,), the latter summed in float32.
    """
    kernel = native_kernel("norm_silu_back", z)
    units = z.shape[-1]
    if kernel is None:
        n = wide(z) * r.unsqueeze(-1)
        grad_a = torch.ops.aten.silu_backward(wide(grad), n * scale)
        grad_n = grad_a * scale
        gz = (grad_n - n * (grad_n * n).mean(-1, keepdim=True)) * r.unsqueeze(-1)
        return gz.to(z.dtype), (grad_a * n).reshape(-1, units).sum(0)
    if grad.dim() != 2 or grad.stride(1) != 1:
        grad = grad.contiguous()
    gz, gscale = torch.empty(z.shape, dtype=z.dtype), torch.zeros(units)
    stride = grad.stride(0) if grad.dim() == 2 else units
    kernel(grad, stride, z, r, scale, gz, gscale, r.numel(), units)
    return gz, gscale


def norm_silu_groups(z: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """`norm_silu_forward` of K groups of rows, each with its scale, where there is a kernel for it.

    Args:
        z: (K, N, U), contiguous.
        scale: (K, 1, U).

    Returns:
        y (K, N, U), and the inverse root mean squares (K, N), float32.
    """
    kernel = native_kernel("norm_silu_groups", z)
    assert kernel is not None
    y, r = torch.empty_like(z), torch.empty(z.shape[:2])
    kernel(z, scale, y, r, *z.shape, NORM_EPS)
    return y, r


def norm_silu_groups_back(grad: Tensor, z: Tensor, r: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of `norm_silu_groups`.

    Args:
        grad: Of y, (K, N, U), contiguous.
        z: As it was given, (K, N, U).
        r: As it was returned, (K, N).
        scale: (K, 1, U).

    Returns:
        Gradients of z (K, N, U) and of the scale (K, 1, U), the latter float32.
    """
    kernel = native_kernel("norm_silu_groups_back", z)
    assert kernel is not None
    gz, gscale = torch.empty_like(z), torch.zeros(scale.shape)
    kernel(grad, z, r, scale, gz, gscale, *z.shape)
    return gz, gscale


def core_hidden(
    shared: Tensor, own: Tensor, scale: Tensor, table: Tensor | None = None, action: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The hidden layer of the recurrent core: SiLU of the RMS norm of a sum, split into blocks.

    Differentiable where an input asks for a gradient: torch computes it then.

    Args:
        shared: (N, D), what all blocks see.
        own: (g, N, o), what each block makes of its slice of deter.
        scale: (D,), of the norm.
        table: (A, D), what each action adds.
        action: (N,), the row of the table.

    Returns:
        The hidden layer (g, N, o); its sum z (N, D) before the norm, None with a table, which has no
        gradient; and the inverse root mean square (N,) of each row.
    """
    g, n, o = own.shape
    kernel = None if needs_grad(shared, own, scale) else native_kernel("core_hidden", shared)
    if kernel is None:
        z = shared + own.transpose(0, 1).reshape(n, g * o)
        if table is not None:
            z = z + table[action]
        r = wide(z).square().mean(-1).add(NORM_EPS).rsqrt()
        hidden = F.silu(wide(z) * r.unsqueeze(-1) * scale).to(z.dtype)
        return hidden.unflatten(-1, (g, o)).transpose(0, 1), None if table is not None else z, r
    kept = shared.new_empty(n, g * o) if table is None else None
    hidden, r = own.new_empty(g, n, o), torch.empty(n)
    kernel(shared, table, action, own.contiguous(), scale, hidden, n * o, kept, r, n, g, o, NORM_EPS)
    return hidden, kept, r


def gru(gates: Tensor, bias: Tensor, deter: Tensor, out: Tensor | None = None, keep: bool = False) -> Tensor:
    """The gated update of the recurrent state.

    Differentiable where an input asks for a gradient: torch computes it then.

    Args:
        gates: (g, N, 3o), reset, candidate and update of each block, without their bias.
        bias: (g * 3o,).
        deter: (N, D), the old state.
        out: (N, D) rows to write to, of any stride.
        keep: leave what `gru_back` needs in `gates`: sigmoid(reset), the candidate before its gate, and
            sigmoid(update).

    Returns:
        The new state (N, D).
    """
    g, n, gate = gates.shape
    o = gate // 3
    kernel = None if needs_grad(gates, bias, deter) else native_kernel("gru", gates)
    if kernel is None:
        reset, inner, update = (wide(gates) + wide(bias).view(g, 1, gate)).chunk(3, -1)
        reset, update = torch.sigmoid(reset), torch.sigmoid(update - 1)
        candidate = torch.tanh(reset * inner)
        old = deter.unflatten(-1, (g, o)).transpose(0, 1)
        new = torch.lerp(wide(old), candidate, update).to(deter.dtype).transpose(0, 1).flatten(1)
        if keep:
            gates.copy_(torch.cat([reset, inner, update], -1))
        return new if out is None else out.copy_(new)
    new = torch.empty(n, g * o, dtype=deter.dtype) if out is None else out
    kernel(gates, n * gate, bias, deter, deter.stride(0), new, new.stride(0), int(keep), n, g, o)
    return new


def gru_back(grad: Tensor, kept: Tensor, deter: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of `gru`.

    Args:
        grad: of the new state, (N, D).
        kept: (g, N, 3o), what `gru` left in its gates.
        deter: (N, D), the old state, contiguous.

    Returns:
        Gradients of the gates (g, N, 3o), and of the old state (N, D) where it enters the update itself.
    """
    g, n, gate = kept.shape
    o = gate // 3
    kernel = native_kernel("gru_back", kept) if kept.dtype == torch.float32 else None
    if kernel is None:
        reset, inner, update = kept.chunk(3, -1)
        candidate = torch.tanh(reset * inner)
        grad_new = grad.unflatten(-1, (g, o)).transpose(0, 1)
        old = deter.unflatten(-1, (g, o)).transpose(0, 1)
        grad_inner = grad_new * update * (1 - candidate.square())
        grad_reset = grad_inner * inner * reset * (1 - reset)
        grad_update = grad_new * (candidate - old) * update * (1 - update)
        back = (grad_new * (1 - update)).transpose(0, 1).flatten(1)
        return torch.cat([grad_reset, grad_inner * reset, grad_update], -1), back
    ggates, gdeter = torch.empty_like(kept), torch.empty(n, g * o)
    kernel(grad.contiguous(), kept, n * gate, deter, ggates, gdeter, n, g, o)
    return ggates, gdeter


def sample(
    logits: Tensor, uniform: Tensor, mix: float = 0.0, hot: Tensor | None = None, probs: Tensor | None = None
) -> Tensor:
    """Draw classes by the inverse of the cumulative (1 - mix) * softmax(logits) + mix / K.

    A class of probability zero is never drawn.

    Args:
        logits: (N, S, K), contiguous; K is at most 256.
        uniform: (N, S) in [0, 1).
        mix: share of the uniform distribution.
        hot: (N, S*K) rows of any stride that take the one-hot classes.
        probs: (N, S, K) float32 that takes the probabilities.

    Returns:
        Class numbers (N, S), uint8.
    """
    n, s, k = logits.shape
    kernel = native_kernel("sample", logits)
    index = torch.empty(n, s, dtype=torch.uint8, device=logits.device)
    if kernel is None:
        p = (1.0 - mix) * wide(logits).movedim(-1, 0).contiguous().softmax(0) + mix / k  # (K, N, S)
        edges = p[:-1].cumsum(0)
        last = k - 1 - (p.flip(0) > 0).int().argmax(0)  # the sum of the others may round to less than one
        index.copy_(torch.minimum((uniform >= edges).sum(0), last))
        if probs is not None:
            probs.copy_(p.movedim(0, -1))
        if hot is not None:
            hot.zero_()
            flat = index.long() + torch.arange(0, s * k, k, device=index.device)
            hot.scatter_(-1, flat, 1)
        return index
    kernel(logits, uniform, index, hot, 0 if hot is None else hot.stride(0), probs, n, s, k, mix)
    return index


def sample_back(grads: list[Tensor], probs: Tensor, mix: float) -> Tensor:
    """Gradient of the logits that `sample` was given, through its probabilities.

    Args:
        grads: one to three gradients of the probabilities, each (..., K); their sum counts.
        probs: (..., K), as `sample` wrote them.
        mix: share of the uniform distribution.

    Returns:
        (..., K).
    """
    k = probs.shape[-1]
    kernel = native_kernel("sample_back", probs) if probs.dtype == torch.float32 else None
    if kernel is None:
        soft = (probs - mix / k) / (1.0 - mix)
        weighted = sum(g.reshape(probs.shape) for g in grads) * (1.0 - mix) * soft
        return weighted - soft * weighted.sum(-1, keepdim=True)
    out = torch.empty_like(probs)
    parts = [g.contiguous() for g in grads]
    kernel(*parts, *[None] * (3 - len(parts)), probs, out, probs.numel() // k, k, mix)
    return out


def laprop(
    grad: Tensor,
    factors: Tensor,
    sizes: list[int],
    second: Tensor,
    first: Tensor,
    master: Tensor,
    weights: Tensor,
    beta1: float,
    beta2: float,
    correct2: float,
    eps: float,
    rate: float,
) -> None:
    """One step of LaProp (Ziyin et al. 2020, arXiv 2002.04839) in place on flat buffers.

    Args:
        grad: gradients of all tensors, one after the other.
        factors: what the gradient of each tensor is multiplied by.
        sizes: lengths of the tensors.
        second: running mean of squared gradients.
        first: running mean of normalised gradients.
        master: float32 weights.
        weights: takes the new weights in the type of the networks.
        beta1: decay of `first`.
        beta2: decay of `second`.
        correct2: 1 - beta2 ** updates.
        eps: added to the root of `second`.
        rate: learning rate over 1 - beta1 ** updates.
    """
    kernel = native_kernel("laprop", grad[:1])  # one long buffer, no row that would have to fit another
    if kernel is None:
        factor = torch.cat([f.expand(size) for f, size in zip(factors, sizes, strict=True)])
        scaled = wide(grad) * factor
        second.lerp_(scaled.square(), 1.0 - beta2)
        first.lerp_(scaled / second.div(correct2).sqrt_().add_(eps), 1.0 - beta1)
        master.add_(first, alpha=-rate)
        weights.copy_(master)
        return
    lengths = torch.tensor(sizes)
    buffers = (second, first, master, weights)
    kernel(grad, factors, lengths, len(sizes), *buffers, beta1, beta2, correct2, eps, rate)


def norms(flat: Tensor, sizes: list[int]) -> Tensor:
    """Euclidean norms of the pieces of a flat buffer.

    Args:
        flat: the pieces, one after the other.
        sizes: their lengths.

    Returns:
        One norm a piece, float32.
    """
    kernel = native_kernel("norms", flat[:1])
    if kernel is None:
        return torch.stack(torch._foreach_norm(wide(flat).split(sizes)))
    out = torch.empty(len(sizes))
    kernel(flat, torch.tensor(sizes), len(sizes), out)
    return out

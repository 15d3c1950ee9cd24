"""Log-likelihoods of categoricals: the normaliser of logits, and cross-entropies with their gradients.

As in `fused`, the torch operations are the definition, and kernels.cpp computes the same on a CPU.

Letters in shapes: S latents, K classes, M targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor

from lore.nn.fused import LONGEST, native_kernel, wide


@overload
def log_sum(logits: Tensor) -> tuple[Tensor, None]: ...
@overload
def log_sum(logits: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]: ...
def log_sum(logits: Tensor, bins: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Log of the sum of exponentials and, given bins, their mean under the softmax.

    For an odd K, bins of opposite sign are paired before they are summed, so that equal logits give exactly
    zero.

    Args:
        logits: (..., K).
        bins: (K,).

    Returns:
        (...) each, float32; the mean is None without bins.
    """
    kernel = native_kernel("log_sum", logits)
    if kernel is None:
        logits = wide(logits)
        norm = logits.logsumexp(-1)
        if bins is None:
            return norm, None
        half = len(bins) // 2
        probs = (logits - norm.unsqueeze(-1)).exp()
        pairs = probs[..., half + 1 :] - probs[..., :half].flip(-1)
        return norm, pairs @ bins[half + 1 :].to(pairs.dtype)
    logits = logits.contiguous()
    norm = torch.empty(logits.shape[:-1])
    mean = None if bins is None else torch.empty(logits.shape[:-1])
    kernel(logits, bins, norm, mean, norm.numel(), logits.shape[-1])
    return norm, mean


def cross_entropy(logits: Tensor, log_norm: Tensor, index: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum over M targets of weight * (log_norm - logits[index]); differentiable in the logits.

    Args:
        logits: (..., K).
        log_norm: (...), what `log_sum` gives for them.
        index: (..., M), classes.
        weight: (..., M); 1 where it is left out.

    Returns:
        (...), float32.
    """
    return _CrossEntropy.apply(logits, log_norm, index, weight)  # type: ignore[return-value]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, log_norm: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(logits, log_norm, index, weight)
        picked = wide(logits.gather(-1, index))
        if weight is None:
            return index.shape[-1] * log_norm - picked.sum(-1)
        return weight.sum(-1) * log_norm - (weight * picked).sum(-1)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        logits, log_norm, index, weight = ctx.saved_tensors
        kernel = native_kernel("cross_entropy_back", logits)
        if kernel is None:
            grad = grad.unsqueeze(-1)
            shares = torch.ones_like(index, dtype=grad.dtype) if weight is None else weight
            back = (wide(logits) - log_norm.unsqueeze(-1)).exp() * (shares.sum(-1, keepdim=True) * grad)
            return back.scatter_add_(-1, index, -shares * grad).to(logits.dtype), None, None, None
        out = torch.empty(logits.shape, dtype=logits.dtype)
        weight = None if weight is None else weight.contiguous()
        inputs = (logits.contiguous(), log_norm.contiguous(), index.contiguous(), weight, grad.contiguous())
        kernel(*inputs, out, log_norm.numel(), logits.shape[-1], index.shape[-1])
        return out, None, None, None


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of S independent categoricals to probabilities, summed over S; differentiable in logits.

    Args:
        logits: (..., S, K).
        target: probabilities of these, or of the last axes of these: then the same for all before.

    Returns:
        (...), float32.
    """
    return _SoftCrossEntropy.apply(logits, target)  # type: ignore[return-value]


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        log_norm, _ = log_sum(logits)
        ctx.save_for_backward(logits, log_norm, target)
        kernel = _soft_kernel("soft_cross_entropy", logits, target)
        if kernel is None:
            total = target.sum(-1)  # 1 but for rounding
            return (total * log_norm).sum(-1) - (target * wide(logits)).flatten(-2).sum(-1)
        loss = torch.empty(log_norm.shape[:-1])
        kernel(logits.contiguous(), log_norm, target.contiguous(), loss, loss.numel(), *logits.shape[-2:])
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        logits, log_norm, target = ctx.saved_tensors
        kernel = _soft_kernel("soft_cross_entropy_back", logits, target)
        if kernel is None:
            probs = wide(logits).sub(log_norm.unsqueeze(-1)).exp_()
            back = probs.mul_(target.sum(-1, keepdim=True)).sub_(target).mul_(grad[..., None, None])
            return back.to(logits.dtype), None
        back = torch.empty(logits.shape, dtype=logits.dtype)
        inputs = (logits.contiguous(), log_norm, target.contiguous(), grad.contiguous())
        kernel(*inputs, back, grad.numel(), *logits.shape[-2:])
        return back, None


def _soft_kernel(name: str, logits: Tensor, target: Tensor) -> Callable[..., int | None] | None:
    """The kernel, where there is a target of float32 for each of the logits and a row is not too long."""
    fits = target.shape == logits.shape and target.dtype == torch.float32
    return native_kernel(name, logits.flatten(-2)) if fits else None


def spread(logits: Tensor) -> Tensor:
    """Variance between K opinions of a probability, averaged over S categoricals and their classes.

    Args:
        logits: (K, N, S, classes).

    Returns:
        (N,), float32; no gradient.
    """
    members, rows, latents, classes = logits.shape
    kernel = native_kernel("spread", logits) if members * latents * classes <= LONGEST else None
    if kernel is None:
        probs = wide(logits).softmax(-1)
        apart = probs - probs.mean(0)  # written out: torch's var is ten times slower here
        return apart.square_().sum(0).mean((-2, -1)).div(members - 1)
    out = torch.empty(rows)
    kernel(logits.contiguous(), out, members, rows, latents, classes)
    return out

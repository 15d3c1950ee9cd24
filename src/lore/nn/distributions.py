"""The distributions of DreamerV3: symlog, two-hot over symexp bins, categoricals with a uniform share.

Mathematics only: numbers and tensors in, tensors out. Everything here expects float32.
Source: Hafner et al. 2023 (arXiv 2301.04104), sections "Robust predictions" and "World model learning".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_CLASSES = 16  # below this, softmax over the innermost axis is several times slower than over the first


def symlog(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log1p(torch.abs(x))


def fast_tanh(x: Tensor) -> Tensor:
    """tanh of float32 by way of the sigmoid, which torch computes several times faster on a CPU.

    Not for bfloat16: near 0 it would round to multiples of 1/128.
    """
    return torch.sigmoid(x * 2).mul(2).sub_(1)


def symexp(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.expm1(torch.abs(x))


def symexp_bins(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Bin centres: symexp of `count` equal steps on [-20, 20], exactly antisymmetric. count is odd.

    Raises ValueError for an even count: the middle bin must be exactly zero.
    """
    if count % 2 == 0:
        raise ValueError(f"agent.bins must be odd, so that one bin is exactly zero, not {count}")
    half = symexp(torch.linspace(-20.0, 0.0, (count - 1) // 2 + 1, device=device))
    return torch.cat([half, -half[:-1].flip(0)])


def two_hot(x: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two bins next to x and the weight of the upper one: (below, above, weight), each x.shape.

    weight * bins[above] + (1 - weight) * bins[below] == x within the range of the bins.
    """
    above = torch.searchsorted(bins, x.contiguous(), right=True).clamp(1, len(bins) - 1)
    below = above - 1
    low, high = bins[below], bins[above]
    return below, above, ((x - low) / (high - low)).clamp(0.0, 1.0)


class _TwoHotLoss(torch.autograd.Function):
    """Cross-entropies of one categorical to several two-hot targets, without building the targets."""

    @staticmethod
    def forward(ctx, logits: Tensor, probs: Tensor, log_norm: Tensor, index: Tensor, weight: Tensor):  # type: ignore[override]
        ctx.save_for_backward(probs, index, weight)
        ctx.dtype = logits.dtype
        picked = logits.gather(-1, index).float()
        return weight.sum(-1) * log_norm - (weight * picked).sum(-1)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        probs, index, weight = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        back = probs * (weight.sum(-1, keepdim=True) * grad)
        return back.scatter_add_(-1, index, -weight * grad).to(ctx.dtype), None, None, None, None


class TwoHot:
    """Categorical over antisymmetric bins, read as a real number. logits: (..., bins), any float type."""

    def __init__(self, logits: Tensor, bins: Tensor):
        self.logits, self.bins = logits, bins
        shifted = logits.detach().float()
        top = shifted.amax(-1, keepdim=True)
        powers = (shifted - top).exp_()
        total = powers.sum(-1, keepdim=True)
        self.probs = powers.div_(total)
        self.log_norm = (top + total.log()).squeeze(-1)  # (...): log of the sum of exponentials

    @property
    def mean(self) -> Tensor:
        """Expected value (...), float32, without gradient.

        Bins of opposite sign are paired before they are summed, so that equal logits give exactly zero.
        """
        half = len(self.bins) // 2
        return (self.probs[..., half + 1 :] - self.probs[..., :half].flip(-1)) @ self.bins[half + 1 :]

    def loss(self, *targets: Tensor, weights: tuple[float, ...] | None = None) -> Tensor:
        """Sum over targets (each (...)) of weight * cross-entropy from two_hot(target): (...)."""
        indices, shares = [], []
        for target, weight in zip(targets, weights or (1.0,) * len(targets), strict=True):
            below, above, upper = two_hot(target.detach(), self.bins)
            indices += [below, above]
            shares += [weight * (1.0 - upper), weight * upper]
        args = (self.probs, self.log_norm, torch.stack(indices, -1), torch.stack(shares, -1))
        return _TwoHotLoss.apply(self.logits, *args)  # type: ignore[return-value]

    def __getitem__(self, rows: slice) -> TwoHot:
        """The distributions of some rows of the first axis; nothing is computed again."""
        part = object.__new__(TwoHot)
        part.logits, part.bins = self.logits[rows], self.bins
        part.probs, part.log_norm = self.probs[rows], self.log_norm[rows]
        return part


def unimix_probs(logits: Tensor, mix: float) -> Tensor:
    """(1 - mix) * softmax(logits) + mix * uniform, over the last axis."""
    classes = logits.shape[-1]
    if classes < FEW_CLASSES:
        probs = logits.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1).contiguous()
    else:
        probs = logits.softmax(-1)
    return (1.0 - mix) * probs + mix / classes


def sample_index(probs: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF sample. probs: (..., K). uniform: (...) in [0, 1). Returns class indices (...)."""
    classes = probs.shape[-1]
    if classes < FEW_CLASSES:
        edge = probs[..., 0]
        index = (uniform >= edge).long()
        for k in range(1, classes - 1):
            edge = edge + probs[..., k]
            index += uniform >= edge
        return index
    index = torch.searchsorted(probs.cumsum(-1), uniform.unsqueeze(-1), right=True).squeeze(-1)
    return index.clamp_(max=classes - 1)


def one_hot(index: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(...) -> (..., classes)."""
    out = torch.zeros(*index.shape, classes, dtype=dtype, device=index.device)
    return out.scatter_(-1, index.long().unsqueeze(-1), 1)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hot: Tensor, probs: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtype = probs.dtype
        return hot.view_as(hot)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return None, grad.to(ctx.dtype)


def straight_through(hot: Tensor, probs: Tensor) -> Tensor:
    """The sample `hot` going forward, the gradient of `probs` coming back (Bengio et al. 2013)."""
    return _StraightThrough.apply(hot, probs)


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of probabilities (..., S, K), summed over S and K: (...)."""
    return (p * (p.log() - q.log())).sum((-2, -1))


def categorical_entropy(p: Tensor) -> Tensor:
    """Entropy of probabilities (..., S, K), summed over S: (...)."""
    return -(p * p.log()).sum((-2, -1))


def class_loss(logits: Tensor, index: Tensor) -> Tensor:
    """Cross-entropy to class indices: logits (..., K), index (...) -> (...)."""
    return F.cross_entropy(logits.flatten(0, -2), index.flatten().long(), reduction="none").view(index.shape)

"""The distributions of DreamerV3: symlog, two-hot over symexp bins, categoricals with a uniform share.

Mathematics only: numbers and tensors in, tensors out. Everything here expects float32.
Source: Hafner et al. 2023 (arXiv 2301.04104), sections "Robust predictions" and "World model learning".
"""

from __future__ import annotations

import torch
from torch import Tensor

from lore.nn import likelihood

FEW_CLASSES = 16  # below this, softmax over the innermost axis is several times slower than over the first


def symlog(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log1p(torch.abs(x))


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


class TwoHot:
    """Categorical over antisymmetric bins, read as a real number. logits: (..., bins), any float type.

    mean: expected value (...), float32, without gradient; exactly zero for equal logits.
    """

    def __init__(self, logits: Tensor, bins: Tensor):
        self.logits, self.bins = logits, bins
        self.log_norm, self.mean = likelihood.log_sum(logits.detach(), bins)

    def loss(self, *targets: Tensor, weights: tuple[float, ...] | None = None) -> Tensor:
        """Sum over targets of weight * cross-entropy from two_hot(target).

        Args:
            targets: numbers, each of the shape of `mean`, or of its last axes: then the same for all before.
            weights: one for each target; 1 where it is left out.

        Returns:
            (...) of the shape of `mean`, float32, differentiable in the logits.
        """
        indices, shares = [], []
        for target, weight in zip(targets, weights or (1.0,) * len(targets), strict=True):
            below, above, upper = two_hot(target.detach(), self.bins)
            indices += [below, above]
            shares += [weight * (1.0 - upper), weight * upper]
        shape = (*self.log_norm.shape, len(indices))
        index, share = (torch.stack(x, -1).expand(shape) for x in (indices, shares))
        return likelihood.cross_entropy(self.logits, self.log_norm, index, share)


def unimix_probs(logits: Tensor, mix: float) -> Tensor:
    """(1 - mix) * softmax(logits) + mix * uniform, over the last axis."""
    classes = logits.shape[-1]
    if classes < FEW_CLASSES:
        probs = logits.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1).contiguous()
    else:
        probs = logits.softmax(-1)
    return (1.0 - mix) * probs + mix / classes


def one_hot(index: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(...) -> (..., classes)."""
    out = torch.zeros(*index.shape, classes, dtype=dtype, device=index.device)
    return out.scatter_(-1, index.long().unsqueeze(-1), 1)


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of probabilities (..., S, K), summed over S and K: (...)."""
    return (p * (p.log() - q.log())).sum((-2, -1))


def class_loss(logits: Tensor, index: Tensor) -> Tensor:
    """Cross-entropy to class indices: logits (..., K), index (...) -> (...), float32."""
    log_norm, _ = likelihood.log_sum(logits.detach())
    return likelihood.cross_entropy(logits, log_norm, index.long().unsqueeze(-1))

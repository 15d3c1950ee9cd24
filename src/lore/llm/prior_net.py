"""The adviser, distilled: an ensemble that gives its advice from the agent's features, and knows when it can.

It reads detached features, so nothing of it reaches the world model. Source of the bootstrap: Osband et al.
2016 (arXiv 1602.04621). Letters: K members, N rows, B sequences of T steps, F features, A actions.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from lore.base.rng import generator
from lore.base.types import SOURCES
from lore.config.options import PriorNetOptions
from lore.llm.asking.controller import prior_logits
from lore.nn.ensemble import MemberMLP, bootstrap_mask

NONE, OWN = SOURCES.index("none"), SOURCES.index("prior_net")


class Advised(Protocol):
    """What learning needs of a batch from replay: rows (B, T) and the advice that they were acted under.

    prior: (B, T, A) logits. confidence: (B, T), the adviser's own. source: (B, T), an index of SOURCES.
    index: (B, T), row in the replay.
    """

    @property
    def prior(self) -> Tensor: ...

    @property
    def confidence(self) -> Tensor: ...

    @property
    def source(self) -> Tensor: ...

    @property
    def index(self) -> Tensor: ...


class PriorNet(nn.Module):
    """K networks from feat to a distribution of actions, each taught by its own half of the advised rows."""

    def __init__(self, options: PriorNetOptions, features: int, num_actions: int, units: int, seed: int):
        super().__init__()
        self.options = options
        self.net = MemberMLP(options.members, features, units, num_actions, generator(seed, "init/prior_net"))

    def loss(self, feat: Tensor, batch: Advised) -> Tensor:
        """feat (B, T, F) -> cross-entropy to the stored advice, times its confidence (B, T).

        Zero where a step had no advice, and where the advice was this network's own.
        """
        log_probs = self._log_probs(feat.detach().flatten(0, 1)).unflatten(1, batch.index.shape)
        target = batch.prior.detach().float().softmax(-1)
        loss = -(target * log_probs).sum(-1)  # (K, B, T)
        taught = (batch.source != NONE) & (batch.source != OWN)
        weight = torch.where(taught, batch.confidence.float(), 0.0)
        return weight * (bootstrap_mask(batch.index, self.options.members) * loss).mean(0)

    @torch.no_grad()
    def confident(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """feat (N, F) -> advice (N, A), the members' mean, and whether it may stand for an ask (N,) bool.

        It may where the mean is decided (entropy) and the members say the same (what they differ by is the
        mutual information: entropy of the mean less their mean entropy).
        """
        log_probs = self._log_probs(feat)  # (K, N, A)
        probs = log_probs.exp()
        mean = probs.mean(0)
        scale = math.log(mean.shape[-1])
        entropy = torch.special.entr(mean).sum(-1) / scale
        disagreement = entropy + (probs * log_probs).sum(-1).mean(0) / scale
        agree = disagreement <= self.options.max_disagreement
        return mean, agree & (entropy <= self.options.max_entropy)

    @torch.no_grad()
    def logits(self, feat: Tensor) -> Tensor:
        """feat (N, F) -> prior logits (N, A) for imagination: log of the mean advice over its floor."""
        return prior_logits(self._log_probs(feat).exp().mean(0))

    def _log_probs(self, feat: Tensor) -> Tensor:
        """feat (N, F) -> (K, N, A), float32."""
        return self.net(feat).float().log_softmax(-1)

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
from lore.nn.ensemble import MemberMLP, bootstrapped

NONE, OWN = SOURCES.index("none"), SOURCES.index("prior_net")


class Advised(Protocol):
    """What learning needs of a batch from replay: rows (B, T) and the advice that they were acted under.

    Attributes:
        prior: Logits of the advice, (B, T, A).
        confidence: The adviser's confidence, (B, T).
        source: Who advised, an index of SOURCES, (B, T).
        index: Row in the replay, (B, T).
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
    """K networks from features to a distribution of actions; each learns from half of the advised rows."""

    def __init__(self, options: PriorNetOptions, features: int, num_actions: int, units: int, seed: int):
        """Build the networks.

        Args:
            options: The options of the group `prior_net`.
            features: F.
            num_actions: A.
            units: Width of the hidden layers.
            seed: Seed of the run; the first weights follow from it.
        """
        super().__init__()
        self.options = options
        self.net = MemberMLP(options.members, features, units, num_actions, generator(seed, "init/prior_net"))

    def loss(self, feat: Tensor, batch: Advised) -> Tensor:
        """Compute the cross-entropy to the stored advice, times the adviser's confidence.

        Args:
            feat: Features, (B, T, F); no gradient goes through them.
            batch: The rows' advice.

        Returns:
            The loss, (B, T). Zero where a step had no advice, and where this network gave the advice.
        """
        loss = bootstrapped(self.net, feat, batch.prior.float().softmax(-1), batch.index, _cross_entropy)
        taught = (batch.source != NONE) & (batch.source != OWN)
        weight = torch.where(taught, batch.confidence.float(), 0.0)
        return weight * loss

    @torch.no_grad()
    def confident(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Advise, and say where the advice may stand for an ask.

        It may where the mean is decided (its entropy, a share of log A) and the members say the same.

        Args:
            feat: Features, (N, F).

        Returns:
            The members' mean distribution, (N, A), and whether it may stand for an ask, (N,) bool.
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
    def distribution(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Advise in many states, and say how far the members differ.

        Actions come first: over so few classes, softmax along the innermost axis is several times slower.

        Args:
            feat: Features, (..., F).

        Returns:
            The members' mean distribution, (A, ...), and the mutual information of action and member as a
            share of log A, (...): the entropy of the mean less the members' mean entropy.
        """
        logits = self.net(feat.flatten(0, -2)).float().transpose(1, 2).contiguous()  # (K, A, N)
        log_probs = logits.log_softmax(1)
        probs = log_probs.exp()
        mean = probs.mean(0)
        information = torch.special.entr(mean).sum(0) + (probs * log_probs).sum(1).mean(0)
        shape = feat.shape[:-1]
        return mean.view(-1, *shape), (information / math.log(len(mean))).view(shape)

    @torch.no_grad()
    def logits(self, feat: Tensor) -> Tensor:
        """Compute prior logits for imagination.

        Args:
            feat: Features, (N, F).

        Returns:
            Log of the members' mean distribution, raised to the floor of `prior_logits`, (N, A).
        """
        return prior_logits(self._log_probs(feat).exp().mean(0))

    def _log_probs(self, feat: Tensor) -> Tensor:
        """Compute log-probabilities: feat (N, F) -> (K, N, A), float32."""
        return self.net(feat).float().log_softmax(-1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """logits (K, N, A), target (N, A) or (K, N, A) -> (K, N)."""
    return -(target * logits.float().log_softmax(-1)).sum(-1)

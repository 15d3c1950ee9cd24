"""Ensembles that measure doubt: bootstrapped critics and one-step predictors of the next latent.

Both read detached features, so switching one on leaves every other weight as it was. Sources: Osband et al.
2016 (arXiv 1602.04621, bootstrap masks); Sekar et al. 2020 (arXiv 2005.05960, disagreement).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lore.base.rng import generator
from lore.base.types import Batch
from lore.config.options import SizeOptions
from lore.nn import likelihood
from lore.nn.distributions import TwoHot, one_hot, symexp_bins
from lore.nn.ensemble import MemberMLP, bootstrapped


class CriticEnsemble(nn.Module):
    """K critics, each taught by a random half of the rows; the variance of their values is Var[V(s)]."""

    bins: Tensor

    def __init__(self, members: int, features: int, bins: int, size: SizeOptions, seed: int):
        """Build the critics.

        Args:
            members: K, the number of critics.
            features: F.
            bins: Number of two-hot bins.
            size: Widths of the networks.
            seed: Seed of the run; chooses the weights.
        """
        super().__init__()
        self.members = members
        rng = generator(seed, "init/critic_ensemble")
        self.net = MemberMLP(members, features, size.units, bins, rng, scale=0.0)  # all begin at exactly 0
        self.register_buffer("bins", symexp_bins(bins), persistent=False)

    def loss(self, feat: Tensor, returns: Tensor, index: Tensor) -> Tensor:
        """Compute the cross-entropy of every critic to the returns, on the rows that teach it.

        Args:
            feat: Features, (B, T, F); no gradient reaches them.
            returns: Imagined returns from the same states, (B, T).
            index: Rows of the batch in the replay, (B, T); they decide which rows teach which critic.

        Returns:
            Mean over the critics, (B, T).
        """
        return bootstrapped(
            self.net, feat, returns, index, lambda logits, target: TwoHot(logits, self.bins).loss(target)
        )

    @torch.no_grad()
    def variance(self, feat: Tensor) -> Tensor:
        """Compute the variance of the members' values.

        Args:
            feat: Features, (N, F).

        Returns:
            (N,), in squared return.
        """
        return self.values(feat).var(0)

    @torch.no_grad()
    def values(self, feat: Tensor) -> Tensor:
        """Compute every critic's expected return.

        Args:
            feat: Features, (N, F).

        Returns:
            (K, N), float32.
        """
        return TwoHot(self.net(feat), self.bins).mean


class DisagreementEnsemble(nn.Module):
    """K predictors of the next latent's class probabilities from feat and action."""

    def __init__(self, members: int, features: int, num_actions: int, size: SizeOptions, seed: int):
        """Build the predictors.

        Args:
            members: K, the number of predictors.
            features: F.
            num_actions: A.
            size: Widths of the networks, and the shape of the latents.
            seed: Seed of the run; chooses the weights.
        """
        super().__init__()
        self.members, self.num_actions = members, num_actions
        self.shape = (size.stoch, size.classes)
        out = size.stoch * size.classes
        rng = generator(seed, "init/disagreement_ensemble")
        self.net = MemberMLP(members, features + num_actions, size.units, out, rng)

    def _inputs(self, feat: Tensor, action: Tensor) -> Tensor:
        """feat (..., F), action (...) -> (..., F + A)."""
        return torch.cat([feat.detach(), one_hot(action, self.num_actions, feat.dtype)], -1)

    def loss(self, feat: Tensor, probs: Tensor, batch: Batch) -> Tensor:
        """Compute the cross-entropy of every predictor to the next latent, on the rows that teach it.

        Args:
            feat: Features, (B, T, F); no gradient reaches them.
            probs: Posterior probabilities, (B, T, S, K').
            batch: The replayed rows; a step across the border of episodes counts as 0.

        Returns:
            Mean over the predictors, (B, T-1).
        """
        inputs = self._inputs(feat[:, :-1], batch.action[:, :-1])
        loss = bootstrapped(self.net, inputs, probs[:, 1:], batch.index[:, :-1], self._cross_entropy)
        return (~batch.is_first[:, 1:]).float() * loss

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (..., N, S * K'), target (N, S, K') -> (..., N)."""
        return likelihood.soft_cross_entropy(logits.unflatten(-1, self.shape), target)

    @torch.no_grad()
    def disagreement(self, feat: Tensor, policy: Tensor) -> Tensor:
        """Compute how far the predictors differ one step ahead, as the policy expects it.

        All A actions are imagined in one call.

        Args:
            feat: Features, (N, F).
            policy: Probabilities of the actions, (N, A).

        Returns:
            Expected variance over the members, (N,).
        """
        N, A = policy.shape
        logits = self.net.with_choices(feat, A).unflatten(-1, self.shape)  # (K, N * A, S, K')
        return (policy * likelihood.spread(logits).view(N, A)).sum(-1)

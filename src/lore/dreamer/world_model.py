"""World model: encoder, RSSM, decoder, reward and continue heads, and their losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lore.base.rng import generator
from lore.base.types import Batch, ObsSpec
from lore.config.options import AgentOptions, SizeOptions
from lore.dreamer.networks import Decoder, Encoder
from lore.dreamer.rssm import RSSM, Observed
from lore.nn.distributions import TwoHot, symexp_bins
from lore.nn.layers import MLP


class WorldModel(nn.Module):
    """Encodes observations and predicts what follows (arXiv 2301.04104, "World model learning")."""

    bins: Tensor

    def __init__(
        self, spec: dict[str, ObsSpec], num_actions: int, options: AgentOptions, size: SizeOptions, seed: int
    ):
        """Build the networks.

        Args:
            spec: Observation key -> what it is.
            num_actions: A.
            options: Options of the learning rule.
            size: Widths of the networks.
            seed: Seed of the run; chooses the weights.
        """
        super().__init__()
        self.encoder = Encoder(spec, size, seed)
        self.rssm = RSSM(self.encoder.out, num_actions, size, options.unimix, options.free_nats, seed)
        self.decoder = Decoder(spec, size, seed)
        features = self.rssm.features
        self.reward = MLP(features, size.units, 1, generator(seed, "init/reward"), options.bins, scale=0.0)
        self.cont = MLP(features, size.units, 1, generator(seed, "init/cont"), 1)
        self.discount = 1.0 - 1.0 / options.discount_horizon
        self.register_buffer("bins", symexp_bins(options.bins), persistent=False)

    def encode(self, obs: dict[str, Tensor]) -> Tensor:
        """Encode observations.

        Args:
            obs: Observation key -> (N, *shape).

        Returns:
            Tokens, (N, E).
        """
        return self.encoder(obs, self.rssm.dtype)

    def loss(
        self, batch: Batch, rng: torch.Generator, report: bool = False
    ) -> tuple[dict[str, Tensor], Observed, dict[str, Tensor]]:
        """Compute the losses of the world model on replayed sequences.

        Args:
            batch: The sequences.
            rng: Draws the latents; on the device of the batch.
            report: Whether the metrics world/ are computed too.

        Returns:
            Losses by name, each (B, T); the posterior sequence; the metrics, 0-d, empty without `report`.
        """
        B, T = batch.is_first.shape
        flat_obs = {k: v.flatten(0, 1) for k, v in batch.obs.items()}  # (B*T, *shape)
        tokens = self.encode(flat_obs).unflatten(0, (B, T))
        observed = self.rssm.observe(batch.context, batch.prev_action, tokens, batch.is_first, rng)
        feat = observed.feat.flatten(0, 1)  # (B*T, F)
        losses = self.rssm.kl_losses(observed)
        outs = self.decoder(feat)
        losses["obs"] = torch.stack(list(self.decoder.losses(outs, flat_obs).values())).sum(0)
        reward = TwoHot(self.reward(feat), self.bins)
        losses["reward"] = reward.loss(batch.reward.flatten())
        target = self.discount * (~batch.is_terminal).float().flatten()
        losses["cont"] = F.binary_cross_entropy_with_logits(
            self.cont(feat).float().squeeze(-1), target, reduction="none"
        )
        metrics = {}
        if report:
            error = self.decoder.squared_error(outs, flat_obs)
            metrics = {
                "world/reconstruction_mse": error,
                "world/psnr": -10.0 * torch.log10(error),  # the peak is 1
                "world/reward_mae": (reward.mean - batch.reward.flatten()).abs().mean(),
            }
        return {k: v.view(B, T) for k, v in losses.items()}, observed, metrics

    @torch.no_grad()
    def predict(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Predict reward and continuation, without gradient.

        Args:
            feat: Features, (..., F).

        Returns:
            Reward (...), and discount times the probability of going on (...); both float32.
        """
        reward = TwoHot(self.reward(feat), self.bins).mean
        return reward, torch.sigmoid(self.cont(feat).float().squeeze(-1))

"""Encoder and decoder of observations: categories and vectors through an MLP, images through convolutions.

Source: danijar/dreamerv3, dreamerv3/rssm.py (Encoder, Decoder).
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lore.base.rng import generator
from lore.base.types import ObsSpec
from lore.config.options import SizeOptions
from lore.nn.distributions import class_loss, one_hot, symlog
from lore.nn.layers import MLP, BlockLinear, ChannelNorm, Conv, Dense, Linear, Norm, UpConv

CHANNELS = (2, 3, 4, 4)  # multiples of size.depth, one halving of the image each
LAYERS = 3
SPACE_BLOCKS = 8


def _split(spec: dict[str, ObsSpec]) -> tuple[dict[str, ObsSpec], dict[str, ObsSpec]]:
    """Specs by kind: (categories and vectors, images), each sorted by name."""
    flat = {k: s for k, s in sorted(spec.items()) if not s.is_image}
    image = {k: s for k, s in sorted(spec.items()) if s.is_image}
    return flat, image


def _width(spec: ObsSpec) -> int:
    return math.prod(spec.shape) * max(1, spec.classes)


class Encoder(nn.Module):
    """obs key -> (N, *shape) to tokens (N, E)."""

    def __init__(self, spec: dict[str, ObsSpec], size: SizeOptions, seed: int):
        """Build the networks.

        Args:
            spec: Observation key -> what it is.
            size: Widths of the networks.
            seed: Seed of the run; chooses the weights.
        """
        super().__init__()
        rng = generator(seed, "init/encoder")
        self.flat, self.image = _split(spec)
        self.out = 0
        if self.flat:
            self.mlp = MLP(sum(_width(s) for s in self.flat.values()), size.units, LAYERS, rng)
            self.out += size.units
        if self.image:
            channels = sum(s.shape[-1] for s in self.image.values())
            height, width = next(iter(self.image.values())).shape[:2]
            depths = [channels] + [size.depth * m for m in CHANNELS]
            self.convs = nn.ModuleList(Conv(i, o, rng) for i, o in itertools.pairwise(depths))
            self.norms = nn.ModuleList(ChannelNorm(o) for o in depths[1:])
            self.out += height * width * depths[-1] // 4 ** len(CHANNELS)

    def forward(self, obs: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Encode observations.

        Args:
            obs: Observation key -> (N, *shape).
            dtype: Compute type of the tokens.

        Returns:
            Tokens, (N, E).
        """
        outs = []
        if self.flat:
            outs.append(
                self.mlp(torch.cat([self._vector(obs[k], s, dtype) for k, s in self.flat.items()], -1))
            )
        if self.image:
            x = torch.cat([obs[k] for k in self.image], -1).movedim(-1, 1).to(dtype) / 255 - 0.5
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = F.silu(norm(F.max_pool2d(conv(x), 2)))
            outs.append(x.movedim(1, -1).flatten(1))  # (N, h*w*c)
        return torch.cat(outs, -1)

    @staticmethod
    def _vector(x: Tensor, spec: ObsSpec, dtype: torch.dtype) -> Tensor:
        if not spec.classes:
            return symlog(x.float()).reshape(len(x), -1).to(dtype)
        index = x.reshape(len(x), -1, 1).long()
        hot = torch.zeros(*index.shape[:2], spec.classes, dtype=dtype, device=x.device)
        return hot.scatter_(-1, index, 1).flatten(1)


class Decoder(nn.Module):
    """feat (N, F) to a distribution of every observation."""

    def __init__(self, spec: dict[str, ObsSpec], size: SizeOptions, seed: int):
        """Build the networks.

        Args:
            spec: Observation key -> what it is.
            size: Widths of the networks.
            seed: Seed of the run; chooses the weights.
        """
        super().__init__()
        rng = generator(seed, "init/decoder")
        self.flat, self.image = _split(spec)
        self.deter = size.deter
        stoch = size.stoch * size.classes
        if self.flat:
            self.mlp = MLP(size.deter + stoch, size.units, LAYERS, rng)
            self.heads = nn.ModuleDict({k: Linear(size.units, _width(s), rng) for k, s in self.flat.items()})
        if self.image:
            height, width = next(iter(self.image.values())).shape[:2]
            depths = [size.depth * m for m in CHANNELS]
            factor = 2 ** len(CHANNELS)
            self.space = (height // factor, width // factor, depths[-1])
            flat = math.prod(self.space)
            self.from_deter = BlockLinear(SPACE_BLOCKS, size.deter, flat, rng)
            self.from_stoch = nn.Sequential(
                Dense(stoch, 2 * size.units, rng), Linear(2 * size.units, flat, rng)
            )
            self.space_norm = Norm(depths[-1])
            up = depths[::-1]
            self.convs = nn.ModuleList(UpConv(i, o, rng) for i, o in itertools.pairwise(up))
            self.norms = nn.ModuleList(ChannelNorm(o) for o in up[1:])
            self.out = UpConv(up[-1], sum(s.shape[-1] for s in self.image.values()), rng)

    def forward(self, feat: Tensor) -> dict[str, Tensor]:
        """Decode features into a distribution of every observation.

        Args:
            feat: Features, (N, F).

        Returns:
            Observation key -> class logits (N, *shape, K), symlog means (N, *shape), or pixels in [0, 1]
            (N, H, W, C); pixels are float32, the rest is in the compute type.
        """
        outs = {}
        if self.flat:
            x = self.mlp(feat)
            for key, spec in self.flat.items():
                shape = (*spec.shape, spec.classes) if spec.classes else spec.shape
                outs[key] = self.heads[key](x).reshape(len(x), *shape)
        if self.image:
            pixels = self._pixels(feat)
            channels = [s.shape[-1] for s in self.image.values()]
            outs.update(zip(self.image, pixels.split(channels, -1), strict=True))
        return outs

    def _pixels(self, feat: Tensor) -> Tensor:
        h, w, c = self.space
        deter, stoch = feat[:, : self.deter], feat[:, self.deter :]
        x = self.from_deter(deter).unflatten(-1, (SPACE_BLOCKS, h, w, -1))  # (N, g, h, w, c/g)
        x = x.permute(0, 2, 3, 1, 4).flatten(-2)  # (N, h, w, c)
        x = F.silu(self.space_norm(x + self.from_stoch(stoch).unflatten(-1, (h, w, c)))).movedim(-1, 1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
        return torch.sigmoid(self.out(x).float()).movedim(1, -1)  # (N, H, W, C)

    def losses(self, outs: dict[str, Tensor], obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the loss of every observation, summed over its entries.

        It is the negative log-likelihood for categories, and the squared error for vectors (after symlog) and
        for pixels (in [0, 1]).

        Args:
            outs: What `forward` gave.
            obs: Observation key -> (N, *shape).

        Returns:
            Observation key -> (N,).
        """
        losses = {}
        for key, out in outs.items():
            spec = self.flat.get(key)
            if spec is None:
                error = (out - obs[key].float() / 255).square()
            elif spec.classes:
                error = class_loss(out, obs[key])
            else:
                error = (out.float() - symlog(obs[key].float())).square()
            losses[key] = error.reshape(len(error), -1).sum(1)
        return losses

    @torch.no_grad()
    def squared_error(self, outs: dict[str, Tensor], obs: dict[str, Tensor]) -> Tensor:
        """Compute the mean squared error over every entry of every observation.

        Errors are of probabilities to the one-hot class for categories, after symlog for vectors, and in
        [0, 1] for pixels.

        Args:
            outs: What `forward` gave.
            obs: Observation key -> (N, *shape).

        Returns:
            The mean, 0-d.
        """
        errors = []
        for key, out in outs.items():
            spec = self.flat.get(key)
            if spec is None:
                error = out - obs[key].float() / 255
            elif spec.classes:
                error = out.float().softmax(-1) - one_hot(obs[key], spec.classes, torch.float32)
            else:
                error = out.float() - symlog(obs[key].float())
            errors.append(error.square().flatten())
        return torch.cat(errors).mean()

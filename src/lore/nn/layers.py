"""Layers of the published DreamerV3 networks: RMS norm, SiLU, truncated-normal kernels, block-diagonal maps.

Source: danijar/dreamerv3, embodied/jax/nets.py (initialisation, norm and block layout).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lore.nn.dense import dense
from lore.nn.fused import NORM_EPS
from lore.nn.products import linear

KERNEL = 5  # side of every convolution
TRUNCATION = 1.1368  # standard deviation of a unit normal cut at two sigma, inverted


def trunc_normal(shape: Sequence[int], fan_in: int, scale: float, rng: torch.Generator) -> Tensor:
    """A kernel with standard deviation scale / sqrt(fan_in), cut at two sigma; zeros for scale 0."""
    kernel = torch.empty(*shape)
    nn.init.trunc_normal_(kernel, 0.0, 1.0, -2.0, 2.0, generator=rng)
    return kernel.mul_(TRUNCATION * scale / math.sqrt(fan_in))


class Linear(nn.Module):
    """(..., fan_in) -> (..., fan_out)."""

    def __init__(self, fan_in: int, fan_out: int, rng: torch.Generator, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(trunc_normal((fan_out, fan_in), fan_in, scale, rng))
        self.bias = nn.Parameter(torch.zeros(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class BlockLinear(nn.Module):
    """Block-diagonal map: `blocks` independent maps side by side, stored (blocks, in, out) for bmm.

    The fan-in is that of the whole layer, as in the official initialisation.
    """

    def __init__(self, blocks: int, fan_in: int, fan_out: int, rng: torch.Generator, scale: float = 1.0):
        super().__init__()
        self.blocks = blocks
        shape = (blocks, fan_in // blocks, fan_out // blocks)
        self.weight = nn.Parameter(trunc_normal(shape, fan_in, scale, rng))
        self.bias = nn.Parameter(torch.zeros(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, fan_in), grouped by block, -> (N, fan_out), grouped by block."""
        grouped = x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)  # (g, N, i)
        out = torch.bmm(grouped, self.weight).transpose(0, 1).flatten(1)  # (N, g*o)
        return out + self.bias


class Norm(nn.Module):
    """RMS norm over the last axis with a learned scale."""

    def __init__(self, size: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.scale, NORM_EPS)


class Conv(nn.Module):
    """5x5 'same' convolution of images in channels-last memory, NCHW by shape."""

    def __init__(self, fan_in: int, fan_out: int, rng: torch.Generator):
        super().__init__()
        shape = (fan_out, fan_in, KERNEL, KERNEL)
        self.weight = nn.Parameter(trunc_normal(shape, fan_in * KERNEL * KERNEL, 1.0, rng))
        self.bias = nn.Parameter(torch.zeros(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, self.bias, padding=KERNEL // 2)


class UpConv(Conv):
    """`Conv` on an image whose sides were doubled by repetition, (N, C, H, W) -> (N, C', 2H, 2W).

    Each of the four pixels that repeat one sees a 3x3 neighbourhood of the small image through sums of the
    kernel's entries: 9 products in place of 25, and no large image to read.
    """

    fold: Tensor

    def __init__(self, fan_in: int, fan_out: int, rng: torch.Generator):
        super().__init__(fan_in, fan_out, rng)
        fold = torch.zeros(2, 3, KERNEL)  # (pixel of the pair, neighbour, entry of the kernel)
        for pixel, entry in itertools.product(range(2), range(KERNEL)):
            fold[pixel, (pixel + entry - KERNEL // 2) // 2 + 1, entry] = 1.0
        self.register_buffer("fold", fold, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out, channels = self.weight.shape[:2]
        fold = self.fold.to(self.weight.dtype)
        weight = torch.einsum("pyk,qxl,oikl->opqiyx", fold, fold, self.weight).reshape(
            4 * out, channels, 3, 3
        )
        weight = weight.contiguous(memory_format=torch.channels_last)
        pixels = F.conv2d(x, weight, self.bias.repeat_interleave(4), padding=1)
        return F.pixel_shuffle(pixels, 2)


class ChannelNorm(Norm):
    """RMS norm over the channels of an NCHW tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Dense(nn.Module):
    """Linear, norm, SiLU: the block that every network repeats."""

    def __init__(self, fan_in: int, units: int, rng: torch.Generator):
        super().__init__()
        self.linear = Linear(fan_in, units, rng)
        self.norm = Norm(units)

    def forward(self, x: Tensor) -> Tensor:
        return dense(x, self.linear.weight, self.linear.bias, self.norm.scale)


class MLP(nn.Module):
    """`layers` Dense blocks and, where fan_out is given, a linear output."""

    def __init__(
        self,
        fan_in: int,
        units: int,
        layers: int,
        rng: torch.Generator,
        fan_out: int | None = None,
        scale: float = 1.0,
    ):
        super().__init__()
        sizes = [fan_in] + [units] * layers
        blocks: list[nn.Module] = [Dense(i, o, rng) for i, o in itertools.pairwise(sizes)]
        if fan_out is not None:
            blocks.append(Linear(sizes[-1], fan_out, rng, scale))
        self.layers = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

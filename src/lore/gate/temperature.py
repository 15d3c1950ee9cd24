"""How sharp advice is made before it is mixed in: the temperature T of l~ = (l_llm - its mean) / T.

Letters: N rows, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lore.gate.roots import crossing_interval

TIE = 0.05  # nats: advice that differs by less is no difference, and is not made one by a low temperature
ABOVE_TIES = 0.01  # `entropy` aims at log k plus this share of log A, where k actions tie for the best
COLDEST, HOTTEST = 0.01, 100.0  # bounds of `entropy`
FEW_ROWS = 128  # states at once, up to which temperatures are remembered: acting, and an evaluation
REMEMBERED = 4096  # different advice
MATCH = (0.5, 3.0)  # bounds of `match`

Temperature = Callable[[Tensor, Tensor], Tensor]
"""Centred advice (N, A) and the agent's own logits (N, A) -> T (N,); inf where the advice says nothing."""


def build_temperature(mode: str, entropy_share: float, fixed: float) -> Temperature:
    """Build the temperature that `gate.temperature=MODE` stands for.

    Args:
        mode: entropy, match or fixed.
        entropy_share: Entropy of the advised distribution as a share of log A, for `entropy`.
        fixed: The temperature, for `fixed`.

    Returns:
        The function from advice and policy to T.

    Raises:
        KeyError: There is no such mode.
    """
    modes: dict[str, Temperature] = {
        "entropy": RememberedEntropy(entropy_share),
        "match": match_temperature,
        "fixed": partial(_fixed, temperature=fixed),
    }
    return modes[mode]


def entropy_temperature(level: Tensor, share: float) -> Tensor:
    """Find T with H(softmax(level / T)) = share * log A, or the nearest entropy that ties allow.

    Where k actions tie for the best, the entropy cannot fall below log k, so log k + ABOVE_TIES * log A is
    aimed at.

    Args:
        level: Centred advice, (N, A).
        share: Entropy wanted, as a share of log A.

    Returns:
        T, (N,); inf where all actions tie.
    """
    level = level.double()
    scale = math.log(level.shape[-1])
    best = (level >= level.amax(-1, keepdim=True) - TIE).sum(-1)  # (N,)
    target = torch.maximum(best.log() + ABOVE_TIES * scale, torch.full_like(level[:, 0], share * scale))

    def entropy(log_inverse: Tensor) -> Tensor:
        log_probs = (level.unsqueeze(1) * log_inverse.exp().unsqueeze(-1)).log_softmax(-1)  # (N, G, A)
        return -(log_probs.exp() * log_probs).sum(-1)

    ends = [torch.full_like(target, -math.log(t)) for t in (HOTTEST, COLDEST)]
    low, high = crossing_interval(entropy, target, *ends)
    temperature = torch.exp(-(low + high) / 2)
    return torch.where(best == level.shape[-1], math.inf, temperature).float()


def match_temperature(level: Tensor, logits: Tensor) -> Tensor:
    """Find the T in [0.5, 3] that minimises KL(softmax(logits) || softmax(level / T)).

    The KL is convex in 1 / T; its slope is E_T[level] - E_wm[level], which rises with 1 / T. Where the
    slope has no zero in the interval, T is the end that it points to: exactly MATCH[0] or MATCH[1].

    Args:
        level: Centred advice, (N, A).
        logits: l_wm, (N, A).

    Returns:
        T, (N,); inf where the advice says nothing.
    """
    level = level.double()
    wanted = (logits.double().softmax(-1) * level).sum(-1)  # (N,): E_wm[level]

    def missing(inverse: Tensor) -> Tensor:
        return -((level.unsqueeze(1) * inverse.unsqueeze(-1)).softmax(-1) * level.unsqueeze(1)).sum(-1)

    ends = [torch.full_like(wanted, 1.0 / t) for t in reversed(MATCH)]
    low, high = crossing_interval(missing, -wanted, *ends)
    middle = torch.where(low == ends[0], ends[0], torch.where(high == ends[1], ends[1], (low + high) / 2))
    return torch.where(level.amax(-1) - level.amin(-1) < TIE, math.inf, 1.0 / middle).float()


def pinned(temperature: Tensor) -> Tensor:
    """Say where `match` stands at an end of its interval.

    Args:
        temperature: T, (N,).

    Returns:
        True where T is MATCH[0] or MATCH[1], (N,) bool.
    """
    return (temperature == MATCH[0]) | (temperature == MATCH[1])


class RememberedEntropy:
    """Does as `entropy_temperature`, but remembers roots where few states are asked about, as in acting.

    Advice repeats: a plan's next step is one of a few actions. The temperature depends on the advice alone.
    """

    def __init__(self, share: float):
        """Begin with nothing remembered.

        Args:
            share: Entropy wanted, as a share of log A.
        """
        self.share = share
        self._known: dict[tuple[float, ...], float] = {}

    def __call__(self, level: Tensor, logits: Tensor) -> Tensor:
        """Return T for centred advice (N, A); see Temperature. The logits play no part."""
        if len(level) > FEW_ROWS:
            return entropy_temperature(level, self.share)
        found = [self._of(tuple(row), level, i) for i, row in enumerate(level.tolist())]
        return torch.tensor(found, device=level.device)

    def _of(self, key: tuple[float, ...], level: Tensor, i: int) -> float:
        """Return the temperature of state i's advice; `key` holds the numbers of the advice."""
        if key not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = float(entropy_temperature(level[i : i + 1], self.share))
        return self._known[key]


def _fixed(level: Tensor, logits: Tensor, *, temperature: float) -> Tensor:
    return torch.full_like(level[:, 0], temperature)

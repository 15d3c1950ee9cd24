"""What a gate makes of states, and whether it can be acted on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from lore.base.errors import BadInput


@dataclass
class Opening:
    """What a gate makes of N states.

    Attributes:
        beta: How strongly advice would act, (N,).
        latched: Whether new advice may be asked for, (N,) bool.
        terms: u and the terms that it is made of, name -> (N,), for the metrics.
    """

    beta: Tensor
    latched: Tensor
    terms: dict[str, Tensor]


def check_opening(opening: object, n: int, gate: str, follows: bool = False) -> Opening:
    """Refuse what a gate of a user's own cannot mean. Called at each step, so it costs microseconds.

    Args:
        opening: What the gate's `open` returned.
        n: N, the number of environments.
        gate: Option gate.name, for the error.
        follows: Whether advice replaces the policy; beta may be infinite then.

    Returns:
        The opening.

    Raises:
        BadInput: beta is no float tensor (N,) of finite numbers of at least 0, the latch is no bool tensor
            (N,), or a term is no tensor (N,).
    """
    if not isinstance(opening, Opening):
        _refuse(gate, "an Opening", opening)
    beta, latched = opening.beta, opening.latched
    if not (isinstance(beta, Tensor) and beta.shape == (n,) and beta.is_floating_point()):
        _refuse(gate, f"beta as a float tensor of shape ({n},)", beta)
    largest = math.inf if follows else math.nextafter(math.inf, 0.0)
    if not all(0.0 <= value <= largest for value in beta.tolist()):
        _refuse(gate, "beta finite and at least 0", beta)
    if not (isinstance(latched, Tensor) and latched.shape == (n,) and latched.dtype == torch.bool):
        _refuse(gate, f"latched as a bool tensor of shape ({n},)", latched)
    for name, term in opening.terms.items():
        if not (isinstance(term, Tensor) and term.shape == (n,)):
            _refuse(gate, f"the term {name} as a tensor of shape ({n},)", term)
    return opening


def _refuse(gate: str, right: str, got: object) -> NoReturn:
    what = f"{got!r:.200}"
    if isinstance(got, Tensor):
        what = f"{got.tolist()!r:.120} of shape {tuple(got.shape)} and type {got.dtype}"
    raise BadInput(
        "gate.name", f"`open` of gate {gate!r} must return {right}; it returned {' '.join(what.split())}"
    )

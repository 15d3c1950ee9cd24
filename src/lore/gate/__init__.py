"""The gate: how strongly an adviser's word counts, where, and within which KL."""

from __future__ import annotations

import torch

from lore.base.plugins import load
from lore.config.options import GateOptions
from lore.config.plugins import GATE_GROUP, GATES
from lore.gate.gates import FixedGate, FollowGate, Gate, Mixed, UncertaintyGate
from lore.gate.kl import KLControl
from lore.gate.mix import centred, divergence, mix
from lore.gate.opening import Opening, check_opening

__all__ = [
    "GATES",
    "FixedGate",
    "FollowGate",
    "Gate",
    "KLControl",
    "Mixed",
    "Opening",
    "UncertaintyGate",
    "build_gate",
    "centred",
    "check_opening",
    "divergence",
    "mix",
]


def build_gate(options: GateOptions, device: torch.device | str = "cpu") -> Gate | None:
    """Build the gate that `gate.name` stands for.

    Args:
        options: Of the gate.
        device: Where its tensors are.

    Returns:
        The gate; None for `none`.

    Raises:
        BadInput: `gate.name` is unknown, claimed twice or cannot be imported.
    """
    if options.name == "none":
        return None
    return load(GATE_GROUP, GATES, options.name, "gate.name", "gate")(options, device)

"""The gate: how strongly an adviser's word counts, where, and within which KL."""

from __future__ import annotations

import torch

from lore.base.errors import BadInput
from lore.base.plugins import faults_of_call, load, refuse_faulty
from lore.config.options import GateOptions
from lore.config.plugins import GATE_GROUP, GATES
from lore.gate.gates import FixedGate, FollowGate, Gate, HintGate, Mixed, UncertaintyGate
from lore.gate.kl import KLControl
from lore.gate.mix import centred, divergence, mix
from lore.gate.opening import Opening, check_opening
from lore.gate.veto import vetoed

__all__ = [
    "GATES",
    "FixedGate",
    "FollowGate",
    "Gate",
    "HintGate",
    "KLControl",
    "Mixed",
    "Opening",
    "UncertaintyGate",
    "build_gate",
    "centred",
    "check_opening",
    "divergence",
    "mix",
    "vetoed",
]


def build_gate(options: GateOptions, device: torch.device | str = "cpu") -> Gate | None:
    """Build the gate that `gate.name` stands for.

    Args:
        options: Of the gate.
        device: Where its tensors are.

    Returns:
        The gate; None for `none`.

    Raises:
        BadInput: `gate.name` is unknown, claimed twice or cannot be imported, or what it stands for is no
            gate; `gate.members` is given to a gate of a user's own that does not read it.
    """
    name = options.name
    if name == "none":
        return None
    factory = load(GATE_GROUP, GATES, name, "gate.name", "gate")
    _refuse(name, faults_of_call(factory, "the options of the group gate and a device", 2))
    gate = factory(options, device)
    if not isinstance(gate, Gate):
        _refuse(name, ["it is not derived from lore.gate.Gate"])
    elif type(gate).open is Gate.open:
        _refuse(name, ["it has no method open"])
    elif not hasattr(gate, "kl"):
        _refuse(name, ["its __init__ does not call super().__init__(options, device)"])
    if name not in GATES and options.members not in (GateOptions.members, gate.members):
        raise BadInput(
            "gate.members",
            f"gate {name!r} does not read it; set self.members = options.members in its __init__",
        )
    return gate


def _refuse(name: str, faults: list[str]) -> None:
    """Raise BadInput if anything is wrong with the gate of that name."""
    refuse_faulty(GATE_GROUP, GATES, name, "gate.name", "gate", faults, "docs/gate.md")

"""The arms of a study: what each letter switches, and the name of what a config is.

A letter owns its switches: who overrides one of them runs something else, and is told so at start.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from lore.base.errors import BadInput
from lore.config.options import Config


class _Limit:
    """Any number: a limit that may be moved, but not lifted."""

    def __eq__(self, value: object) -> bool:
        return value is not None

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "a number"


LIMIT = _Limit()
FREE = {
    "llm.triggers": False,
    "llm.latch": False,
    "llm.cooldown_steps": None,
    "llm.success_cooldown_steps": None,
    "llm.budget_total": None,
}
LIMITED = {
    "llm.triggers": True,
    "llm.latch": True,
    "llm.cooldown_steps": LIMIT,
    "llm.success_cooldown_steps": LIMIT,
    "llm.budget_total": LIMIT,
}


def _switches(gate: str, kl: str, distilled: bool, **more: Any) -> dict[str, Any]:
    return {"gate.name": gate, "gate.kl.mode": kl, "prior_net.enabled": distilled} | more


ARMS: dict[str, dict[str, Any]] = {
    "A": _switches("none", "none", False),
    "B": _switches("fixed", "none", False) | FREE,
    "C": _switches("fixed", "penalty", False) | FREE,
    "D": _switches("lore", "penalty", False) | FREE,
    "E": _switches("lore", "penalty", False) | LIMITED,
    "F": _switches("lore", "penalty", True) | LIMITED,
    "static_mask": _switches("none", "none", False) | {"env.actions": "useful"},
    "prefill": _switches("follow", "none", False) | FREE,
}
"""Arm -> the switches that it owns, with their values. conf/ablation/ARM.yaml sets them."""


def check_arm(cfg: Config) -> None:
    """Raise BadInput where a switch that `cfg.ablation` owns was overridden."""
    if cfg.ablation is None:
        return
    if cfg.ablation not in ARMS:
        raise BadInput("ablation", f"no {cfg.ablation!r}; use one of {', '.join(ARMS)}, as in +ablation=D")
    for key, value in ARMS[cfg.ablation].items():
        if value != attrgetter(key)(cfg):
            group = "gate" if key == "gate.name" else key
            raise BadInput(
                group,
                f"+ablation={cfg.ablation} owns it: {_plain(value)}, not {_plain(attrgetter(key)(cfg))}; "
                "leave the ablation out to set it yourself",
            )


def arm_name(cfg: Config) -> str:
    """What a run is called in a study: `cfg.ablation`, or the letter that it amounts to, else custom.

    Another adviser than the scripted one is named too, as in D-oracle. Runs without DreamerV3 are called by
    whom they follow: random, or the adviser's name.
    """
    if cfg.agent.name != "dreamer":
        return "random" if cfg.gate.name == "none" else cfg.llm.provider
    arm = cfg.ablation
    if arm is None:
        matching = [name for name in "ABCDEF" if _matches(cfg, ARMS[name])]
        arm = matching[0] if matching else "custom"
    advised = cfg.gate.name != "none" and cfg.llm.provider != "scripted"
    return f"{arm}-{cfg.llm.provider}" if advised else arm


def _matches(cfg: Config, switches: dict[str, Any]) -> bool:
    return all(value == attrgetter(key)(cfg) for key, value in switches.items())


def _plain(value: Any) -> str:
    return (
        {None: "null", True: "true", False: "false"}.get(value, value) if value is not LIMIT else repr(value)
    )

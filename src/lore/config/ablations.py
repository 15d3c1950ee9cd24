"""The arms of a study: what each letter switches, and the name of what a config is.

A letter owns the switches that it sets. A run that overrides one of them is another run, so it is refused.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

from lore.base.errors import BadInput
from lore.config.options import Config

ANY_NUMBER: Final = object()
"""Value of a switch that is a limit: the arm allows any number, and refuses null, which lifts the limit."""

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
    "llm.cooldown_steps": ANY_NUMBER,
    "llm.success_cooldown_steps": ANY_NUMBER,
    "llm.budget_total": ANY_NUMBER,
}
TIMELESS = {"env.timeout": "truncate", "env.clock": False}
TIMED = {"env.timeout": "terminal", "env.clock": True}


UNTAUGHT = {"teach.name": "none", "trial.name": "none"}


def _switches(gate: str, kl: str, distilled: bool, **more: Any) -> dict[str, Any]:
    own = {"gate.name": gate, "gate.kl.mode": kl, "prior_net.enabled": distilled}
    return own | UNTAUGHT | TIMELESS | more


def _taught(teach: str, trial: str, gate: str = "lore", distilled: bool = True) -> dict[str, Any]:
    how = {"teach.name": teach, "trial.name": trial}
    return _switches(gate, "none", distilled) | how | TIMED | LIMITED


ARMS: dict[str, dict[str, Any]] = {
    "A": _switches("none", "none", False),
    "A_time": _switches("none", "none", False) | TIMED,
    "B": _switches("fixed", "none", False) | FREE,
    "C": _switches("fixed", "penalty", False) | FREE,
    "D": _switches("lore", "penalty", False) | FREE,
    "E": _switches("lore", "penalty", False) | LIMITED,
    "F": _switches("lore", "penalty", True) | LIMITED,
    "static_mask": _switches("none", "none", False) | {"env.actions": "useful"},
    "prefill": _switches("follow", "none", False) | FREE,
    "G": _taught("informed", "paired"),
    "G_trusting": _taught("informed", "coin"),
    "entropy": _taught("none", "coin") | {"agent.entropy": 0.03},
    "kickstart": _taught("kickstart", "none", "fixed") | {"gate.beta": 0.0, "teach.filtered": False},
    "jumpstart": _taught("none", "jumpstart", "follow", False) | {"gate.follow_steps": None},
    "hint": _taught("none", "coin", "hint", False) | {"env.hint": True},
    "clone": _taught("clone", "coin", distilled=False),
}
"""Arm -> the switches that it owns, with their values. conf/ablation/ARM.yaml sets them."""


def allows(wanted: Any, value: Any) -> bool:
    """Say whether a switch may have a value under an arm.

    Args:
        wanted: Value that the arm sets; ANY_NUMBER for a limit, which may be any number but null.
        value: Value that the run has.
    """
    return value is not None if wanted is ANY_NUMBER else value == wanted


def check_arm(cfg: Config) -> None:
    """Check that a run has every switch as its arm sets it.

    Args:
        cfg: Options of the run; `cfg.ablation` names the arm, None for none.

    Raises:
        BadInput: There is no such arm, or a switch that the arm owns was overridden.
    """
    if cfg.ablation is None:
        return
    if cfg.ablation not in ARMS:
        raise BadInput("ablation", f"no {cfg.ablation!r}; use one of {', '.join(ARMS)}, as in +ablation=D")
    for key, wanted in ARMS[cfg.ablation].items():
        value = attrgetter(key)(cfg)
        if not allows(wanted, value):
            group = key.removesuffix(".name")  # gate, teach, trial: chosen as a group
            raise BadInput(
                group,
                f"+ablation={cfg.ablation} owns it: {_in_yaml(wanted)}, not {_in_yaml(value)}; "
                "leave the ablation out to set it yourself",
            )


def arm_name(cfg: Config) -> str:
    """Name a run as a study does: `cfg.ablation`, or the letter that its switches amount to, else custom.

    An adviser other than the scripted one is named too, as in D-oracle, and so is a corrupted one, as in
    D-corrupted or D-recorded-corrupted. A run without DreamerV3 is named after the adviser that it follows,
    or random.

    Args:
        cfg: Options of the run.
    """
    advised = "none" not in (cfg.gate.name, cfg.llm.provider)
    corrupted = "-corrupted" if advised and cfg.llm.corruption > 0 else ""
    if cfg.agent.name != "dreamer":
        return "random" if cfg.gate.name == "none" else f"{cfg.llm.provider}{corrupted}"
    arm = cfg.ablation
    if arm is None:
        matching = [name for name in "ABCDEF" if _matches(cfg, ARMS[name])]
        arm = matching[0] if matching else "custom"
    named = cfg.gate.name != "none" and cfg.llm.provider != "scripted"
    return f"{arm}-{cfg.llm.provider}{corrupted}" if named else f"{arm}{corrupted}"


def _matches(cfg: Config, switches: dict[str, Any]) -> bool:
    return all(allows(wanted, attrgetter(key)(cfg)) for key, wanted in switches.items())


def _in_yaml(value: Any) -> str:
    if value is ANY_NUMBER:
        return "a number"
    return {None: "null", True: "true", False: "false"}.get(value, str(value))

"""Names of gates, teachers and advisers: the rows of this package, and entry points of installed packages.

Nothing is imported to know a name, so a wrong one is refused at once.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points

from lore.base import plugins
from lore.base.errors import BadInput
from lore.config.options import Config

ENV_GROUP, GATE_GROUP, PROVIDER_GROUP = "lore.envs", "lore.gates", "lore.providers"
"""Groups of entry points: classes and factories by name."""
CONFIG_GROUP = "lore.configs"
"""Group of entry points that are packages of configs: folders env/, llm/, experiment/ as in lore/conf."""

GATES = {
    "fixed": "lore.gate.gates:FixedGate",
    "follow": "lore.gate.gates:FollowGate",
    "hint": "lore.gate.gates:HintGate",
    "lore": "lore.gate.gates:UncertaintyGate",
}
"""Name -> its class, written as an entry point; `none` is no gate. A class takes the options and a device."""

TEACHERS = {
    "clone": "lore.training.teaching.clone:Clone",
    "informed": "lore.training.teaching.informed:Informed",
    "kickstart": "lore.training.teaching.kickstart:Kickstart",
    "mix": "lore.training.teaching.mix:Mix",
}
"""Name -> its class, a lore.training.teaching.Teacher; `none` teaches nothing. No entry points add to it."""

PROVIDERS = {
    "adversarial": "lore.llm.providers.controls:adversarial",
    "anthropic": "lore.llm.providers.anthropic:AnthropicProvider",
    "local": "lore.llm.providers.local:LocalProvider",
    "none": "lore.llm.providers.controls:none",
    "oracle": "lore.llm.providers.controls:oracle",
    "recorded": "lore.llm.providers.recorded:RecordedAnswersProvider",
    "scripted": "lore.llm.providers.scripted:ScriptedProvider",
    "shuffled": "lore.llm.providers.controls:shuffled",
    "uniform": "lore.llm.providers.controls:uniform",
}
"""Name -> its factory, written as an entry point. A factory takes the options and returns a Provider. It may
have two attributes, as a class has: `paid` and `check` (see lore/llm/providers)."""


NAMED = {
    "env": (ENV_GROUP, "id"),
    "gate": (GATE_GROUP, "name"),
    "llm": (PROVIDER_GROUP, "provider"),
}
"""Config group -> the group of entry points whose names it takes, and the option that such a name sets."""


def check_names(cfg: Config) -> None:
    """Check that the gate and the provider of a run have names that are known. Neither is imported.

    Args:
        cfg: Options of the run.

    Raises:
        BadInput: A name is unknown; the key and the known names are in the message.
    """
    _known("gate.name", cfg.gate.name, ["none", *plugins.names(GATE_GROUP, GATES)], "gate")
    _known("llm.provider", cfg.llm.provider, plugins.names(PROVIDER_GROUP, PROVIDERS), "provider")


def config_packages() -> list[str]:
    """List the packages of configs, with folders such as env/ and experiment/, that are installed."""
    return sorted({point.value for point in entry_points(group=CONFIG_GROUP)})


def installed_names() -> dict[str, list[str]]:
    """List the names that entry points of installed packages add to the config groups.

    Returns:
        Config group (env, gate, llm) -> names, sorted.
    """
    return {name: sorted({p.name for p in entry_points(group=row[0])}) for name, row in NAMED.items()}


def _known(key: str, name: str, names: list[str], what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? There are" if near else "use one of"
        raise BadInput(key, f"unknown {what} {name!r}; {hint} {', '.join(sorted(names))}")

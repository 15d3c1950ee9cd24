"""Compose and check every config of the installed package: python compose_all.py REPOSITORY."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import lore
from lore.config.compose import compose

ROOT = Path(sys.argv[1]).resolve()
GROUPS = {
    "ablation": "+",
    "agent": "",
    "env": "",
    "experiment": "+",
    "gate": "",
    "llm": "",
    "logger": "",
    "preset": "+",
    "size": "",
    "teach": "",
    "trial": "",
}
NEEDS = {"gate=hint": ["env.hint=true"]}
"""Choice -> what it has to be given with; every teacher but none needs PriorNet."""


def main() -> None:
    home = Path(lore.__file__).resolve()
    assert ROOT / "src" not in home.parents, f"{home} is the source tree, not the installed wheel"
    assert files("lore.nn.cpu").joinpath("kernels.cpp").is_file(), "the wheel has no kernels.cpp"
    total = 0
    for group, plus in GROUPS.items():
        names = sorted(
            entry.name.removesuffix(".yaml")
            for entry in files("lore.conf").joinpath(group).iterdir()
            if entry.name.endswith(".yaml")
        )
        in_source = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
        assert names == in_source and names, f"conf/{group}: the wheel has {names}, the source {in_source}"
        for name in names:
            choice = f"{plus}{group}={name}"
            needs = ["prior_net.enabled=true"] if group == "teach" else NEEDS.get(choice, [])
            compose([choice, *needs])
        total += len(names)
    print(f"{total} configs compose from {home.parent}")


main()

"""The presets hold the values that their sources state."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from lore.config.compose import compose
from lore.config.options import Config

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (.+?) \| (.+?) \| `(\S+)` \| (\S+) \|$", re.MULTILINE)
TABLE = [m.groups() for m in ROW.finditer((ROOT / "docs" / "preset-seed.md").read_text(encoding="utf-8"))]


def read(cfg: Config, key: str) -> Any:
    """A dotted key; the last part may be one of a mapping."""
    head, _, last = key.rpartition(".")
    holder = attrgetter(head)(cfg)
    return holder[last] if isinstance(holder, dict) else getattr(holder, last)


def leaves(node: dict[str, Any], prefix: str = "") -> set[str]:
    return {
        leaf
        for name, value in node.items()
        for leaf in (leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name})
    }


def test_the_seed_preset_has_every_value_of_its_table() -> None:
    cfg = compose(["+preset=seed"])
    assert len(TABLE) == 28
    for original, _, key, value in TABLE:
        assert read(cfg, key) == yaml.safe_load(value), original


def test_the_table_states_what_the_original_states() -> None:
    for original, stated, _, value in TABLE:
        if stated not in ("on", "no number", "False"):
            assert float(stated) == float(value), original


def test_the_seed_preset_sets_nothing_that_the_table_does_not_name() -> None:
    preset = yaml.safe_load((ROOT / "conf" / "preset" / "seed.yaml").read_text(encoding="utf-8"))
    assert leaves(preset) == {key for _, _, key, _ in TABLE}

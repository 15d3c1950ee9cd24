"""What a name stands for: the rows of this package's own table, and entry points of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lore.base.errors import BadInput


def names(group: str, table: Mapping[str, str]) -> list[str]:
    """Every name that `load` knows, sorted."""
    return sorted({*table, *(point.name for point in entry_points(group=group))})


def load(group: str, table: Mapping[str, str], name: str, key: str, what: str) -> Any:
    """The object that `name` stands for.

    group: of entry points. table: name -> "module:attribute". Raises BadInput naming `key` where the name
    is unknown, claimed twice or cannot be imported; `what` it is, in one word.
    """
    own = [EntryPoint(own, value, group) for own, value in table.items()]
    points = {(point.name, point.value): point for point in [*own, *entry_points(group=group)]}
    found = [point for (known, _), point in points.items() if known == name]
    if not found:
        raise BadInput(key, f"unknown {what} {name!r}; use one of {', '.join(names(group, table))}")
    if len(found) > 1:
        claims = " and ".join(point.value for point in found)
        raise BadInput(key, f"{name!r} is claimed by {claims}; uninstall one of them")
    try:
        return found[0].load()
    except (ImportError, AttributeError) as error:
        raise BadInput(key, f"{name!r} cannot be loaded: {error}") from error

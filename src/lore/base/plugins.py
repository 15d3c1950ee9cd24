"""What a name stands for: the rows of this package's own table, and entry points of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lore.base.errors import BadInput


def names(group: str, table: Mapping[str, str]) -> list[str]:
    """List every name that `load` knows, sorted.

    Args:
        group: Group of entry points.
        table: Name -> "module:attribute", the rows of this package.
    """
    return sorted({*table, *(point.name for point in entry_points(group=group))})


def load(group: str, table: Mapping[str, str], name: str, key: str, what: str) -> Any:
    """Load the object that a name stands for.

    Args:
        group: Group of entry points.
        table: Name -> "module:attribute", the rows of this package.
        name: The name.
        key: The option that holds the name, for the error.
        what: What the object is, in one word, for the error.

    Returns:
        The object, such as a class or a factory.

    Raises:
        BadInput: The name is unknown, claimed twice, or cannot be imported; `key` is named.
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

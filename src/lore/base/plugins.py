"""What a name stands for: the rows of this package's own table, and entry points of installed packages."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
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
    point = _find(group, table, name, key, what)
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise BadInput(key, f"{name!r} cannot be loaded: {error}") from error


def refuse_faulty(
    group: str, table: Mapping[str, str], name: str, key: str, what: str, faults: Collection[str], page: str
) -> None:
    """Refuse what a name stands for, if anything is wrong with it.

    Args:
        group: Group of entry points.
        table: Name -> "module:attribute", the rows of this package.
        name: The name.
        key: The option that holds the name, for the error.
        what: What the object should be, in one word, for the error.
        faults: What is wrong with it, such as "it has no method ask"; none: nothing is.
        page: The page of docs/ that says what is right.

    Raises:
        BadInput: There are faults; `key`, the name and its entry point are named.
    """
    if faults:
        place = _find(group, table, name, key, what).value
        raise BadInput(key, f"{name!r} ({place}) is no {what}: {'; '.join(faults)}. See {page}")


def faults_of_call(factory: object, given: str, count: int) -> list[str]:
    """Say why a class or a factory cannot be called with so many arguments. Nothing is called.

    Args:
        factory: The class or the factory.
        given: What the arguments are, for the error.
        count: Number of positional arguments.

    Returns:
        What is wrong; empty where it can be called, or where its signature is not known.
    """
    if not callable(factory):
        return ["it is neither a class nor a function"]
    try:
        inspect.signature(factory).bind(*[None] * count)
    except TypeError as error:
        return [f"it does not take {given} ({error})"]
    except ValueError:  # a class written in C may have no signature
        pass
    return []


def missing(thing: object, attributes: Collection[str], methods: Collection[str]) -> list[str]:
    """List what an object lacks.

    Args:
        thing: The object, or its class.
        attributes: Names of the attributes that it needs.
        methods: Names of the methods that it needs.

    Returns:
        One text for each, such as "it has no method ask".
    """
    return [
        *(f"it has no attribute {name}" for name in attributes if not hasattr(thing, name)),
        *(f"it has no method {name}" for name in methods if not callable(getattr(thing, name, None))),
    ]


def _find(group: str, table: Mapping[str, str], name: str, key: str, what: str) -> EntryPoint:
    """Find the one entry point of a name. Raises BadInput."""
    own = [EntryPoint(own, value, group) for own, value in table.items()]
    points = {(point.name, point.value): point for point in [*own, *entry_points(group=group)]}
    found = [point for (known, _), point in points.items() if known == name]
    if not found:
        raise BadInput(key, f"unknown {what} {name!r}; use one of {', '.join(names(group, table))}")
    if len(found) > 1:
        claims = " and ".join(point.value for point in found)
        raise BadInput(key, f"{name!r} is claimed by {claims}; uninstall one of them")
    return found[0]

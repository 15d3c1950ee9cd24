"""What the options are: key, type and comment of every field, read from the dataclasses and their source."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

_FIELD = re.compile(r"^    (\w+): .*?(?:\s#\s(.*))?$")
_HEADING = re.compile(r"^    # (.*)$")


@dataclasses.dataclass(frozen=True)
class Field:
    """One option.

    key: dotted, as on the command line. hint: its type, a dataclass for a group of options. comment: the one
    behind it in the source. heading: the comment line above it, where its neighbours share one.
    """

    key: str
    hint: Any
    comment: str
    heading: str


def fields(cls: type, prefix: str = "") -> Iterator[Field]:
    """List every option of a dataclass, groups of options included, in the order of the source.

    Args:
        cls: A dataclass whose fields stand on one line each, with the comment behind.
        prefix: Text before each key, with the dot; empty at the top.

    Yields:
        The options; a group comes before the options in it.
    """
    hints, comments = typing.get_type_hints(cls), _comments(cls)
    for field in dataclasses.fields(cls):
        comment, heading = comments[field.name]
        yield Field(prefix + field.name, hints[field.name], comment, heading)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from fields(hints[field.name], f"{prefix}{field.name}.")


@cache
def types_of(cls: type) -> dict[str, Any]:
    """Return the type of every option of a dataclass, groups of options included.

    Args:
        cls: A dataclass, as `fields` takes it.

    Returns:
        Dotted key -> type.
    """
    return {field.key: field.hint for field in fields(cls)}


def accepts(hint: Any, kind: type) -> bool:
    """Say whether a type is a given one, or a union that holds it, as `int | None` holds int.

    Args:
        hint: Type of an option; None for a key that is no option.
        kind: The type to look for.
    """
    return hint is kind or (isinstance(hint, types.UnionType) and kind in typing.get_args(hint))


def in_words(hint: Any, key: str) -> str:
    """Say in plain English what an option of a type takes.

    Args:
        hint: Type of the option; None for an entry of a mapping of numbers.
        key: Dotted key of the option, for examples.
    """
    if hint is None:
        return "a number"
    if isinstance(hint, types.UnionType):
        return " or ".join(in_words(part, key) for part in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return f"values for its keys, as in {key}.{dataclasses.fields(hint)[0].name}=VALUE"
    if hint == list[str]:
        return f"a list, as in {key}=[first,second]"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "null",
    }
    return words.get(hint, f"a mapping from names to numbers; one of them is {key}.NAME=NUMBER")


@cache
def _comments(cls: type) -> dict[str, tuple[str, str]]:
    """Field -> the comment behind it, and the comment line above it or above its neighbours."""
    found: dict[str, tuple[str, str]] = {}
    heading = ""
    for line in inspect.getsource(cls).splitlines():
        above, field = _HEADING.match(line), _FIELD.match(line)
        if above:
            heading = above[1]
        elif field:
            found[field[1]] = (field[2] or "", heading)
    return found

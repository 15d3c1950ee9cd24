"""A command's own KEY=VALUE arguments, apart from those that it shares with lore-train."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lore.config import compose as config
from lore.config.options import Config

ADVISED = ["agent=prior", "llm=scripted"]  # what lore-train's options start from here


def split_arguments(command: str, cls: type, arguments: Sequence[str]) -> tuple[Any, Config]:
    """The command's own options, and lore-train's for what is left."""
    names = {field.name for field in dataclasses.fields(cls)}
    own = [a for a in arguments if a.partition("=")[0] in names]
    cfg = config.compose([*ADVISED, *(a for a in arguments if a not in own)])
    return config.plain_options(cls, command, own), cfg


def swept_values(argument: str) -> list[str]:
    """KEY=A,B -> KEY=A, KEY=B."""
    key, equals, values = argument.partition("=")
    return [f"{key}{equals}{value}" for value in values.split(",")]

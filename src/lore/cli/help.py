"""Pages for --help: a word on each option, from the comments in the dataclasses, and the names in a group."""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from lore.config.checks import CHOICES
from lore.config.explain import ADDED, group_names
from lore.config.fields import Field, fields
from lore.config.options import Config
from lore.config.plugins import installed_names

FLAGS = {
    "--help": ("-h, --help", "this page"),
    "--version": ("--version", "the version"),
    "--multirun": ("-m, --multirun", "a run for each combination of the values between commas"),
    "--config-dir": (
        "--config-dir=FOLDER",
        "configs of your own, in FOLDER/env, FOLDER/llm, FOLDER/experiment and so on",
    ),
    "--cfg": ("--cfg job", "print the options of this run, and end"),
}
"""Flag -> how it is written, and what it does."""
COLUMN = 36  # at which comments start
NARROWEST, WIDEST = 80, 110  # columns of a page


def page(
    intro: str,
    flags: Iterable[str] = (),
    own: Sequence[type] = (),
    shared: Sequence[str] | None = (),
) -> str:
    """Write the text that --help prints.

    Args:
        intro: What the command does, with examples.
        flags: Flags that the command takes besides --help and --version.
        own: Dataclasses of the command's options.
        shared: First parts of lore-train's keys that the command takes too; None: all of them.
    """
    parts = [intro.strip(), "Flags:\n" + "\n".join(map(_flag, ("--help", "--version", *flags)))]
    parts.extend(_options(cls.__doc__ or "", fields(cls), cls()) for cls in own)
    if shared is None or shared:
        parts.append(_groups(shared))
        parts += _shared(shared)
    return "\n\n".join(parts) + "\n"


def _flag(name: str) -> str:
    return _entry(*FLAGS[name])


def _groups(shared: Sequence[str] | None) -> str:
    """The groups of configs and the names in each, those of installed packages included."""
    installed = installed_names()
    lines = ["Groups, GROUP=NAME sets many values at once (those with + are added):"]
    for group, names in group_names().items():
        if shared is None or group in shared:
            more = sorted(set(installed.get(group, [])) - set(names))
            lines.append(_entry(f"{'+' if group in ADDED else ''}{group}=", ", ".join([*names, *more])))
    return "\n".join(lines)


def _shared(shared: Sequence[str] | None) -> Iterable[str]:
    """Values of lore-train's options, group by group."""
    every = [field for field in fields(Config) if shared is None or field.key.partition(".")[0] in shared]
    defaults = Config()
    top = [f for f in every if "." not in f.key and not dataclasses.is_dataclass(f.hint)]
    if top:
        yield _options("The whole run.", top, defaults)
    for group in (f for f in every if "." not in f.key and dataclasses.is_dataclass(f.hint)):
        yield _options(
            group.hint.__doc__ or "", [f for f in every if f.key.startswith(f"{group.key}.")], defaults
        )


def _options(title: str, options: Iterable[Field], defaults: Any) -> str:
    """Options with their defaults, a line each or more."""
    lines, heading = textwrap.wrap(title.split("\n\n")[0], _width()), ""
    for field in options:
        if dataclasses.is_dataclass(field.hint):
            continue
        if field.heading != heading:
            heading = field.heading
            lines += [f"  -- {heading}"] if heading else []
        lines.append(_entry(f"{field.key}={_plain(attrgetter(field.key)(defaults))}", _comment(field)))
    return "\n".join(lines)


def _comment(field: Field) -> str:
    """The comment of an option, and its choices where the comment leaves one out."""
    choices = CHOICES.get(field.key, ())
    left_out = any(choice not in field.comment for choice in choices)
    return f"{field.comment} ({' | '.join(choices)})" if left_out else field.comment


def _entry(what: str, comment: str) -> str:
    """What is typed, and from COLUMN on what it does; on the next line where what is typed is long."""
    indent, first = " " * COLUMN, f"  {what:{COLUMN - 2}s}"
    if len(what) > _width() - 2:  # a mapping, broken between its entries
        first = "\n    ".join(textwrap.wrap(f"  {what.replace(',', ', ')}", _width() - 4))
    lines = textwrap.wrap(comment, _width() - COLUMN, break_on_hyphens=False)
    if first.endswith(" ") and lines:
        return "\n".join([first + lines[0], *(indent + line for line in lines[1:])])
    return "\n".join([first.rstrip(), *(indent + line for line in lines)])


def _width() -> int:
    """Columns of a page on this terminal."""
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def _plain(value: Any) -> str:
    """A default as it is typed."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{v:g}" for k, v in value.items()) + "}"
    return json.dumps(value)

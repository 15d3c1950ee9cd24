"""Text as typed: what a person writes after KEY=, in the words of Hydra's grammar.

Hydra reads a value without knowing the option's type: to Hydra 1e5 is a number, 10k is text and `it's` is an
error. Here the type decides. Text and the names of groups are quoted, so that they arrive as they were typed;
whole numbers may be written as 10k, 1e4 or 1_000.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

from lore.base.errors import BadInput
from lore.base.files import user_path
from lore.config.fields import accepts, in_words, types_of
from lore.config.options import Config

FOLDERS = ("run.dir", "hydra.run.dir", "hydra.sweep.dir")  # folders that Hydra makes before a job starts
_WHOLE = re.compile(r"([+-]?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+]?[0-9]{1,2})?)([kKM]?)")
_FACTORS = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}
OPTIONAL = ("llm.prices",)  # groups of options that are null by default: OmegaConf cannot fill them from text
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")
_GRAMMAR = re.compile(
    r"(choice|range|glob|interval|shuffle|sort|tag|cast|int|str|float|bool|extend_list)\(.*\)", re.DOTALL
)


def whole_number(text: str) -> int | None:
    """Read a whole number as people write it: 10k, 1e4, 1_000 or 2.5k.

    Args:
        text: What was typed.

    Returns:
        The number; None where the text is no whole number.
    """
    match = _WHOLE.fullmatch(text.strip())
    if match is None:
        return None
    try:
        value = Decimal(match[1].replace("_", "")) * _FACTORS[match[2]]
    except InvalidOperation:
        return None
    return int(value) if value == value.to_integral_value() else None


def as_hydra(arguments: Iterable[str], groups: Iterable[str], *, sweep: bool = False) -> list[str]:
    """Translate a command line into overrides for Hydra.

    Args:
        arguments: KEY=VALUE, +KEY=VALUE, ~KEY.
        groups: Names of the config groups; their values are names.
        sweep: Whether commas separate the values of several jobs.

    Raises:
        BadInput: A value cannot be what the option needs; the key is named.
    """
    hints = types_of(Config)
    names = set(groups)
    return [_override(argument, hints, names, sweep) for argument in arguments]


def _override(argument: str, hints: dict[str, Any], groups: set[str], sweep: bool) -> str:
    typed, equals, value = argument.partition("=")
    key = typed.lstrip("+~")
    if not key:
        raise BadInput("command line", f"{argument!r} names no key; write KEY=VALUE")
    if key == "hydra.searchpath":
        raise BadInput(key, "write --config-dir=FOLDER")
    if not equals or typed.startswith("~"):
        return argument
    if key.rpartition(".")[0] in OPTIONAL or key in OPTIONAL:
        group = key.partition(".")[0]
        raise BadInput(key, f"is set in a file, FOLDER/{group}/NAME.yaml: --config-dir=FOLDER {group}=NAME")
    if _CONTROL.search(argument):
        raise BadInput(key, f"{value!r} holds a control character; leave it out")
    if key in FOLDERS:
        value = _folder(key, value)
    if key == "resume" and not value:
        raise BadInput(key, "is empty; name the run folder to go on with: lore-train resume=RUN_DIR")
    hint = hints.get(key)
    if hint == list[str]:
        return f"{typed}={_each(value, sweep, partial(_list, key))}"
    if accepts(hint, int):
        return f"{typed}={_each(value, sweep, _whole)}"
    if key in groups and "," in value and not sweep:
        raise BadInput(key, "several values need -m (a run for each)")
    if key in groups and value in ("null", ""):
        raise BadInput(key, f"names none; write {key}=NAME, or leave it out")
    if accepts(hint, str) or key in groups or key in FOLDERS:
        return f"{typed}={_each(value, sweep, quoted)}"
    return argument


def _folder(key: str, value: str) -> str:
    """A folder to be made, with ~ expanded. Raises BadInput."""
    if not value.strip("'\" "):
        raise BadInput(key, f"is empty; name a folder, as in {key}=runs/first, or leave it out")
    return str(user_path(value, key)) if value.startswith("~") else value


def _each(value: str, sweep: bool, convert: Callable[[str], str]) -> str:
    """`convert` for a value, or in a sweep for each of the values between commas."""
    if _GRAMMAR.fullmatch(value) or _INTERPOLATION.fullmatch(value):
        return value
    return ",".join(map(convert, _split(value))) if sweep else convert(value)


def _split(text: str) -> list[str]:
    """Parts between commas that stand in no quotes, brackets or ${...}."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"" and parts[-1] == "":
            quote = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def _whole(value: str) -> str:
    number = whole_number(value)
    return value if number is None else str(number)


def quoted(value: str) -> str:
    """Put text in Hydra's quotes; null, empty text and what is quoted already stay as they are.

    Args:
        value: The text.
    """
    if value in ("null", "") or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return value
    # Hydra drops backslashes only before a quote, and at the end of the text.
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", value)
    tail = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * tail}'"


def _list(key: str, value: str) -> str:
    if value.startswith("${"):
        return value
    if not (value.startswith("[") and value.endswith("]")):
        raise BadInput(key, f"needs {in_words(list[str], key)}, not {value!r}")
    inner = value[1:-1].strip()
    return f"[{','.join(quoted(part.strip()) for part in _split(inner))}]" if inner else "[]"

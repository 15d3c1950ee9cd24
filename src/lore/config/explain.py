"""What Hydra or OmegaConf refused, as one line that names the key and what would be right."""

from __future__ import annotations

import dataclasses
import difflib
import re
from importlib.resources import files
from pathlib import PurePath

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError

from lore.base.errors import BadInput
from lore.config.fields import in_words, types_of
from lore.config.options import Config

ADDED = ("preset", "ablation", "experiment")  # groups that are added (+preset=NAME), not chosen
ELSEWHERE = {
    "env": "; any other world goes in env.id=ID or env.id=PACKAGE:ID",
    "experiment": "; your own stand in FOLDER/experiment, with --config-dir=FOLDER",
}


def group_names() -> dict[str, list[str]]:
    """List the names in every config group, as in lore/conf.

    Returns:
        Config group -> names; the groups in ADDED come last.
    """
    folders = [
        f for f in files("lore.conf").iterdir() if f.is_dir() and f.name not in ("hydra", "__pycache__")
    ]
    found = {
        f.name: sorted((PurePath(c.name).stem for c in f.iterdir() if c.name.endswith(".yaml")), key=_rank)
        for f in folders
    }
    return {name: found[name] for name in sorted(found, key=lambda name: (name in ADDED, name))}


def _rank(name: str) -> tuple[int, str]:
    """Sort sizes such as 500k and 12m by their number of parameters, and other names by the alphabet."""
    size = re.fullmatch(r"(\d+)([km])", name)
    return (int(size[1]) * {"k": 1_000, "m": 1_000_000}[size[2]] if size else 0), name


def explain(error: BaseException) -> BadInput:
    """Turn an error that Hydra or OmegaConf raised while it composed a config into one line.

    Args:
        error: What was raised.

    Returns:
        The error to raise instead; it names the key, or the file, and what would be right.
    """
    if isinstance(error, MissingConfigException):
        return _no_config(error)
    if isinstance(error, OverrideParseException):
        return _not_read(error.override)
    cause = error.__cause__ or error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        return unknown(cause.full_key)
    if isinstance(cause, ValidationError) and cause.full_key:
        merging = re.match(r"Error merging override (.*)", str(error))
        return wrong_type(cause, Config, merging[1].strip() if merging else "")
    text = " ".join(str(error).split())
    in_file = re.match(r"In '([^']+)': (.*)", text)
    if isinstance(error, ConfigCompositionException) and in_file:
        return _wrong_file(in_file[1], in_file[2])
    absent = re.match(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text)
    if absent:
        return unknown(absent[1].partition("=")[0])
    twice = re.match(r"Multiple values for (\S+)\.|(\S+) appears more than once", text)
    if twice:
        return BadInput(
            twice[1] or twice[2], "is given twice; give it once, and without + where it is chosen"
        )
    if re.match(r"Ambiguous value|Sweep parameters", text):
        named = re.search(r"'([^'=]+)=", text)
        return BadInput(named[1] if named else "command line", "several values need -m (a run for each)")
    if isinstance(error, YAMLError):
        return BadInput("config file", text)
    if isinstance(error, OSError):
        return BadInput("run.dir", f"cannot be written: {text}")
    full_key = cause.full_key if isinstance(cause, OmegaConfBaseException) else None
    if isinstance(cause, InterpolationResolutionError):
        return BadInput(full_key or "config", f"${{...}} in it names nothing: {_first(cause)}")
    return BadInput(full_key or "config", _first(cause))


def unknown(key: str) -> BadInput:
    """Make the error for an option that does not exist, with the options that may have been meant.

    Args:
        key: The key that was typed, without leading + or ~.

    Returns:
        The error, for the caller to raise.
    """
    groups = group_names()
    if key in ADDED:
        return BadInput(key, f"is added to a run: write +{key}=NAME, one of {', '.join(groups[key])}")
    if key.startswith("hydra.launcher."):
        return BadInput(key, "is an option of jobs side by side: add -m hydra/launcher=parallel")
    keys = [name for name, hint in types_of(Config).items() if not dataclasses.is_dataclass(hint)]
    tail = key.rpartition(".")[2]
    near = [name for name in keys if name.rpartition(".")[2] == tail]
    if not near and "." not in key:
        near = [
            f"{'+' if name in ADDED else ''}{name}=NAME"
            for name in difflib.get_close_matches(key, list(groups), n=1, cutoff=0.6)
            if not difflib.get_close_matches(key, ["seed", "device", "threads", "resume"], n=1, cutoff=0.85)
        ]
    near = near or difflib.get_close_matches(key, keys, n=2, cutoff=0.6)
    near = near or [
        name for name in keys if difflib.get_close_matches(tail, [name.rpartition(".")[2]], 1, 0.8)
    ]
    hint = f"did you mean {' or '.join(near[:3])}?" if near else "lore-train --help lists all"
    return BadInput(key, f"unknown key; {hint}")


def wrong_type(error: OmegaConfBaseException, schema: type, override: str = "") -> BadInput:
    """Make the error for a value that the option's type cannot be.

    Args:
        error: OmegaConf's error, which names the key.
        schema: Dataclass of the options.
        override: KEY=VALUE that gave the value; empty where that is unknown.

    Returns:
        The error, for the caller to raise.
    """
    key = error.full_key or ""
    given = override.partition("=")[2].strip("'")
    needs = in_words(types_of(schema).get(key), key)
    return BadInput(key, f"needs {needs}{f', not {given!r}' if given else ''}")


def _no_config(error: MissingConfigException) -> BadInput:
    group, _, name = str(error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or (), key=_rank)
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {near[0]}? There are" if near else "use one of"
    return BadInput(
        group or "config",
        f"no {name!r} here; {hint} {', '.join(options) or '(none found)'}{ELSEWHERE.get(group, '')}",
    )


def _wrong_file(name: str, text: str) -> BadInput:
    """What is wrong with a config file, `name` without .yaml; text: Hydra's words, which name the key."""
    key, group = re.search(r"full_key: (?!object_type|reference_type)([\w.]+)", text), name.partition("/")[0]
    override = re.match(r"Could not override '([^']+)'", text)
    if override:
        return BadInput(name, f"overrides {override[1]!r}: {str(unknown(override[1])).partition(': ')[2]}")
    if key is None:
        return BadInput(name, f"{text.partition(' full_key:')[0]}; a group is chosen under `defaults:`")
    if key[1] == group and group in ADDED:
        return BadInput(name, "its first line must be `# @package _global_`")
    if "ConfigKeyError" in text:
        return BadInput(key[1], f"{str(unknown(key[1])).partition(': ')[2]} (in {name}.yaml)")
    return BadInput(key[1], f"needs {in_words(types_of(Config).get(key[1]), key[1])} (in {name}.yaml)")


def _not_read(override: str) -> BadInput:
    key, equals, value = override.partition("=")
    name = key.lstrip("+~")
    if not equals:
        group = next((group for group, names in group_names().items() if name in names), None)
        if group is not None:
            return BadInput(name, f"has no key; did you mean {'+' if group in ADDED else ''}{group}={name}?")
        return BadInput(name, f"has no value; write {key}=VALUE")
    return BadInput(
        name or override, f"cannot read the value {value!r}; put it in quotes, as in '{key}=\"VALUE\"'"
    )


def _first(error: BaseException) -> str:
    return " ".join(str(error).split("full_key:")[0].split())

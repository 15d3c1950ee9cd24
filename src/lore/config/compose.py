"""Hydra's side of the options: typed schema, composition, stored configs, and any error as one line.

With `cli.py` the only module that imports Hydra or OmegaConf. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from lore.base.errors import BadInput
from lore.base.files import as_file_name
from lore.config.ablations import arm_name
from lore.config.checks import check, check_eval
from lore.config.options import Config, EvalOptions

__all__ = [
    "check",
    "compose",
    "defaults",
    "eval_options",
    "explain",
    "load_stored",
    "plain_options",
    "to_options",
    "to_yaml",
]

CONFIG_MODULE = "lore.conf"
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}
PRESETS = ("preset", "ablation")  # groups that are added (+preset=NAME), not chosen

ConfigStore.instance().store(name="schema", node=Config, provider="lore")
OmegaConf.register_new_resolver("lore.arm", lambda *, _root_: arm_name(_root_), replace=True)
OmegaConf.register_new_resolver("lore.task", lambda *, _root_: as_file_name(_root_.env.id), replace=True)
OmegaConf.register_new_resolver("lore.cores", lambda: os.cpu_count() or 1, replace=True)


def compose(overrides: Sequence[str] = ()) -> Config:
    """The checked options of `lore-train OVERRIDES`, for notebooks and tests; raises BadInput."""
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return to_options(hydra_compose("config", overrides=list(overrides)))
    except BadInput:
        raise
    except Exception as error:
        raise explain(error) from error


def to_options(node: DictConfig) -> Config:
    """Checked options of a composed config; raises BadInput at an unknown key or a contradiction."""
    try:
        _refuse_unknown(OmegaConf.to_container(node))
        cfg = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(cfg, Config)
    check(cfg)
    return cfg


def to_yaml(cfg: Config) -> str:
    """The resolved config as YAML: what config.yaml of a run folder holds."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def load_stored(run_dir: Path, overrides: Sequence[str] = (), device: str | None = None) -> Config:
    """Options of a stored run. `overrides` may set run.steps and nothing else; raises BadInput.

    device: the one to use here instead of the stored one.
    """
    path = run_dir / "config.yaml"
    if not path.is_file() or not path.stat().st_size:
        raise BadInput("resume", f"{str(run_dir)!r} is not a run folder: no config.yaml, or an empty one")
    try:
        node = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        for override in overrides:
            key, _, value = override.partition("=")
            if key != "run.steps":
                raise BadInput(key.lstrip("+~"), "resume takes the stored config; only run.steps may change")
            node = OmegaConf.merge(node, {"run": {"steps": value}})
    except (OSError, YAMLError) as error:
        raise BadInput("resume", f"cannot read {path}: {' '.join(str(error).split())}") from error
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(node, DictConfig)
    node.run.dir = str(run_dir)
    if device is not None:
        node.device = device
    return to_options(node)


def eval_options(arguments: Sequence[str]) -> EvalOptions:
    """Checked options of `lore-eval KEY=VALUE ...`; raises BadInput."""
    options = plain_options(EvalOptions, "lore-eval", arguments)
    check_eval(options)
    return options


T = TypeVar("T")


def plain_options(cls: type[T], command: str, arguments: Sequence[str]) -> T:
    """Options of a command that has no groups, from KEY=VALUE ...; raises BadInput."""
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    given: dict[str, str | None] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in known:
            raise BadInput(key, f"unknown key; {command} takes {', '.join(known)}, each as KEY=VALUE")
        if not equals:
            raise BadInput(key, f"has no value; write {key}=VALUE")
        given[key] = None if value == "null" else value
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
    except OmegaConfBaseException as error:
        raise _wrong_type(error, cls) from error
    assert isinstance(options, cls)
    return options


def defaults(cls: type) -> str:
    """A command's options as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(cls))


def explain(error: BaseException) -> BadInput:
    """What Hydra or OmegaConf refused, as one line that names the key and what would be right."""
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file or "").rpartition("/")
        options = ", ".join(error.options or ())
        other = "; any other world goes in env.id=ID or env.id=PACKAGE:ID" if group == "env" else ""
        return BadInput(group or "config", f"no {name!r} here; use one of {options or '(none found)'}{other}")
    if isinstance(error, OverrideParseException):
        key = error.override.partition("=")[0]
        return BadInput(key.lstrip("+~"), f"cannot read {error.override!r}; write {key}=VALUE")
    cause = error.__cause__ or error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        return _unknown(cause.full_key)
    if isinstance(cause, ValidationError) and cause.full_key:
        return _wrong_type(cause, Config, str(error))
    text = " ".join(str(error).split())
    absent = re.match(r"Could not override '([^']+)'", text)
    if absent:
        return _unknown(absent[1])
    if re.match(r"Ambiguous value|Sweep parameters", text):
        named = re.search(r"'([^'=]+)=", text)
        return BadInput(named[1] if named else "command line", "several values need -m (a run for each)")
    if isinstance(error, OSError):
        return BadInput("run.dir", f"cannot be written: {text}")
    full_key = cause.full_key if isinstance(cause, OmegaConfBaseException) else None
    return BadInput(full_key or "config", " ".join(str(cause).split("full_key:")[0].split()))


def _fields(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, type) of every option below a dataclass, groups included."""
    for name, hint in typing.get_type_hints(cls).items():
        yield prefix + name, hint
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint, f"{prefix}{name}.")


def _refuse_unknown(values: Any) -> None:
    known = dict(_fields(Config))

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            if prefix + name not in known:
                raise _unknown(prefix + name)
            if dataclasses.is_dataclass(known[prefix + name]):
                walk(value, f"{prefix}{name}.")

    walk(values, "")


def _unknown(key: str) -> BadInput:
    if key in PRESETS:
        return BadInput(key, f"is added to a run: write +{key}=NAME")
    keys = [name for name, hint in _fields(Config) if not dataclasses.is_dataclass(hint)]
    tail = key.rpartition(".")[2]
    near = [name for name in keys if name.rpartition(".")[2] == tail]
    near = near or difflib.get_close_matches(key, keys, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "lore-train --help lists all"
    return BadInput(key, f"unknown key; {hint}")


def _wrong_type(error: OmegaConfBaseException, schema: type, override: str = "") -> BadInput:
    key = error.full_key or ""
    given = override.partition("=")[2] if override.startswith("Error merging override") else ""
    needs = _in_words(dict(_fields(schema)).get(key), key)
    return BadInput(key, f"needs {needs}{f', not {given!r}' if given else ''}")


def _in_words(hint: Any, key: str) -> str:
    if hint is None:
        return "a number"  # an entry of a mapping
    if isinstance(hint, types.UnionType):
        return " or ".join(_in_words(part, key) for part in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return f"values for its keys, as in {key}.{dataclasses.fields(hint)[0].name}=VALUE"
    return _WORDS.get(hint, "a mapping from names to numbers")

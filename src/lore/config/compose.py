"""Hydra's side of the options: typed schema, composition and stored configs. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Iterator, Sequence
from importlib.resources import files
from importlib.util import find_spec
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lore.base.errors import BadInput
from lore.base.files import as_file_name, user_path
from lore.base.machine import allotted_cores
from lore.config import plugins
from lore.config.ablations import arm_name
from lore.config.checks import check, check_eval
from lore.config.command_options import PATHS, EvalOptions
from lore.config.explain import explain, group_names, unknown, wrong_type
from lore.config.fields import accepts, types_of
from lore.config.options import Config
from lore.config.typed import as_hydra, quoted, whole_number

__all__ = [
    "as_overrides",
    "check",
    "compose",
    "compose_jobs",
    "eval_options",
    "explain",
    "is_known",
    "plain_options",
    "to_options",
    "to_yaml",
]

CONFIG_MODULE = "lore.conf"


ConfigStore.instance().store(name="schema", node=Config, provider="lore")
OmegaConf.register_new_resolver("lore.arm", lambda *, _root_: arm_name(_root_), replace=True)
OmegaConf.register_new_resolver("lore.task", lambda *, _root_: as_file_name(_root_.env.id), replace=True)
OmegaConf.register_new_resolver("lore.cores", allotted_cores, replace=True)
OmegaConf.register_new_resolver("lore.folder", lambda path: str(user_path(path, "run.dir")), replace=True)


def compose(overrides: Sequence[str] = (), config_dir: str | None = None) -> Config:
    """Compose and check the options of `lore-train OVERRIDES`, for notebooks and tests.

    Args:
        overrides: KEY=VALUE, GROUP=NAME, +preset=NAME and so on, as on the command line.
        config_dir: A folder of your own configs, as --config-dir gives it; None: none.

    Raises:
        BadInput: The options cannot be run; the message names the key, and what would be right.
    """
    return next(compose_jobs(as_overrides(overrides, config_dir)))


def compose_jobs(overrides: Sequence[str], *, sweep: bool = False) -> Iterator[Config]:
    """Compose and check the options of one run, or of each job of a sweep.

    Args:
        overrides: What `as_overrides` returned.
        sweep: Whether the values between commas are those of several jobs.

    Yields:
        The options of each job.

    Raises:
        BadInput: At the first job that cannot be run.
    """
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            for job in _jobs(overrides) if sweep else [list(overrides)]:
                yield to_options(hydra_compose("config", overrides=job))
    except BadInput:
        raise
    except Exception as error:
        raise explain(error) from error


def as_overrides(
    arguments: Sequence[str], config_dir: str | None = None, *, sweep: bool = False
) -> list[str]:
    """Translate what was typed into Hydra's words, and add the places where configs are looked for.

    Args:
        arguments: KEY=VALUE ... of the command line.
        config_dir: A folder of your own configs; None: none.
        sweep: Whether commas separate the values of several jobs.

    Returns:
        Overrides for Hydra.

    Raises:
        BadInput: A value cannot be what the option needs, or there is no such folder; the key is named.
    """
    packages = plugins.config_packages()
    places = [f"pkg://{package}" for package in packages]
    if config_dir is not None:
        folder = user_path(config_dir, "--config-dir").absolute()
        if not folder.is_dir():
            raise BadInput(
                "--config-dir", f"{config_dir!r} is no folder; name one that holds env/, llm/ and so on"
            )
        places.append(f"file://{folder}")
    _offer_installed(packages, config_dir)
    given = as_hydra(arguments, group_names(), sweep=sweep)
    return [*given, f"hydra.searchpath=[{','.join(map(quoted, places))}]"] if places else given


def _offer_installed(packages: Sequence[str], config_dir: str | None) -> None:
    """Make env=NAME, gate=NAME and llm=NAME known for every entry point of an installed package.

    A file GROUP/NAME.yaml goes before an entry point of that name.
    """
    own, store = group_names(), ConfigStore.instance()
    folders: list[Any] = [files(package) for package in packages if find_spec(package)]
    folders += [] if config_dir is None else [user_path(config_dir, "--config-dir")]
    for group, names in plugins.installed_names().items():
        _, key = plugins.NAMED[group]
        for name in set(names) - set(own[group]):
            if any((folder / group / f"{name}.yaml").is_file() for folder in folders):
                store.repo.get(group, {}).pop(f"{name}.yaml", None)
            else:
                store.store(name, {key: name}, group=group, provider="entry points")


def _jobs(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Overrides of each job: every combination of the values that are swept over."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = []
    for typed, override in zip(overrides, parsed, strict=True):
        if override.is_sweep_override() and override.is_discrete_sweep():
            key = typed.partition("=")[0]
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([typed])
    return map(list, itertools.product(*choices))


def is_known(key: str) -> bool:
    """Say whether lore-train has an option or a group of this name.

    Args:
        key: Dotted key, such as run.steps.
    """
    return key in types_of(Config) or key in group_names() or key.partition(".")[0] == "hydra"


def to_options(node: DictConfig) -> Config:
    """Turn a composed config into checked options.

    Args:
        node: The config, with all groups merged.

    Raises:
        BadInput: A key is unknown, a value has the wrong type, or options contradict one another.
    """
    try:
        _refuse_unknown(OmegaConf.to_container(node))
        cfg = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(cfg, Config)
    check(cfg)
    return cfg


def to_yaml(cfg: Config) -> str:
    """Write a resolved config as YAML: what config.yaml of a run folder holds.

    Args:
        cfg: Options of the run.
    """
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def eval_options(arguments: Sequence[str]) -> EvalOptions:
    """Read and check the options of `lore-eval KEY=VALUE ...`.

    Args:
        arguments: KEY=VALUE ... of the command line.

    Raises:
        BadInput: A key is unknown, or a value is wrong or missing; the key is named.
    """
    options = plain_options(EvalOptions, "lore-eval", arguments)
    check_eval(options)
    return options


T = TypeVar("T")


def plain_options(cls: type[T], command: str, arguments: Sequence[str]) -> T:
    """Read the options of a command that has no groups.

    Args:
        cls: Dataclass of the options.
        command: Name of the command, for messages.
        arguments: KEY=VALUE ... of the command line.

    Returns:
        An instance of `cls`.

    Raises:
        BadInput: A key is unknown, or a value is missing or has the wrong type; the key is named.
    """
    hints = types_of(cls)  # type: ignore[arg-type]
    given: dict[str, str | int | None] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {near[0]}? {command}" if near else command
            raise BadInput(key, f"unknown key; {hint} takes {', '.join(hints)}, each as KEY=VALUE")
        if not equals:
            raise BadInput(key, f"has no value; write {key}=VALUE")
        given[key] = _plain_value(key, hints[key], value)
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
    except OmegaConfBaseException as error:
        raise wrong_type(error, cls, f"{error.full_key}={given.get(str(error.full_key))}") from error
    assert isinstance(options, cls)
    return options


def _plain_value(key: str, hint: Any, value: str) -> str | int | None:
    """Text as typed; paths with ~ expanded; whole numbers also as 10k or 1e4."""
    if value == "null":
        return None
    if accepts(hint, int):
        number = whole_number(value)
        return value if number is None else number
    return str(user_path(value, key)) if key in PATHS and accepts(hint, str) and value else value


def _refuse_unknown(values: Any) -> None:
    known = types_of(Config)

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            if prefix + name not in known:
                raise unknown(prefix + name)
            if dataclasses.is_dataclass(known[prefix + name]):
                walk(value, f"{prefix}{name}.")

    walk(values, "")

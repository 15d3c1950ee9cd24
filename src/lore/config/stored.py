"""The config.yaml of a run folder, read as data: it may come from anywhere, and has no power here.

What a command line may do, a stored file may not: it holds no interpolation (which could read the
environment), no YAML anchor or tag, and it sends no key to another server and imports no package
(env.id=PACKAGE:ID) unless that is repeated.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lore.base.commands import command_line
from lore.base.errors import BadInput
from lore.base.files import Unreadable, read_text
from lore.config.compose import explain, to_options
from lore.config.options import Config
from lore.config.typed import whole_number

NAME = "config.yaml"
LARGEST = 1 << 16  # bytes; a whole configuration has 3000
DEEPEST = 10  # levels of groups and lists; a whole configuration has 3
_SENDS = "sends a key of yours where you did not say today"
REPEATED = {
    "llm.base_url": _SENDS,
    "llm.key_variable": _SENDS,
    "env.id": "imports a package that you did not name today",
}
"""Options with power over this machine -> what they would do."""


def load_stored(run_dir: Path, overrides: Sequence[str] = (), device: str | None = None) -> Config:
    """Read the options of a run that goes on.

    Args:
        run_dir: The run folder.
        overrides: KEY=VALUE of the command line: run.steps, and what has to be repeated (REPEATED).
        device: Device to use here instead of the stored one; None: the stored one.

    Raises:
        BadInput: The file cannot be used, or has to be confirmed; the key, or the file, is named.
    """
    node = _read(run_dir)
    given = dict(_split(override) for override in overrides)
    for key, value in given.items():
        if key not in ("run.steps", *REPEATED):
            raise BadInput(key.lstrip("+~"), "resume takes the stored config; only run.steps may change")
        if key == "run.steps":
            steps = whole_number(value)
            node = _merge(node, {"run": {"steps": value if steps is None else steps}})
    cfg = _options(node, run_dir, device)
    for key in REPEATED:
        _confirm(cfg, key, given, command_line("lore-train", f"resume={run_dir}"), run_dir / NAME)
    return cfg


def load_to_evaluate(run_dir: Path, repeated: Sequence[str] = (), device: str | None = None) -> Config:
    """Read the options of a run for an evaluation: no adviser is asked, so no key goes anywhere.

    Args:
        run_dir: The run folder.
        repeated: KEY=VALUE of the command line; env.id, where it names a package.
        device: Device to use here instead of the stored one; None: the stored one.

    Returns:
        The stored options, with the usual llm.base_url and llm.key_variable.

    Raises:
        BadInput: The file cannot be used, or has to be confirmed; the key, or the file, is named.
    """
    cfg = _options(_read(run_dir), run_dir, device)
    command = command_line("lore-eval", f"run={run_dir}")
    _confirm(cfg, "env.id", dict(map(_split, repeated)), command, run_dir / NAME)
    usual = Config()
    cfg.llm.base_url, cfg.llm.key_variable = usual.llm.base_url, usual.llm.key_variable
    return cfg


def _confirm(cfg: Config, key: str, given: Mapping[str, str], command: str, path: Path) -> None:
    """Raise BadInput where a stored option of REPEATED has power, and the command line does not repeat it."""
    stored, usual = _value(cfg, key), _value(Config(), key)
    if key in given and given[key] != ("null" if stored is None else stored):
        raise BadInput(key, f"is {stored!r} in {path}, which is taken as it is; leave it so")
    has_power = ":" in stored if key == "env.id" else stored != usual
    if has_power and key not in given:
        raise BadInput(
            key,
            f"{path} {REPEATED[key]}; if {stored!r} is right, repeat it: "
            f"{command} {key}={shlex.quote(str(stored))}",
        )


def _options(node: DictConfig, run_dir: Path, device: str | None) -> Config:
    node.run.dir = str(run_dir)
    if device is not None:
        node.device = device
    with _naming(run_dir / NAME):
        return to_options(node)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file to what is refused in it."""
    try:
        yield
    except BadInput as error:
        what = str(error).removeprefix(f"{error.key}: ")
        raise BadInput(error.key, f"{what} (stored in {path})") from error


def _read(run_dir: Path) -> DictConfig:
    """The stored config over the defaults. Raises BadInput."""
    path = run_dir / NAME
    try:
        text = read_text(path, LARGEST)
        _check_syntax(text)
        stored = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
        assert isinstance(stored, dict)
    except (Unreadable, yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        why = " ".join(str(error).split())
        why = why if isinstance(error, Unreadable) else f"cannot read {path}: {why}"
        way = "put back a copy of it (its values are also in checkpoints/*/manifest.json, under config)"
        raise BadInput("resume", f"{why}; {way}") from error
    for key, value in _texts(stored):
        if "${" in value:
            raise BadInput(key, f"{value!r} in {path}: a stored config holds plain values; write the value")
    with _naming(path):
        return _merge(OmegaConf.structured(Config), stored)


def _check_syntax(text: str) -> None:
    """Raise yaml.YAMLError where a file is no mapping, or has what none of ours has."""
    depth, events = 0, yaml.parse(text, Loader=yaml.SafeLoader)
    root = next((event for event in events if isinstance(event, yaml.NodeEvent | yaml.StreamEndEvent)), None)
    if not isinstance(root, yaml.MappingStartEvent):
        raise yaml.YAMLError("it holds no mapping from keys to values")
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: nested too deeply")
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: anchors and aliases are not taken")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: tags are not taken")


def _merge(node: DictConfig, values: dict[Any, Any]) -> DictConfig:
    try:
        merged = OmegaConf.merge(node, values)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(merged, DictConfig)
    return merged


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def _value(cfg: Config, key: str) -> Any:
    group, name = key.split(".")
    return getattr(getattr(cfg, group), name)


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every name and every value that is text."""
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, Mapping):
        for name, value in values.items():
            yield key or "config", str(name)
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, Sequence):
        for value in values:
            yield from _texts(value, key)

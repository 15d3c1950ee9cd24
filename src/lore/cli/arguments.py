"""A command line apart into flags, the command's own options, and those that it shares with lore-train."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lore.base.errors import BadInput
from lore.config import compose as config
from lore.config.options import Config
from lore.config.plugins import check_names

FLAGS = {"-m": "--multirun", "-c": "--cfg", "-cd": "--config-dir"}
"""Short flag -> its long form."""
NOT_TAKEN = {
    "--config-name": "lore has one config; your own values go in FOLDER/experiment/NAME.yaml, with "
    "--config-dir=FOLDER +experiment=NAME",
    "--config-path": "lore has its own configs; yours are added with --config-dir=FOLDER",
    "--experimental-rerun": "repeat the command in a run's provenance.json, or go on with resume=RUN_DIR",
    "--hydra-help": "lore-train --help lists all options",
    "--info": "--cfg job prints the options of a run",
    "--package": "--cfg job prints the options of a run",
    "--resolve": "--cfg job always resolves; leave it out",
    "--run": "a run is what happens without flags; leave it out",
    "--shell-completion": "there is none",
}
"""Hydra's flags that lore does not have -> what to do instead."""
SHORT = {"-cn": "--config-name", "-cp": "--config-path", "-i": "--info", "-p": "--package", "-r": "--run"}
SHORT |= {"-sc": "--shell-completion"}


@dataclass
class CommandLine:
    """What was typed: KEY=VALUE arguments in their order, and the flags."""

    arguments: list[str]
    multirun: bool = False  # -m, --multirun
    show_config: bool = False  # --cfg job
    config_dir: str | None = None  # --config-dir FOLDER


def read(command: str, typed: Sequence[str], flags: Iterable[str]) -> CommandLine:
    """Take a command line apart; flags may stand anywhere in it.

    Args:
        command: Name of the command, for messages.
        typed: The arguments.
        flags: The long flags that this command takes.

    Returns:
        The KEY=VALUE arguments and the flags.

    Raises:
        BadInput: A flag is unknown, or its value is wrong or missing; the flag is named.
    """
    line = CommandLine([])
    rest = iter(typed)
    for argument in rest:
        if not argument.startswith("-"):
            line.arguments.append(argument)
            continue
        flag, equals, value = argument.partition("=")
        name = FLAGS.get(flag, flag)
        if name not in flags:
            raise _unknown_flag(command, flag, flags)
        if name == "--multirun":
            if equals:
                raise BadInput(flag, "takes no value; write KEY=VALUE apart from it")
            line.multirun = True
            continue
        value = value if equals else next(rest, "")
        if name == "--cfg":
            if value != "job":
                raise BadInput(flag, f"needs job, as in --cfg job, not {value!r}")
            line.show_config = True
        else:
            if not value or value.startswith("-"):
                raise BadInput(flag, "needs a folder of configs, as in --config-dir=my_conf")
            line.config_dir = value
    return line


def split_options(
    command: str,
    cls: type,
    line: CommandLine,
    base: Sequence[str],
    reads: Sequence[str],
) -> tuple[Any, Config]:
    """Split a command line into the command's options and those that it shares with lore-train.

    Args:
        command: Name of the command, for messages.
        cls: Dataclass of the command's options.
        line: The command line.
        base: Arguments that lore-train's options start from here, before those of the line.
        reads: First parts of lore-train's keys that the command reads; any other key is refused.

    Returns:
        The command's options, an instance of `cls`, and lore-train's options.

    Raises:
        BadInput: A key is unknown or not read here, or its value is wrong; the key is named.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    own = [a for a in line.arguments if a.partition("=")[0] in names]
    shared = [a for a in line.arguments if a not in own]
    for argument in shared:
        _check_read(command, argument.partition("=")[0].lstrip("+~"), names, reads)
    cfg = config.compose([*base, *shared], line.config_dir)
    check_names(cfg)
    return config.plain_options(cls, command, own), cfg


def swept_values(argument: str) -> list[str]:
    """Split KEY=A,B into KEY=A and KEY=B.

    Args:
        argument: KEY=VALUE with commas between the values.
    """
    key, equals, values = argument.partition("=")
    return [f"{key}{equals}{value}" for value in values.split(",")]


def _check_read(command: str, key: str, own: Sequence[str], reads: Sequence[str]) -> None:
    if key.partition(".")[0] in reads:
        return
    if config.is_known(key):
        raise BadInput(
            key, f"{command} does not read it; it takes {', '.join([*own, *reads])}, so leave it out"
        )
    near = difflib.get_close_matches(key, [*own, *reads], n=1)
    hint = f"did you mean {near[0]}? {command}" if near else command
    raise BadInput(key, f"unknown key; {hint} takes {', '.join([*own, *reads])}")


def _unknown_flag(command: str, flag: str, flags: Iterable[str]) -> BadInput:
    name = SHORT.get(flag, FLAGS.get(flag, flag))
    if name in NOT_TAKEN:
        return BadInput(flag, NOT_TAKEN[name])
    known = sorted({*flags, "--help", "--version"})
    key = flag.lstrip("-").replace("-", "_")
    if config.is_known(key):
        return BadInput(flag, f"options are written without dashes: {key}=VALUE")
    near = difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"{command} takes {', '.join(known)}"
    return BadInput(flag, f"unknown flag; {hint}")

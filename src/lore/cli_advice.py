"""The commands about advisers, lore-probe and lore-record: compose, check, run. Exit status as in cli.py."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lore import config
from lore.cli import guarded
from lore.options import BadInput, Config

PROBE, RECORD = "lore-probe", "lore-record"
ADVISED = ["agent=prior", "llm=scripted"]  # what lore-train's options start from here
PROBE_HELP = """lore-probe asks an adviser about labelled situations of a task. Its last line is JSON.

  lore-probe llm=local env=doorkey8
  lore-probe -m llm=scripted,local,anthropic env=doorkey8 out=probe    # and a joint table and figure

Takes lore-train's env=, llm=, env.KEY= and llm.KEY=, and, with their defaults:
"""
RECORD_HELP = """lore-record keeps a model's answers as a data set that llm=recorded replays without a key.

  lore-record export env=doorkey8 out=prompts.jsonl
  lore-record import prompts=prompts.jsonl answers=answers.jsonl out=data/doorkey8 license=CC-BY-4.0
  lore-record stats dataset=data/doorkey8/v1

export takes lore-train's env= and llm= too (the adviser that explores). Keys of each, with their defaults:
"""


def probe_main(argv: Sequence[str] | None = None) -> int:
    """lore-probe: how good an adviser is before it touches training. Returns the exit status."""
    return guarded(PROBE, argv, _probe)


def record_main(argv: Sequence[str] | None = None) -> int:
    """lore-record export, import or stats. Returns the exit status."""
    return guarded(RECORD, argv, _record)


def _probe(arguments: list[str]) -> None:
    from lore.probe import Material, ProbeOptions, compare, main

    if {"-h", "--help"} & set(arguments):
        print(PROBE_HELP + config.defaults(ProbeOptions), end="")
        return
    sweep = bool({"-m", "--multirun"} & set(arguments))
    rest = [a for a in arguments if a not in ("-m", "--multirun")]
    materials: dict[str, Material] = {}
    results = {}
    choices = [_values(a) if sweep else [a] for a in rest]
    jobs = [(one, *_split(PROBE, ProbeOptions, one)) for one in itertools.product(*choices)]
    for one, own, cfg in jobs:
        out = own.out
        label = " ".join(a for a, of in zip(one, choices, strict=True) if len(of) > 1) or cfg.llm.provider
        if len(jobs) > 1 and out is not None:
            own = dataclasses.replace(own, out=str(Path(out) / label.replace(" ", "_").replace("/", "_")))
        results[label.removeprefix("llm=")] = main(own, cfg.env, cfg.llm, materials)
    if len(jobs) > 1:
        print(compare(results, out))
        print(json.dumps({"results": results}))


def _record(arguments: list[str]) -> None:
    from lore import record

    kinds: dict[str, type] = {
        "export": record.ExportOptions,
        "import": record.ImportOptions,
        "stats": record.StatsOptions,
    }
    if not arguments or {"-h", "--help"} & set(arguments):
        pages = [f"{name}:\n{config.defaults(kind)}" for name, kind in kinds.items()]
        print(RECORD_HELP + "\n".join(pages), end="")
        return
    verb, *rest = arguments
    if verb not in kinds:
        raise BadInput(verb, f"is none of {', '.join(kinds)}; lore-record --help explains")
    if verb == "export":
        own, cfg = _split(RECORD, record.ExportOptions, rest)
        from lore.envs.make import make_env
        from lore.llm.providers import build_provider

        env = make_env(cfg.env, cfg.obs, remember=True)
        print(json.dumps(record.export(own, env, cfg.env.id, build_provider(cfg.llm))))
    elif verb == "import":
        print(json.dumps({"dataset": str(record.import_answers(_own(record.ImportOptions, rest)))}))
    else:
        record.stats_main(_own(record.StatsOptions, rest))


def _own(cls: type, arguments: Sequence[str]) -> Any:
    return config.plain_options(cls, RECORD, arguments)


def _split(command: str, cls: type, arguments: Sequence[str]) -> tuple[Any, Config]:
    """The command's own options, and lore-train's for what is left."""
    names = {field.name for field in dataclasses.fields(cls)}
    own = [a for a in arguments if a.partition("=")[0] in names]
    cfg = config.compose([*ADVISED, *(a for a in arguments if a not in own)])
    return config.plain_options(cls, command, own), cfg


def _values(argument: str) -> list[str]:
    """KEY=A,B -> KEY=A, KEY=B."""
    key, equals, values = argument.partition("=")
    return [f"{key}{equals}{value}" for value in values.split(",")]

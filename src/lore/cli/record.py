"""lore-record: the prompts of a task out, a model's answers in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lore.base.errors import BadInput
from lore.cli.arguments import split_arguments
from lore.cli.guard import guard
from lore.config import compose as config

RECORD = "lore-record"
RECORD_HELP = """lore-record keeps a model's answers as a data set that llm=recorded replays without a key.

  lore-record export env=doorkey8 out=prompts.jsonl
  lore-record import prompts=prompts.jsonl answers=answers.jsonl out=data/doorkey8 license=CC-BY-4.0
  lore-record stats dataset=data/doorkey8/v1

export takes lore-train's env= and llm= too (the adviser that explores). Keys of each, with their defaults:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """lore-record export, import or stats. Returns the exit status."""
    return guard(RECORD, argv, _record)


def _record(arguments: list[str]) -> None:
    from lore.studies import dataset

    kinds: dict[str, type] = {
        "export": dataset.ExportOptions,
        "import": dataset.ImportOptions,
        "stats": dataset.StatsOptions,
    }
    if not arguments or {"-h", "--help"} & set(arguments):
        pages = [f"{name}:\n{config.defaults(kind)}" for name, kind in kinds.items()]
        print(RECORD_HELP + "\n".join(pages), end="")
        return
    verb, *rest = arguments
    if verb not in kinds:
        raise BadInput(verb, f"is none of {', '.join(kinds)}; lore-record --help explains")
    if verb == "export":
        own, cfg = split_arguments(RECORD, dataset.ExportOptions, rest)
        from lore.envs.make import make_env
        from lore.llm.providers import build_provider

        env = make_env(cfg.env, cfg.obs, remember=True)
        print(json.dumps(dataset.export(own, env, cfg.env.id, build_provider(cfg.llm))))
    elif verb == "import":
        print(json.dumps({"dataset": str(dataset.import_answers(_own(dataset.ImportOptions, rest)))}))
    else:
        dataset.stats_main(_own(dataset.StatsOptions, rest))


def _own(cls: type, arguments: Sequence[str]) -> Any:
    return config.plain_options(cls, RECORD, arguments)

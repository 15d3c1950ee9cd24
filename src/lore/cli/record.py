"""lore-record: the prompts of a task out, a model's answers in."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lore.base.errors import BadInput
from lore.cli.arguments import CommandLine, read, split_options
from lore.cli.guard import guard
from lore.cli.help import page
from lore.config.command_options import ExportOptions, ImportOptions, StatsOptions
from lore.config.compose import plain_options

RECORD = "lore-record"
FLAGS = ("--config-dir",)
BASE = ["agent=prior", "llm=scripted"]
READS = ("env", "llm", "obs", "experiment")
OPTIONS: dict[str, type] = {"export": ExportOptions, "import": ImportOptions, "stats": StatsOptions}
HELP = """
lore-record keeps a model's answers as a data set that llm=recorded replays without a key.

  lore-record export env=doorkey8 out=prompts.jsonl
  lore-record import prompts=prompts.jsonl answers=answers.jsonl out=data/doorkey8 license=CC-BY-4.0
  lore-record stats dataset=data/doorkey8/v1

export takes lore-train's env= and llm= too: the adviser that explores.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run lore-record: export prompts, import answers, or print statistics of a data set.

    Args:
        argv: Arguments of the command, "export", "import" or "stats" first; None: those of this process.

    Returns:
        The exit status: 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    return guard(RECORD, argv, lambda: page(HELP, FLAGS, list(OPTIONS.values()), READS), _record)


def _record(arguments: list[str]) -> None:
    line = read(RECORD, arguments, FLAGS)
    if not line.arguments:
        raise BadInput("command", f"is missing; write {RECORD} {', '.join(OPTIONS)}; --help explains")
    verb, *line.arguments = line.arguments
    if verb not in OPTIONS:
        raise BadInput(verb, f"is none of {', '.join(OPTIONS)}; lore-record --help explains")
    if verb == "export":
        _export(line)
        return
    own: object = plain_options(OPTIONS[verb], f"{RECORD} {verb}", line.arguments)
    from lore.studies import dataset

    if isinstance(own, ImportOptions):
        print(json.dumps({"dataset": str(dataset.import_answers(own))}))
    elif isinstance(own, StatsOptions):
        dataset.stats_main(own)


def _export(line: CommandLine) -> None:
    own, cfg = split_options(f"{RECORD} export", ExportOptions, line, BASE, READS)
    from lore.envs.make import make_env
    from lore.llm.providers import build_provider
    from lore.studies.dataset import export

    if cfg.env.family != "minigrid":
        raise BadInput("env.family", "lore-record knows the words of env.family=minigrid alone")
    env = make_env(cfg.env, cfg.obs, remember=True)
    print(json.dumps(export(own, env, cfg.env.id, build_provider(cfg.llm, own.seed))))

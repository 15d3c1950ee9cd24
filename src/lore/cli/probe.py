"""lore-probe: how good an adviser is before it touches training."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lore.cli.arguments import read, split_options, swept_values
from lore.cli.guard import guard
from lore.cli.help import page
from lore.config.command_options import ProbeOptions

if TYPE_CHECKING:
    from lore.studies.probe import Material

PROBE = "lore-probe"
FLAGS = ("--multirun", "--config-dir")
BASE = ["agent=prior", "llm=scripted"]
READS = ("env", "llm", "experiment")
HELP = """
lore-probe asks an adviser about labelled situations of a task. Its last line is one JSON object.

  lore-probe llm=local env=doorkey8
  lore-probe -m llm=scripted,local,anthropic env=doorkey8 out=probe    and a joint table and figure
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run lore-probe: measure how good an adviser is before it touches training.

    Args:
        argv: Arguments of the command; None: those of this process.

    Returns:
        The exit status: 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    return guard(PROBE, argv, lambda: page(HELP, FLAGS, [ProbeOptions], READS), _probe)


def _probe(arguments: list[str]) -> None:
    line = read(PROBE, arguments, FLAGS)
    choices = [swept_values(a) if line.multirun else [a] for a in line.arguments]
    jobs = []
    for one in itertools.product(*choices):
        job = dataclasses.replace(line, arguments=list(one))
        jobs.append((one, *split_options(PROBE, ProbeOptions, job, BASE, READS)))
    from lore.studies.probe import draw_figures, probe_adviser
    from lore.studies.probe_table import print_table

    materials: dict[str, Material] = {}
    results = {}
    for one, own, cfg in jobs:
        out = own.out
        label = " ".join(a for a, of in zip(one, choices, strict=True) if len(of) > 1) or cfg.llm.provider
        if len(jobs) > 1 and out is not None:
            own = dataclasses.replace(own, out=str(Path(out) / label.replace(" ", "_").replace("/", "_")))
        results[label.removeprefix("llm=")] = probe_adviser(own, cfg.env, cfg.llm, materials)
    if len(jobs) > 1:
        if out is not None:
            draw_figures(results, Path(out))
        print_table(results)
        print(json.dumps({"results": results}))

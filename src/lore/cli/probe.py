"""lore-probe: how good an adviser is before it touches training."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from lore.cli.arguments import split_arguments, swept_values
from lore.cli.guard import guard
from lore.config import compose as config

PROBE = "lore-probe"
PROBE_HELP = """lore-probe asks an adviser about labelled situations of a task. Its last line is JSON.

  lore-probe llm=local env=doorkey8
  lore-probe -m llm=scripted,local,anthropic env=doorkey8 out=probe    # and a joint table and figure

Takes lore-train's env=, llm=, env.KEY= and llm.KEY=, and, with their defaults:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """lore-probe: how good an adviser is before it touches training. Returns the exit status."""
    return guard(PROBE, argv, _probe)


def _probe(arguments: list[str]) -> None:
    from lore.studies.probe import Material, ProbeOptions, compare, probe_adviser

    if {"-h", "--help"} & set(arguments):
        print(PROBE_HELP + config.defaults(ProbeOptions), end="")
        return
    sweep = bool({"-m", "--multirun"} & set(arguments))
    rest = [a for a in arguments if a not in ("-m", "--multirun")]
    materials: dict[str, Material] = {}
    results = {}
    choices = [swept_values(a) if sweep else [a] for a in rest]
    jobs = [(one, *split_arguments(PROBE, ProbeOptions, one)) for one in itertools.product(*choices)]
    for one, own, cfg in jobs:
        out = own.out
        label = " ".join(a for a, of in zip(one, choices, strict=True) if len(of) > 1) or cfg.llm.provider
        if len(jobs) > 1 and out is not None:
            own = dataclasses.replace(own, out=str(Path(out) / label.replace(" ", "_").replace("/", "_")))
        results[label.removeprefix("llm=")] = probe_adviser(own, cfg.env, cfg.llm, materials)
    if len(jobs) > 1:
        print(compare(results, out))
        print(json.dumps({"results": results}))

"""lore-bench: time of a gradient step."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lore.base.errors import BadInput
from lore.cli.arguments import read, split_options
from lore.cli.guard import guard
from lore.cli.help import page
from lore.config.command_options import BenchOptions

BENCH = "lore-bench"
REFERENCE = ["obs=raw147", "agent.batch_size=16", "agent.seq_len=64", "gate=none", "llm=none"]
"""What peers are compared on: DreamerV3 alone. A gate is measured with gate=lore llm=scripted."""
FLAGS = ("--config-dir",)
READS = (
    *("agent", "size", "gate", "llm", "prior_net", "replay"),
    *("ablation", "preset", "experiment"),
    *("device", "dtype", "threads", "seed"),
)
HELP = f"""
lore-bench measures the time of a gradient step on random data. Its last line is one JSON object.

  lore-bench                                 the reference: {" ".join(REFERENCE[:2])}
{" " * 45}{" ".join(REFERENCE[2:])}
  lore-bench size=12m dtype=float32
  lore-bench gate=lore llm=scripted          with the ensembles that a gate reads
  lore-bench profile=true                    and where the time goes
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run lore-bench: measure the time of a gradient step on the reference workload.

    Args:
        argv: Arguments of the command; None: those of this process.

    Returns:
        The exit status: 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    return guard(BENCH, argv, lambda: page(HELP, FLAGS, [BenchOptions], READS), _bench)


def _bench(arguments: list[str]) -> None:
    own, cfg = split_options(BENCH, BenchOptions, read(BENCH, arguments, FLAGS), REFERENCE, READS)
    if cfg.agent.name != "dreamer":
        raise BadInput("agent", f"agent={cfg.agent.name} has no gradient step to measure; use agent=dreamer")
    print(
        f"{BENCH}: {cfg.agent.batch_size} x {cfg.agent.seq_len}, gate {cfg.gate.name}, "
        f"{cfg.dtype}, {cfg.device}",
        file=sys.stderr,
    )
    from lore.studies.benchmark import run_benchmark

    run_benchmark(cfg, own.profile)

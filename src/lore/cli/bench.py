"""lore-bench: time of a gradient step."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lore.base.errors import BadInput
from lore.base.streams import protect_streams
from lore.cli.guard import DONE, refuse, say_interrupted
from lore.config import compose as config

BENCH = "lore-bench"
REFERENCE = ["obs=raw147", "agent.batch_size=16", "agent.seq_len=64"]  # what peers are compared on


def main(argv: Sequence[str] | None = None) -> int:
    """lore-bench: time of a gradient step on the reference workload; takes lore-train's KEY=VALUE.

    profile=true prints a table by region as well, and writes a trace into the current folder.
    """
    protect_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        profile = "profile=true" in arguments
        rest = [a for a in arguments if a not in ("profile=true", "profile=false")]
        cfg = config.compose([*REFERENCE, *rest])
        print(
            f"{BENCH}: {cfg.agent.batch_size} x {cfg.agent.seq_len}, {cfg.dtype}, {cfg.device}",
            file=sys.stderr,
        )
        from lore.studies.benchmark import run_benchmark

        run_benchmark(cfg, profile)
    except BadInput as error:
        return refuse(BENCH, error)
    except KeyboardInterrupt:
        return say_interrupted(BENCH)
    return DONE

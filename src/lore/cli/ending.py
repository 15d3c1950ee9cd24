"""How a run ends: an exit status, a line on stderr, and in summary.json a status if the disk allows it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from lore.base.commands import command_line
from lore.base.errors import BadInput, debug, out_of_space
from lore.base.streams import lost_output
from lore.cli.guard import DONE, FAILED, brief, refuse, say_interrupted
from lore.config.options import Config
from lore.training import run_folder


def train_to_the_end(command: str, cfg: Config, run_dir: Path, begin: Callable[[], None]) -> int:
    """Train in a claimed run folder, and turn the end of training into an exit status.

    Args:
        command: Name of the command, for messages.
        cfg: Options of the run.
        run_dir: The run folder, which this process has claimed.
        begin: Writes the files that stand in the folder before training (config.yaml, provenance.json).

    Returns:
        0 finished, 1 failed, 2 bad input, 130 interrupted and saved.
    """
    try:
        begin()
        import torch

        from lore.training.trainer import train

        torch.set_num_threads(cfg.threads)
        ended = train(cfg, run_dir)
    except BadInput as error:
        run_folder.write_failure(run_dir, cfg, error)
        return refuse(command, error)
    except KeyboardInterrupt:
        run_folder.write_interrupted(run_dir)
        return say_interrupted(command, run_dir)
    except Exception as error:  # noqa: BLE001  (every failure is recorded and reported, none is hidden)
        trace = run_folder.write_failure(run_dir, cfg, error)
        return report_failure(command, run_dir, error, trace)
    run_folder.write_lost_output(run_dir, lost_output())
    return say_interrupted(command, run_dir) if ended == "interrupted" else DONE


def report_failure(command: str, run_dir: Path, error: Exception, trace: Path | None = None) -> int:
    """Say on stderr why a run failed and, where the disk is full, what to do.

    Args:
        command: Name of the command.
        run_dir: The run folder; one in which nothing could be written is given back.
        error: What was raised.
        trace: The file with the traceback, if there is one.

    Returns:
        The exit status.
    """
    if debug():
        sys.excepthook(type(error), error, error.__traceback__)
    reason = out_of_space(error)
    if reason is None:
        where = f"traceback in {trace}" if trace else "no traceback could be written"
        print(f"{command}: {brief(error)}; {where}", file=sys.stderr, flush=True)
    elif run_folder.release_unused(run_dir):
        print(f"{command}: {reason}: {run_dir}; make room, then start it again", file=sys.stderr, flush=True)
    else:
        rest = command_line(command, f"resume={run_dir}")
        print(f"{command}: {reason}: {run_dir}; make room, then {rest}", file=sys.stderr, flush=True)
    return FAILED

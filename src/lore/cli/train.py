"""lore-train: compose, check, build, run.

torch is imported late, so that bad input fails at once and the terminal never stays silent.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lore.base.errors import BadInput, out_of_space
from lore.base.streams import protect_streams
from lore.cli.ending import report_failure, train_to_the_end
from lore.cli.guard import BAD_INPUT, DONE, FAILED, brief, debug, refuse, say_interrupted
from lore.config import compose as config
from lore.config.ablations import arm_name
from lore.config.options import Config
from lore.training import run_folder
from lore.training.signals import interrupt_on_signals

TRAIN = "lore-train"


class JobFailed(RuntimeError):
    """A job of a sweep ended with this exit status; its own line has been printed. sweep: its folder."""

    def __init__(self, status: int, sweep: str) -> None:
        super().__init__(status, sweep)
        self.status, self.sweep = status, sweep


def main(argv: Sequence[str] | None = None) -> int:
    """lore-train: one run, a sweep (-m), or the rest of a run (resume=RUN_DIR). Returns the exit status."""
    protect_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    folder = next((a.removeprefix("resume=") for a in arguments if a.startswith("resume=")), "null")
    try:
        with interrupt_on_signals():
            if folder not in ("", "null"):
                return _resume(Path(folder), [a for a in arguments if not a.startswith("resume=")])
            return _launch(arguments)
    except BadInput as error:
        return refuse(TRAIN, error)
    except KeyboardInterrupt:
        return say_interrupted(TRAIN)


def _launch(arguments: list[str]) -> int:
    """Hand the command to Hydra, which calls `job` for one run or for each run of a sweep."""
    _parse(arguments)

    @hydra.main(config_path="pkg://lore.conf", config_name="config", version_base="1.3")
    def job(node: DictConfig) -> None:
        here = HydraConfig.get()
        folder = Path(here.runtime.output_dir)
        sweep = Path(here.sweep.dir).absolute() if here.mode == RunMode.MULTIRUN else None
        status = _job(node, folder, [TRAIN, *arguments], sweep)
        if status in (FAILED, BAD_INPUT) and sweep is not None:
            raise JobFailed(status, str(sweep))  # the other jobs of the sweep still run
        if status != DONE:
            raise SystemExit(status)

    with _hydra_raises(), _argv([TRAIN, *arguments]):
        return _status_of(job)


def _status_of(job: Callable[[], None]) -> int:
    try:
        job()
    except JobFailed as error:
        failed = run_folder.failed(Path(error.sweep))
        if failed:
            print(f"{TRAIN}: failed: {', '.join(failed)}; the others are in {error.sweep}", file=sys.stderr)
        return FAILED if failed else error.status
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else DONE
    except Exception as error:  # raised outside the job: Hydra refused the command
        if debug():
            raise
        if out_of_space(error):
            print(f"{TRAIN}: {brief(error)}; make room, then start it again", file=sys.stderr, flush=True)
            return FAILED
        raise config.explain(error) from error
    return DONE


def _job(node: DictConfig, run_dir: Path, command: list[str], sweep: Path | None = None) -> int:
    """One run in a folder of its own. Every error becomes a line on stderr and an exit status.

    sweep: folder of the sweep that the run belongs to; its name is the run's group in W&B.
    """
    try:
        if node.resume is not None:
            raise BadInput("resume", "goes with no group or preset; write lore-train resume=RUN_DIR")
        cfg = config.to_options(node)
        cfg.run.dir = str(run_dir)
        if sweep is not None and cfg.logger.group is None:
            cfg.logger.group = sweep.name
        _announce(cfg)
        _check_task(cfg)
        cfg.dtype = _prepare(cfg)
        run_folder.claim(run_dir)
    except BadInput as error:
        run_folder.discard_empty(run_dir)
        return refuse(TRAIN, error)
    except OSError as error:
        return report_failure(TRAIN, run_dir, error)
    begin = partial(run_folder.write_start, run_dir, config.to_yaml(cfg), cfg, command)
    return train_to_the_end(TRAIN, cfg, run_dir, begin)


def _resume(run_dir: Path, overrides: list[str]) -> int:
    run_dir = run_dir.absolute()
    cfg = config.load_stored(run_dir, overrides)
    _announce(cfg, "going on with ")
    _check_task(cfg)
    _prepare(cfg)
    command = [TRAIN, f"resume={run_dir}", *overrides]
    begin = partial(run_folder.write_resume, run_dir, config.to_yaml(cfg), command)
    return train_to_the_end(TRAIN, cfg, run_dir, begin)


def _announce(cfg: Config, before: str = "") -> None:
    learner = f"{cfg.agent.name} ({cfg.size.deter} units)" if cfg.agent.name == "dreamer" else cfg.agent.name
    if cfg.gate.name != "none":
        learner += f", gate {cfg.gate.name}, advised by {cfg.llm.provider},"
    where = os.path.relpath(cfg.run.dir)
    print(
        f"{TRAIN}: {before}arm {arm_name(cfg)}: {learner} in {cfg.env.id}, {cfg.run.steps} steps, "
        f"seed {cfg.seed} -> {where if not where.startswith('..') else cfg.run.dir}",
        flush=True,
    )


def _prepare(cfg: Config) -> str:
    """Raise BadInput where gate or provider are unknown. What `dtype` is on this machine: config.yaml says
    what was computed with, not what was left open."""
    from lore.training.build import check_plugins, compute_type

    check_plugins(cfg)
    return compute_type(cfg.dtype, cfg.device)


def _check_task(cfg: Config) -> None:
    """Make the environment once: the one sure way to know that its options fit. Raises BadInput."""
    from lore.envs import make_env

    make_env(cfg.env, cfg.obs).close()


def _parse(arguments: list[str]) -> None:
    """Refuse what Hydra's own parser would answer with a page of usage."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        _, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise BadInput("command line", f"{error}; lore-train --help explains") from error
    if unknown:
        raise BadInput(unknown[0], "unknown option; lore-train --help lists all")


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them and leaving with status 1."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _argv(arguments: list[str]) -> Iterator[None]:
    """hydra.main reads sys.argv."""
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before

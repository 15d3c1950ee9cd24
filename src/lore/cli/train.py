"""lore-train: compose, check, build, run.

torch is imported late, so that bad input fails at once and the terminal never stays silent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lore.base.errors import BadInput, debug, out_of_space
from lore.base.files import user_path
from lore.cli import sweep as sweeps
from lore.cli.arguments import CommandLine, read
from lore.cli.ending import report_failure, train_to_the_end
from lore.cli.guard import BAD_INPUT, DONE, FAILED, brief, guard, refuse
from lore.cli.help import page
from lore.config import compose as config
from lore.config.ablations import arm_name
from lore.config.options import Config
from lore.config.plugins import check_names
from lore.config.stored import REPEATED, load_stored
from lore.config.typed import whole_number
from lore.training import run_folder

if TYPE_CHECKING:
    from lore.envs.vector import EpisodicEnv

TRAIN = "lore-train"
FLAGS = ("--multirun", "--config-dir", "--cfg")
CHECKED = 64  # jobs of a sweep that are checked before the first one starts
HELP = """
lore-train trains one agent in one environment.

  lore-train env=doorkey5 run.steps=6000        one run
  lore-train +preset=debug                      a tiny run, to see that all works
  lore-train +ablation=D                        an arm of the study: docs/ablations.md
  lore-train +ablation=G llm=recorded_claude    advice teaches, once a trial has shown that it helps
  lore-train -m 'seed=range(0,10)'              ten runs, one after another
  lore-train -m hydra/launcher=parallel +ablation=A,D 'seed=range(0,10)'     a run a core
  lore-train --config-dir=my_conf +experiment=mine    values of your own, from my_conf/experiment/mine.yaml
  lore-train resume=outputs/DATE/NAME           goes on where that run stopped
  lore-train resume=latest                      the same, with the latest run in outputs/

Whole numbers may be written as 10k, 1e4 or 1_000, and paths with ~. docs/configuration.md explains the rest.
"""


class JobFailed(RuntimeError):
    """A job of a sweep ended with an exit status other than 0; its line has been printed.

    status: the exit status. sweep: folder of the sweep.
    """

    def __init__(self, status: int, sweep: str) -> None:
        super().__init__(status, sweep)
        self.status, self.sweep = status, sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Run lore-train: one run, a sweep (-m), or the rest of a run (resume=RUN_DIR).

    Args:
        argv: Arguments of the command; None: those of this process.

    Returns:
        The exit status: 0 done, 1 failed, 2 bad input, 130 interrupted and saved.
    """
    return guard(TRAIN, argv, lambda: page(HELP, FLAGS, shared=None), _command)


def _command(typed: list[str]) -> int:
    line = read(TRAIN, typed, FLAGS)
    folder = next((a.removeprefix("resume=") for a in line.arguments if a.startswith("resume=")), "null")
    if folder in ("", "null"):
        return _launch(line, typed)
    if line.multirun or line.show_config:
        raise BadInput("resume", "goes on with one run, under its stored config: leave out -m and --cfg")
    run_dir = run_folder.latest(Path("outputs")) if folder == "latest" else user_path(folder, "resume")
    return _resume(run_dir, [a for a in line.arguments if not a.startswith("resume=")])


def _launch(line: CommandLine, typed: list[str]) -> int:
    """Check every job, then hand the command to Hydra, which calls `job` for each."""
    if line.multirun and any(a.startswith(("run.dir=", "hydra.run.dir=")) for a in line.arguments):
        raise BadInput(
            "run.dir",
            "is one run's folder; with -m name the sweep's with hydra.sweep.dir=FOLDER, and each run's in it "
            "with hydra.sweep.subdir='${env.id}_seed${seed}'",
        )
    overrides = config.as_overrides(line.arguments, line.config_dir, sweep=line.multirun)
    for cfg in islice(config.compose_jobs(overrides, sweep=line.multirun), CHECKED):
        _check_start(cfg)
        if line.show_config:
            print(config.to_yaml(cfg), end="")
    if line.show_config:
        return DONE

    @hydra.main(config_path="pkg://lore.conf", config_name="config", version_base="1.3")
    def job(node: DictConfig) -> None:
        here = HydraConfig.get()
        folder = Path(here.runtime.output_dir)
        sweep = Path(here.sweep.dir).absolute() if here.mode == RunMode.MULTIRUN else None
        work = partial(_job, node, folder, [TRAIN, *typed], sweep)
        helper = sweeps.worker()
        status = (
            work() if helper is None else helper.run(here.job.num, folder, list(here.overrides.task), work)
        )
        if helper is not None:
            return  # its card tells the parent how it ended
        if sweep is not None and status in (FAILED, BAD_INPUT):
            raise JobFailed(status, str(sweep))  # the other jobs of the sweep still run
        if status != DONE:
            raise SystemExit(status)

    launch = partial(_status_of, job)
    with _hydra_raises(), _argv([TRAIN, *(["-m"] if line.multirun else []), *overrides]):
        return sweeps.lead(TRAIN, launch) if sweeps.is_parallel(overrides) else launch()


def _check_start(cfg: Config) -> None:
    """Raise BadInput where a new run cannot start with these options. Nothing is imported or written."""
    if cfg.resume is not None:
        raise BadInput("resume", "goes with no group or preset; write lore-train resume=RUN_DIR")
    check_names(cfg)


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
    """Run one job in a run folder. Every error becomes a line on stderr and an exit status.

    sweep: folder of the sweep that the run belongs to; the folder's name is the run's group in W&B.
    """
    try:
        cfg = config.to_options(node)
        _check_start(cfg)
        cfg.run.dir = str(run_dir)
        if sweep is not None and cfg.logger.group is None:
            cfg.logger.group = sweep.name
        with run_folder.claim(run_dir):
            task = _check_task(cfg)
            cfg.dtype = _prepare(cfg)
            _announce(cfg)
            _settle_evaluation(cfg, task)
            begin = partial(run_folder.write_start, run_dir, config.to_yaml(cfg), cfg, command)
            status = train_to_the_end(TRAIN, cfg, run_dir, begin)
            if status == BAD_INPUT:
                run_folder.withdraw(run_dir)
    except BadInput as error:
        run_folder.discard_empty(run_dir)
        return refuse(TRAIN, error)
    except OSError as error:
        return report_failure(TRAIN, run_dir, error)
    run_folder.discard_empty(run_dir)  # where nothing could be written
    return status


def _resume(run_dir: Path, overrides: list[str]) -> int:
    """The rest of a run, under its stored config. Raises BadInput before anything in the folder changes."""
    run_dir = run_dir.absolute()
    try:
        with run_folder.take_up(run_dir):
            steps = [whole_number(o.partition("=")[2]) for o in overrides if o.startswith("run.steps=")]
            for number in (number for number in steps if number is not None):
                run_folder.check_length(run_dir, number)
            cfg = load_stored(run_dir, overrides)
            keys = [override.partition("=")[0] for override in overrides]
            run_folder.check_resume(run_dir, cfg, [key for key in keys if key not in REPEATED])
            _check_task(cfg)
            _prepare(cfg)
            _announce(cfg, "going on with ")
            command = [TRAIN, f"resume={run_dir}", *overrides]
            begin = partial(run_folder.write_resume, run_dir, config.to_yaml(cfg), cfg, command)
            return train_to_the_end(TRAIN, cfg, run_dir, begin)
    except OSError as error:
        return report_failure(TRAIN, run_dir, error)


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
    """Check the gate and the provider, and return the compute type that `dtype` stands for on this machine.

    config.yaml then says what was computed with, not what was left open. Raises BadInput where the gate or
    the provider is unknown.
    """
    from lore.training.build import compute_type
    from lore.training.build_adviser import check_plugins

    check_plugins(cfg)
    return compute_type(cfg.dtype, cfg.device)


def _settle_evaluation(cfg: Config, task: EpisodicEnv) -> None:
    """Put a number in the place of run.eval_every=null, so that config.yaml holds it, and say it."""
    from lore.training.evaluation import choose_rhythm

    if cfg.run.eval_every is None:
        cfg.run.eval_every = choose_rhythm(cfg.run, task)
        print(
            f"{TRAIN}: evaluation every {cfg.run.eval_every} steps, of {cfg.run.eval_episodes} episodes a "
            "policy; run.eval_every=N is another number, 0 none",
            flush=True,
        )


def _check_task(cfg: Config) -> EpisodicEnv:
    """Make the environment once: nothing else shows for certain that its options fit. Raises BadInput."""
    from lore.training.build_adviser import is_advised
    from lore.training.families import refuse_what_is_missing

    return refuse_what_is_missing(cfg.env, is_advised(cfg), cfg.explore.valid_noise).make(cfg.env, cfg.obs)


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

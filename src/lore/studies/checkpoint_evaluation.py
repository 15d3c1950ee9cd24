"""lore-eval: held-out episodes with a stored checkpoint, and films of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from lore.base.errors import BadInput
from lore.base.files import Unreadable
from lore.config.command_options import EvalOptions
from lore.config.options import Config
from lore.dreamer.agent import DreamerV3Agent
from lore.envs.adapter import MiniGridAdapter
from lore.envs.vector import EpisodicEnv
from lore.metrics.sinks.activity import Activity
from lore.training.build import build_advised_gate, build_agent
from lore.training.checkpoint import load_state, not_fitting
from lore.training.evaluation import Evaluator, score, wilson_interval
from lore.training.families import find_family
from lore.training.old_checkpoints import upgrade
from lore.training.random_agent import RandomAgent

if TYPE_CHECKING:
    from lore.studies.films import Recorder

FILMED = 4  # episodes, at most


def evaluate_checkpoint(options: EvalOptions, cfg: Config) -> None:
    """Play held-out episodes with a checkpoint of a run, for lore-eval; the last line is one JSON object.

    Args:
        options: What the command was given.
        cfg: The options of the run that the checkpoint belongs to.

    Raises:
        BadInput: An option cannot be met; the message names it.
    """
    torch.set_num_threads(cfg.threads)
    env = find_family(cfg.env).make(cfg.env, cfg.obs)
    agent = build_agent(cfg, env.obs_spec, len(env.action_names), build_advised_gate(cfg))
    if options.video and not isinstance(env, MiniGridAdapter):
        raise BadInput("video", f"worlds of env.family={cfg.env.family} cannot be filmed; leave video out")
    if options.video and not isinstance(agent, DreamerV3Agent):
        raise BadInput("video", f"agent={cfg.agent.name} has no world model to film; leave video out")
    out = _film_folder(options) if options.video else None
    env_step, layouts = _restore(agent, options, cfg)
    checkpoint = f"step-{env_step:09d}"

    recorders: list[Recorder] = []
    make = (
        _recording(cfg, recorders) if options.video else lambda: find_family(cfg.env).make(cfg.env, cfg.obs)
    )
    greedy = options.policy == "greedy"
    evaluator = Evaluator(make, options.episodes, options.seed)
    with Activity() as activity:
        show = partial(_show_episodes, activity)
        episodes = evaluator.run(agent, env_step, greedy, between=show)
    result = score(episodes, layouts)
    low, high = wilson_interval(sum(e.success for e in episodes), len(episodes))
    if not sys.stdout.isatty():
        print(
            f"lore-eval: {checkpoint}: success {result.success:.1%} (95 % interval {low:.1%} to {high:.1%}), "
            f"return {result.return_:.3f}, length {result.length:.1f}",
            flush=True,
        )
    films: list[Path] = []
    if out is not None and isinstance(agent, DreamerV3Agent):
        from lore.studies.films import write_films

        stem = out / f"{checkpoint}-{options.policy}"
        with Activity() as activity:
            films = write_films(agent, recorders, stem, options.video_format, options.seed, activity.show)
        print(f"lore-eval: {len(films)} films in {out}", flush=True)
    line = {
        "env_id": cfg.env.id,
        "run": options.run,
        "checkpoint": checkpoint,
        "env_step": env_step,
        "policy": options.policy,
        "episodes": len(episodes),
        "success": result.success,
        "success_interval": [low, high],
        "return": result.return_,
        "length": result.length,
        "unseen_layouts": result.unseen,
        "videos": [str(path) for path in films],
    }
    if sys.stdout.isatty():
        Console(file=sys.stdout).print(as_table(line))
    print(json.dumps(line), flush=True)


def as_table(line: dict[str, Any]) -> Table:
    """Lay out the result of an evaluation for people.

    Args:
        line: What the command's last line holds.

    Returns:
        A table of a row a measure.
    """
    title = f"{line['env_id']}, {line['checkpoint']}, {line['policy']} policy"
    table = Table("held-out episodes", str(line["episodes"]), title=title, title_justify="left")
    low, high = line["success_interval"]
    table.add_row("success", f"{line['success']:.1%} (95 % interval {low:.1%} to {high:.1%})")
    table.add_row("return, mean", f"{line['return']:.3f}")
    table.add_row("length, mean", f"{line['length']:.1f} steps")
    table.add_row("layouts that training never met", f"{line['unseen_layouts']:.1%}")
    return table


def _show_episodes(activity: Activity, over: int, episodes: int) -> None:
    activity.show(f"evaluating: {over} of {episodes} episodes are over")


def _film_folder(options: EvalOptions) -> Path:
    folder = Path(options.run) / "eval" if options.out is None else Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput("out", f"cannot make a folder for films: {error}") from error
    return folder


def _restore(agent: DreamerV3Agent | RandomAgent, options: EvalOptions, cfg: Config) -> tuple[int, set[str]]:
    """Give the agent its stored weights; return the checkpoint's step, and the layouts training has met."""
    try:
        stored = load_state(Path(options.run), options.checkpoint, asdict(cfg))
    except (FileNotFoundError, Unreadable) as error:
        raise BadInput("checkpoint", str(error)) from error
    with not_fitting("checkpoint", f"{options.run}, {options.checkpoint}"):
        state = upgrade(stored)
        weights = state["agent"]
        if isinstance(agent, DreamerV3Agent):
            weights = weights | {
                "rng": {}
            }  # training's streams are not used here, and may be another device's
        agent.load_state_dict(weights)
        return int(state["envs"]["transitions"]), set(state["progress"]["layouts"])


def _recording(cfg: Config, recorders: list[Recorder]) -> Callable[[], EpisodicEnv]:
    """A maker of environments that records the first FILMED of them into `recorders`."""
    from lore.studies.films import Recorder

    def make() -> EpisodicEnv:
        env = find_family(cfg.env).make(cfg.env, cfg.obs)
        if len(recorders) == FILMED:
            return env
        assert isinstance(env, MiniGridAdapter)
        recorders.append(Recorder(env))
        return recorders[-1]

    return make

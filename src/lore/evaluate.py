"""Held-out episodes with a policy that does not learn: the headline numbers, and lore-eval."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lore.build import build_agent
from lore.checkpoint import Unreadable, load_state
from lore.dreamer.agent import DreamerV3Agent
from lore.envs.make import make_env
from lore.envs.vector import EpisodicEnv, episode_seed
from lore.guided_policy import Advice, Agent, GuidedPolicy
from lore.options import BadInput, Config, EvalOptions
from lore.random_agent import RandomAgent
from lore.rng import generator
from lore.types import Episode

if TYPE_CHECKING:
    from lore.video import Recorder

FILMED = 4  # episodes, at most


class Evaluator:
    """Plays the same held-out episodes every time it is asked, all side by side.

    Its random stream comes from the run's seed and the environment step alone, so an evaluation leaves no
    trace in training and gives the same numbers whenever it is repeated.
    """

    def __init__(self, make_env: Callable[[], EpisodicEnv], episodes: int, seed: int):
        self.make_env, self.episodes, self.seed = make_env, episodes, seed
        self._envs: list[EpisodicEnv] = []

    def run(
        self, agent: Agent, env_step: int, greedy: bool = False, advice: Advice | None = None
    ) -> list[Episode]:
        """One episode for each held-out seed, in their order. advice: for as many environments."""
        while len(self._envs) < self.episodes:
            self._envs.append(self.make_env())
        mode = "advised" if advice else "greedy" if greedy else "sampled"
        rng = generator(self.seed, f"evaluation/{mode}/{env_step}", agent.device)
        policy = GuidedPolicy(agent, self._envs[0].obs_spec, rng, greedy, advice)
        for env in self._envs:
            env.remember = advice is not None  # a map costs time, and only an adviser reads it
        games = [_Game(env, i, env_step) for i, env in enumerate(self._envs)]
        carry = agent.initial(self.episodes)
        # Episodes that are over stay in the batch: every new batch size would cost time and memory.
        while any(not game.over for game in games):
            obs = {k: np.stack([g.obs[k] for g in games]) for k in games[0].obs}
            obs["is_first"] = np.array([g.length == 0 for g in games])
            obs["is_last"] = np.array([g.over for g in games])
            states = [g.env.state for g in games] if advice else ()
            carry, decision = policy(carry, obs, states, env_step)
            for game, action in zip(games, decision.action.tolist(), strict=True):
                if not game.over:
                    game.step(action)
        return [g.episode() for g in games]


class _Game:
    """One held-out episode under way."""

    def __init__(self, env: EpisodicEnv, index: int, env_step: int):
        self.env, self.index, self.env_step = env, index, env_step
        self.seed = episode_seed("eval", 0, 1, 0, index)
        self.obs, info = env.reset(seed=self.seed)
        self.layout: str = info["layout"]
        self.return_ = self.shaped = 0.0
        self.length, self.over = 0, False

    def step(self, action: int) -> None:
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        self.return_ += info["raw_reward"]
        self.shaped += reward
        self.length += 1
        self.over = terminated or truncated

    def episode(self) -> Episode:
        return Episode(
            env_step=self.env_step,
            env=0,
            episode=self.index,
            seed=self.seed,
            layout=self.layout,
            return_=self.return_,
            length=self.length,
            success=self.return_ > 0,
            shaped_return=self.shaped,
        )


@dataclass(frozen=True)
class Score:
    """Means over evaluation episodes. unseen: share of layouts that training never met."""

    success: float
    return_: float
    length: float
    unseen: float


def score(episodes: list[Episode], seen: set[str]) -> Score:
    """Means of `episodes`; `seen` are the layouts of training so far."""
    count = len(episodes)
    return Score(
        success=sum(e.success for e in episodes) / count,
        return_=sum(e.return_ for e in episodes) / count,
        length=sum(e.length for e in episodes) / count,
        unseen=sum(e.layout not in seen for e in episodes) / count,
    )


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a success rate.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927).
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, spread = successes / trials, z * z / trials
    center = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    return max(0.0, center - half), min(1.0, center + half)


def main(options: EvalOptions, cfg: Config) -> None:
    """lore-eval: held-out episodes with a checkpoint of the run `cfg`; the last line is one JSON object.

    Raises BadInput naming the option that cannot be met.
    """
    torch.set_num_threads(cfg.threads)
    env = make_env(cfg.env, cfg.obs)
    agent = build_agent(cfg, env.obs_spec, len(env.action_names))
    env.close()
    if options.video and not isinstance(agent, DreamerV3Agent):
        raise BadInput("video", f"agent={cfg.agent.name} has no world model to film; leave video out")
    out = _film_folder(options) if options.video else None
    state = _restore(agent, options)
    env_step = state["envs"]["transitions"]
    checkpoint = f"step-{env_step:09d}"

    recorders: list[Recorder] = []
    make = _recording(cfg, recorders) if options.video else lambda: make_env(cfg.env, cfg.obs)
    greedy = options.policy == "greedy"
    episodes = Evaluator(make, options.episodes, options.seed).run(agent, env_step, greedy)
    result = score(episodes, set(state["layouts"]))
    low, high = wilson_interval(sum(e.success for e in episodes), len(episodes))
    print(
        f"lore-eval: {checkpoint}: success {result.success:.1%} (95 % interval {low:.1%} to {high:.1%}), "
        f"return {result.return_:.3f}, length {result.length:.1f}",
        flush=True,
    )
    films: list[Path] = []
    if out is not None and isinstance(agent, DreamerV3Agent):
        from lore.video import write_films

        stem = out / f"{checkpoint}-{options.policy}"
        films = write_films(agent, recorders, stem, options.video_format, options.seed)
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
    print(json.dumps(line), flush=True)


def _film_folder(options: EvalOptions) -> Path:
    folder = Path(options.run) / "eval" if options.out is None else Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput("out", f"cannot make a folder for films: {error}") from error
    return folder


def _restore(agent: DreamerV3Agent | RandomAgent, options: EvalOptions) -> dict[str, Any]:
    """Give the agent its stored weights; the state of the whole checkpoint."""
    try:
        state = load_state(Path(options.run), options.checkpoint)
    except (FileNotFoundError, Unreadable) as error:
        raise BadInput("checkpoint", str(error)) from error
    stored = state["agent"]
    if isinstance(agent, DreamerV3Agent):
        stored = stored | {"rng": {}}  # training's streams are not used here, and may be another device's
    try:
        agent.load_state_dict(stored)
    except ValueError as error:
        raise BadInput("checkpoint", f"does not fit the run's config.yaml: {error}") from error
    return state


def _recording(cfg: Config, recorders: list[Recorder]) -> Callable[[], EpisodicEnv]:
    """A maker of environments that records the first FILMED of them into `recorders`."""
    from lore.video import Recorder

    def make() -> EpisodicEnv:
        env = make_env(cfg.env, cfg.obs)
        if len(recorders) == FILMED:
            return env
        recorders.append(Recorder(env))
        return recorders[-1]

    return make

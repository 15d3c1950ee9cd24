"""Held-out episodes with a policy that does not learn: the headline numbers, and lore-eval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lore.envs.minigrid import MiniGridAdapter
from lore.envs.vector import episode_seed
from lore.guided_policy import Agent, GuidedPolicy
from lore.rng import generator
from lore.types import Carry, Episode, Latent


class Evaluator:
    """Plays the same held-out episodes every time it is asked, all side by side.

    Its random stream comes from the run's seed and the environment step alone, so an evaluation leaves no
    trace in training and gives the same numbers whenever it is repeated.
    """

    def __init__(self, make_env: Callable[[], MiniGridAdapter], episodes: int, seed: int):
        self.make_env, self.episodes, self.seed = make_env, episodes, seed
        self._envs: list[MiniGridAdapter] = []

    def run(self, agent: Agent, env_step: int, greedy: bool = False) -> list[Episode]:
        """One episode for each held-out seed, in the order of the seeds."""
        while len(self._envs) < self.episodes:
            self._envs.append(self.make_env())
        mode = "greedy" if greedy else "sampled"
        rng = generator(self.seed, f"evaluation/{mode}/{env_step}", agent.device)
        policy = GuidedPolicy(agent, self._envs[0].obs_spec, rng, greedy)
        games = [_Game(env, i, env_step) for i, env in enumerate(self._envs)]
        carry, live = agent.initial(self.episodes), games
        while live:
            obs = {k: np.stack([g.obs[k] for g in live]) for k in live[0].obs}
            obs["is_first"] = np.array([g.length == 0 for g in live])
            carry, decision = policy(carry, obs)
            for game, action in zip(live, decision.action.tolist(), strict=True):
                game.step(action)
            keep = torch.tensor([not g.over for g in live], device=agent.device)
            if not keep.all():
                carry = _select(carry, keep)
                live = [g for g in live if not g.over]
        return [g.episode() for g in games]


class _Game:
    """One held-out episode under way."""

    def __init__(self, env: MiniGridAdapter, index: int, env_step: int):
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


def _select(carry: Carry, keep: torch.Tensor) -> Carry:
    latent = Latent(carry.latent.deter[keep], carry.latent.stoch[keep])
    return Carry(latent, carry.prev_action[keep])


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

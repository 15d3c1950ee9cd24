"""Held-out episodes with a policy that does not learn: the headline numbers, and lore-eval."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lore.base.rng import generator
from lore.base.types import Episode
from lore.config.options import RunOptions
from lore.envs.vector import EpisodicEnv, RunningEpisode, episode_seed
from lore.training.acting import Guidance, GuidedPolicy
from lore.training.roles import Agent

USUAL_EVERY = 500  # environment steps
USUAL_PLAYED = 25_000  # 100 episodes of DoorKey-5x5, whose limit is 250 steps
PLAYED = 20  # steps that an evaluation may play for each step of training, where it plays more than the usual


def choose_rhythm(run: RunOptions, env: EpisodicEnv) -> int:
    """Choose how often a run is evaluated: on long tasks so seldom that it takes a tenth of the time at most.

    An evaluation plays up to `time limit * run.eval_episodes` steps with each policy. Where these are at most
    USUAL_PLAYED, the distance is USUAL_EVERY; beyond, a step for PLAYED of them, up to the next multiple of
    USUAL_EVERY. The rule is the same for every arm, so that their curves have the same points.

    Args:
        run: Of the options `eval_every`, which is taken where it is a number, and `eval_episodes`.
        env: An environment of the task as it was made. One without `time_limit` is taken as a usual one.

    Returns:
        Environment steps from one evaluation to the next; 0: there is none.
    """
    if run.eval_every is not None:
        return run.eval_every
    played = getattr(env, "time_limit", 0) * run.eval_episodes
    if played <= USUAL_PLAYED:
        return USUAL_EVERY
    return USUAL_EVERY * math.ceil(played / PLAYED / USUAL_EVERY)


class Evaluator:
    """Plays the same held-out episodes every time it is asked, all side by side.

    Its random stream comes from the run's seed and the environment step alone, so an evaluation leaves no
    trace in training and gives the same numbers whenever it is repeated.
    """

    def __init__(self, make_env: Callable[[], EpisodicEnv], episodes: int, seed: int):
        """Say what is played; environments are made at the first evaluation.

        Args:
            make_env: Makes one environment.
            episodes: Number of held-out episodes, each in an environment.
            seed: Seed of the run.
        """
        self.make_env, self.episodes, self.seed = make_env, episodes, seed
        self._envs: list[EpisodicEnv] = []

    def run(
        self,
        agent: Agent,
        env_step: int,
        greedy: bool = False,
        advice: Guidance | None = None,
        between: Callable[[int, int], None] | None = None,
    ) -> list[Episode]:
        """Play one episode for each held-out seed.

        Args:
            agent: That plays, without learning.
            env_step: Environment steps of the run so far; with the seed it chooses the random stream.
            greedy: The likeliest action instead of a sample.
            advice: For as many environments as there are episodes; None without.
            between: Called before every step with the number of episodes that are over, and of all. What it
                raises ends the evaluation, and leaves nothing behind.

        Returns:
            The episodes, in the order of their seeds.
        """
        between = between or _do_nothing
        while len(self._envs) < self.episodes:
            between(0, self.episodes)
            self._envs.append(self.make_env())
        mode = "advised" if advice else "greedy" if greedy else "sampled"
        rng = generator(self.seed, f"evaluation/{mode}/{env_step}", agent.device)
        policy = GuidedPolicy(agent, self._envs[0].obs_spec, rng, greedy, advice)
        for env in self._envs:
            env.remember = advice is not None  # a map costs time, and only an adviser reads it
        games = []
        for i, env in enumerate(self._envs):
            between(0, self.episodes)
            games.append(RunningEpisode(env, i, episode_seed("eval", 0, 1, 0, i)))
        carry = agent.initial(self.episodes)
        # Episodes that are over stay in the batch: every new batch size would cost time and memory.
        while (over := sum(game.is_last for game in games)) < len(games):
            between(over, len(games))
            obs = {k: np.stack([g.obs[k] for g in games]) for k in games[0].obs}
            obs["is_first"] = np.array([not g.actions for g in games])
            obs["is_last"] = np.array([g.is_last for g in games])
            states = [g.env.state for g in games] if advice else ()
            carry, decision = policy(carry, obs, states, env_step)
            for game, action in zip(games, decision.action.tolist(), strict=True):
                if not game.is_last:
                    game.step(action)
        return [g.record(env_step, env=0) for g in games]


def _do_nothing(over: int, episodes: int) -> None:
    pass


@dataclass(frozen=True)
class Score:
    """Means over evaluation episodes.

    Attributes:
        success: Share of the episodes that earned a reward, in [0, 1].
        return_: Undiscounted reward of an episode.
        length: Steps of an episode.
        unseen: Share of the episodes in layouts that training never met, in [0, 1].
    """

    success: float
    return_: float
    length: float
    unseen: float

    def row(self) -> dict[str, float]:
        """Give the metrics eval/ besides success, name -> number."""
        return {"eval/return": self.return_, "eval/length": self.length, "eval/unseen_layouts": self.unseen}


def score(episodes: list[Episode], seen: Collection[str] = ()) -> Score:
    """Compute the means of evaluation episodes.

    Args:
        episodes: At least one.
        seen: The layouts that training has met.
    """
    count = len(episodes)
    return Score(
        success=sum(e.success for e in episodes) / count,
        return_=sum(e.return_ for e in episodes) / count,
        length=sum(e.length for e in episodes) / count,
        unseen=sum(e.layout not in seen for e in episodes) / count,
    )


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the confidence interval of a success rate.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927).

    Args:
        successes: How many of the trials succeeded.
        trials: At least 1.
        confidence: That the interval holds the rate.

    Returns:
        Lower and upper end, in [0, 1].
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, spread = successes / trials, z * z / trials
    center = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    return max(0.0, center - half), min(1.0, center + half)

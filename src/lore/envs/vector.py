"""Several environments side by side, as rows of arrays, with episodes that can be saved and replayed.

A row is one observation with the reward that led to it. When an episode ends, its last row is delivered with
is_last (and is_terminal unless the time was up and env.timeout=truncate); the next `step` ignores that
environment's action and delivers the first row of its next episode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any, Protocol

import numpy as np

from lore.base.types import FLAGS, Episode, GridState, ObsSpec

Obs = dict[str, np.ndarray]
SPLITS = ("train", "eval")
_HALF = 1 << 31  # training seeds lie below, evaluation seeds from here up to 2 * _HALF


class EpisodicEnv(Protocol):
    """What VectorEnv needs of one environment; `MiniGridAdapter` is one.

    An episode must follow from its seed and the actions alone, however often the object was used before. It
    may have a `return_range` too, the lowest and the highest return of an episode, shaping apart, and a
    `time_limit`, the most steps of an episode, which says how often a run is evaluated.

    Attributes:
        obs_spec: Observation key -> what it is.
        action_names: Names of the actions, by number.
        remember: Whether there is a `state`, from the next reset on.
    """

    obs_spec: dict[str, ObsSpec]
    action_names: list[str]
    remember: bool

    def reset(self, *, seed: int) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Seed of the episode, in [0, 2**32).

        Returns:
            The first observation, key of `obs_spec` -> array, and info with "layout", the name of the layout.
        """

    def step(self, action: int) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Args:
            action: Number of the action in `action_names`.

        Returns:
            Observation, reward, terminated, truncated (by the time limit), and info with "raw_reward", the
            reward without shaping.
        """

    @property
    def state(self) -> GridState:
        """What the agent knows now; only `VectorEnv.states` asks for it."""


class RunningEpisode:
    """One episode of one environment: what was done in it, and what it earned.

    Attributes:
        obs: The latest observation.
        reward: The latest reward, shaping included.
        actions: Every action so far.
        return_: Sum of the rewards without shaping.
        shaped_return: Sum of the rewards.
        is_last: Whether the episode has ended.
        is_terminal: Whether it has ended for good: not by its time limit, unless env.timeout=terminal.
    """

    def __init__(self, env: EpisodicEnv, episode: int, seed: int) -> None:
        """Begin the episode: reset the environment.

        Args:
            env: The environment.
            episode: Number of the episode in this environment, from 0.
            seed: Seed of the episode.
        """
        self.env, self.episode, self.seed = env, episode, seed
        self.obs, info = env.reset(seed=seed)
        self.layout: str = info["layout"]
        self.actions: list[int] = []
        self.reward = self.return_ = self.shaped_return = 0.0
        self.is_last = self.is_terminal = False

    def step(self, action: int) -> None:
        """Take an action.

        Args:
            action: Number of the action, in [0, A).
        """
        self.obs, self.reward, self.is_terminal, truncated, info = self.env.step(action)
        self.actions.append(action)
        self.return_ += info["raw_reward"]
        self.shaped_return += self.reward
        self.is_last = self.is_terminal or truncated

    @property
    def won(self) -> bool:
        """Whether the episode has earned a reward, shaping apart."""
        return self.return_ > 0

    def record(self, env_step: int, env: int, adviser: str = "none") -> Episode:
        """Make the record of the episode.

        Args:
            env_step: Environment step of the run at which it ended.
            env: Number of the environment.
            adviser: Who advised it.
        """
        return Episode(
            env_step=env_step,
            env=env,
            episode=self.episode,
            seed=self.seed,
            layout=self.layout,
            return_=self.return_,
            length=len(self.actions),
            success=self.won,
            shaped_return=self.shaped_return,
            adviser=adviser,
        )


def episode_seed(split: str, run_seed: int, num_envs: int, env: int, episode: int) -> int:
    """Derive the seed of one episode, in [0, 2**32).

    Training seeds follow from (run seed, env, episode) and lie below 2**31. Evaluation seeds follow from the
    global index episode * num_envs + env alone and lie at or above 2**31: the first 100 are one set for every
    run and num_envs.

    Args:
        split: train or eval.
        run_seed: Seed of the run.
        num_envs: N, the number of environments side by side.
        env: Number of the environment, in [0, N).
        episode: Number of the episode in this environment, from 0.
    """
    if split == "eval":
        return _HALF + _hash(episode * num_envs + env)
    return _hash(run_seed, env, episode)


class VectorEnv:
    """Environments side by side, with next-step autoreset.

    An observation is a dict: each key of `obs_spec` (N, *shape), reward float32 (N,), and is_first, is_last,
    is_terminal bool (N,). Returned arrays are fresh at every step.

    Attributes:
        transitions: Environment steps made since `reset`; resets are none.
        finished: Ended episodes until `pop_episodes`.
        advisers: Who advises each environment's episodes; set it, it stays until set again.
        return_range: Lowest and highest return of an episode, shaping apart; None where not declared.
    """

    def __init__(self, factories: Sequence[Callable[[], EpisodicEnv]], seed: int, *, split: str) -> None:
        """Make the environments; `reset` starts them.

        Args:
            factories: One for each environment, called once.
            seed: Seed of the run.
            split: train or eval.

        Raises:
            ValueError: The split is not known, there is no environment, or the environments differ in
                observations or actions.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not known; one of {', '.join(SPLITS)}")
        if not factories:
            raise ValueError("a VectorEnv needs at least one environment")
        self.envs = [factory() for factory in factories]
        self.num_envs, self.seed, self.split = len(self.envs), seed, split
        self.obs_spec, self.action_names = self.envs[0].obs_spec, self.envs[0].action_names
        self.num_actions = len(self.action_names)
        self.return_range: tuple[float, float] | None = getattr(self.envs[0], "return_range", None)
        for env in self.envs[1:]:
            if env.obs_spec != self.obs_spec or env.action_names != self.action_names:
                raise ValueError("environments side by side must share observations and actions")
        self.transitions = 0
        self.advisers = ["none"] * self.num_envs
        self.finished: list[Episode] = []
        self._running: list[RunningEpisode] = []
        self._obs: Obs = {}

    def reset(self) -> Obs:
        """Start episode 0 everywhere; the count of transitions and the finished episodes start anew too."""
        self.transitions, self.finished = 0, []
        self._obs = self._empty()
        self._running = [self._begin(i, 0) for i in range(self.num_envs)]
        return dict(self._obs)

    def step(self, actions: np.ndarray) -> Obs:
        """Step every environment once. Where the last row was is_last, the next episode begins instead.

        Args:
            actions: Integers (N,) in [0, num_actions); ignored where the last row was is_last.

        Returns:
            The rows: key of `obs_spec` -> (N, *shape), with reward, is_first, is_last and is_terminal (N,).

        Raises:
            RuntimeError: There was no `reset` before.
            ValueError: The actions have a wrong shape, or one of them does not exist.
        """
        if not self._obs:
            raise RuntimeError("call reset() before step()")
        chosen = np.asarray(actions).tolist()
        if not isinstance(chosen, list) or len(chosen) != self.num_envs:
            raise ValueError(f"actions of shape {np.shape(actions)}, expected ({self.num_envs},)")
        self._obs = self._empty()
        ended: list[int] = []
        for i, run in enumerate(self._running):
            if run.is_last:
                self._running[i] = self._begin(i, run.episode + 1)
                continue
            self._advance(i, chosen[i])
            self.transitions += 1
            if run.is_last:
                ended.append(i)
        self.finished.extend(self._running[i].record(self.transitions, i, self.advisers[i]) for i in ended)
        return dict(self._obs)

    @property
    def observation(self) -> Obs:
        """The rows last delivered; after `load_state_dict`, those of the stored moment."""
        return dict(self._obs)

    @property
    def remember(self) -> bool:
        """Whether the environments remember, so that `states` may be asked for."""
        return self.envs[0].remember

    def states(self) -> list[GridState]:
        """Return what each agent knows at the rows last delivered.

        Raises:
            RuntimeError: The environments do not remember.
        """
        return [env.state for env in self.envs]

    def won(self) -> np.ndarray:
        """Say where the rows last delivered end an episode that earned a reward, shaping apart: (N,) bool."""
        return np.array([run.is_last and run.won for run in self._running])

    def pop_episodes(self) -> list[Episode]:
        """Return the episodes that ended since the last call, in order."""
        finished, self.finished = self.finished, []
        return finished

    def close(self) -> None:
        """Let go of the environments."""
        self.envs = []

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists: which episodes run and what was done in them."""
        if not self._obs:
            raise RuntimeError("call reset() before state_dict()")
        return {
            **self._identity(),
            "transitions": self.transitions,
            "episodes": [run.episode for run in self._running],
            "actions": [list(run.actions) for run in self._running],
            "rows": [self._row_hash(i) for i in range(self.num_envs)],
            "advisers": list(self.advisers),
            "finished": [list(astuple(episode)) for episode in self.finished],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a stored moment: re-seed each running episode and repeat its actions.

        Args:
            state: What `state_dict` gave.

        Raises:
            ValueError: The state is of another kind of VectorEnv, or a repeated episode does not end in the
                stored row.
        """
        for key, value in self._identity().items():
            if state[key] != value:
                raise ValueError(f"stored environments have {key} {state[key]!r}, this run has {value!r}")
        self._obs = self._empty()
        self._running = [self._begin(i, episode) for i, episode in enumerate(state["episodes"])]
        for i, (episode, actions) in enumerate(zip(state["episodes"], state["actions"], strict=True)):
            for action in actions:
                if self._running[i].is_last:
                    break
                self._advance(i, action)
            if self._running[i].actions != actions or self._row_hash(i) != state["rows"][i]:
                raise ValueError(
                    f"environment {i}, episode {episode}: repeating its {len(actions)} actions does not "
                    "lead to the stored observation; env.*, obs, or the version of minigrid or numpy differ"
                )
        self.transitions = state["transitions"]
        self.advisers = list(state["advisers"])
        self.finished = [Episode(*values) for values in state["finished"]]

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "split": self.split, "num_envs": self.num_envs}

    def _begin(self, i: int, episode: int) -> RunningEpisode:
        seed = episode_seed(self.split, self.seed, self.num_envs, i, episode)
        run = RunningEpisode(self.envs[i], episode, seed)
        self._write(i, run, is_first=True)
        return run

    def _advance(self, i: int, action: int) -> None:
        if not 0 <= action < self.num_actions:
            raise ValueError(f"action {action} of environment {i} is not in [0, {self.num_actions})")
        self._running[i].step(action)
        self._write(i, self._running[i], is_first=False)

    def _write(self, i: int, run: RunningEpisode, is_first: bool) -> None:
        """Put the latest row of an episode into row i of the observation."""
        flags = (is_first, run.is_last, run.is_terminal)
        for key in self.obs_spec:
            self._obs[key][i] = run.obs[key]
        self._obs["reward"][i] = run.reward
        for key, flag in zip(FLAGS, flags, strict=True):
            self._obs[key][i] = flag

    def _empty(self) -> Obs:
        n = self.num_envs
        obs: Obs = {key: np.empty((n, *spec.shape), spec.dtype) for key, spec in self.obs_spec.items()}
        obs["reward"] = np.empty(n, np.float32)
        for key in FLAGS:
            obs[key] = np.empty(n, bool)
        return obs

    def _row_hash(self, i: int) -> int:
        digest = hashlib.blake2b(digest_size=7)
        for key in sorted(self._obs):
            digest.update(self._obs[key][i].tobytes())
        return int.from_bytes(digest.digest(), "big")


def _hash(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) % _HALF

"""From the options to environments. Everything that can be wrong with `env.*` is said here, by key."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache, partial

import gymnasium as gym
import minigrid  # noqa: F401  (registers its ids when imported)
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from lore.base.errors import BadInput
from lore.config.options import EnvOptions
from lore.envs.actions import action_table
from lore.envs.adapter import MODES, MiniGridAdapter
from lore.envs.agent_view import use_fast_view
from lore.envs.missions import token_length
from lore.envs.privileged.shaping import PotentialShaping
from lore.envs.privileged.truth import core
from lore.envs.vector import VectorEnv


def make_env(options: EnvOptions, obs: str, *, remember: bool = False) -> MiniGridAdapter:
    """One environment. obs: symbolic, raw147 or rgb64. remember: see MiniGridAdapter.

    Raises BadInput (a ValueError) naming `env.id`, `env.actions`, `env.shaping`, `env.max_steps` or `obs`.
    """
    if obs not in MODES:
        raise BadInput("obs", f"{obs!r} is not known; one of {', '.join(MODES)}")
    env = _task(options)
    actions = action_table(options.id, options.actions, _count(env.action_space))
    length = _mission_length(options.id)
    if options.shaping:
        env = PotentialShaping(env, options.shaping)
    try:
        return MiniGridAdapter(env, obs, actions, length, remember=remember)
    except ValueError as error:
        raise BadInput("obs", str(error)) from error


def make_vec(
    options: EnvOptions, obs: str, num_envs: int, seed: int, *, split: str, remember: bool = False
) -> VectorEnv:
    """`num_envs` environments side by side. split: "train" or "eval"; their episodes never share a seed."""
    return VectorEnv([partial(make_env, options, obs, remember=remember)] * num_envs, seed, split=split)


@cache
def _mission_length(env_id: str) -> int:
    return token_length(core(gym.make(env_id, disable_env_checker=True)))


def _count(space: gym.Space) -> int:
    if not isinstance(space, gym.spaces.Discrete):
        raise BadInput("env.id", f"its actions are {space}, not a list to choose from")
    return int(space.n)


def _task(options: EnvOptions) -> gym.Env:
    """The registered task without the wrappers that only check its caller, and with the fast view."""
    if options.id not in gym.registry:
        known = [name for name in gym.registry if name.startswith(("MiniGrid-", "BabyAI-"))]
        close = get_close_matches(options.id, known, n=3)
        hint = (
            f"did you mean {', '.join(close)}?"
            if close
            else "see the ids of MiniGrid, e.g. MiniGrid-DoorKey-5x5-v0"
        )
        raise BadInput("env.id", f"{options.id!r} is not registered; {hint}")
    if options.max_steps is not None and options.max_steps < 1:
        raise BadInput(
            "env.max_steps", f"{options.max_steps} is no time limit; at least 1, or null for the task's own"
        )
    limit = {} if options.max_steps is None else {"max_steps": options.max_steps}
    try:
        env = gym.make(options.id, disable_env_checker=True, **limit)
    except TypeError as error:
        key = "env.max_steps" if limit and "max_steps" in str(error) else "env.id"
        raise BadInput(key, f"{options.id} cannot be made: {error}") from error
    except (gym.error.Error, ImportError) as error:
        raise BadInput("env.id", f"{options.id} cannot be made: {error}") from error
    while isinstance(env, (OrderEnforcing, PassiveEnvChecker)):
        env = env.env
    try:
        use_fast_view(core(env))
        env.reset(seed=0)  # some ids of minigrid 3.2.0 (WFC) are registered without the files that they read
    except (TypeError, OSError, ImportError) as error:
        raise BadInput("env.id", f"{options.id}: {error}") from error
    return env

"""From the options to environments. Everything that can be wrong with `env.*` is said here, by key."""

from __future__ import annotations

from functools import cache, partial
from typing import Protocol

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from minigrid.core.actions import Actions

from lore.base.errors import BadInput
from lore.config.options import EnvOptions
from lore.envs.actions import action_table
from lore.envs.adapter import MODES, MiniGridAdapter
from lore.envs.agent_view import use_fast_view
from lore.envs.missions import MissionCode, code_of
from lore.envs.privileged.shaping import PotentialShaping
from lore.envs.privileged.truth import core
from lore.envs.registry import find_world
from lore.envs.time_limit import TIMEOUTS, TerminalTimeout
from lore.envs.vector import EpisodicEnv, VectorEnv


def make_env(options: EnvOptions, obs: str, *, remember: bool = False) -> MiniGridAdapter:
    """Make one environment.

    Args:
        options: The task; see docs/environments.md for a world of one's own.
        obs: symbolic, raw147 or rgb64.
        remember: Whether it keeps the map that advisers read; see MiniGridAdapter.

    Returns:
        The task as the agent reads it.

    Raises:
        BadInput: Names `env.id`, `env.actions`, `env.shaping`, `env.max_steps`, `env.timeout` or `obs`.
    """
    if options.timeout not in TIMEOUTS:
        raise BadInput("env.timeout", f"{options.timeout!r} is not known; one of {', '.join(TIMEOUTS)}")
    if obs not in MODES:
        raise BadInput("obs", f"{obs!r} is not known; one of {', '.join(MODES)}")
    env = _task(options)
    actions = action_table(options.id, options.actions, _count(env.action_space))
    missions = _mission_code(options.id)
    if options.timeout == "terminal":
        env = TerminalTimeout(env)  # below the shaping: the potential of a terminal state is 0
    if options.shaping:
        env = PotentialShaping(env, options.shaping)
    try:
        return MiniGridAdapter(
            env, obs, actions, missions, remember=remember, clock=options.clock, hint=options.hint
        )
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput("obs", str(error)) from error


class MakeEnv(Protocol):
    """A maker of one environment: `make_env`, or that of another family of worlds."""

    def __call__(self, options: EnvOptions, obs: str, *, remember: bool = False) -> EpisodicEnv:
        """Make one environment.

        Args:
            options: The task.
            obs: How the agent sees it; MiniGrid has symbolic, raw147 and rgb64.
            remember: Whether the environment keeps what advisers read, its `state`.

        Raises:
            BadInput: Names the key that is wrong.
        """


def make_vec(
    options: EnvOptions,
    obs: str,
    num_envs: int,
    seed: int,
    *,
    split: str,
    remember: bool = False,
    make: MakeEnv = make_env,
) -> VectorEnv:
    """Make `num_envs` environments side by side.

    Args:
        options: The task.
        obs: symbolic, raw147 or rgb64.
        num_envs: How many.
        seed: Seed of the run.
        split: train or eval; their episodes never share a seed.
        remember: See `make_env`.
        make: Makes each of them.

    Raises:
        BadInput: See `make_env`.
    """
    return VectorEnv([partial(make, options, obs, remember=remember)] * num_envs, seed, split=split)


def _count(space: gym.Space) -> int:
    """Number of actions; MiniGrid's own, or the first of them."""
    if not isinstance(space, gym.spaces.Discrete) or not 1 <= space.n <= len(Actions):
        raise BadInput(
            "env.id", f"its actions are {space}; MiniGrid's are Discrete({len(Actions)}), or fewer"
        )
    return int(space.n)


@cache
def _mission_code(env_id: str) -> MissionCode:
    """Find out how the task words its missions, with an environment that is made for this and thrown away."""
    try:
        return code_of(core(gym.make(find_world(env_id), disable_env_checker=True)))
    except ValueError as error:
        raise BadInput("env.id", f"{env_id}: {error}") from error


def _task(options: EnvOptions) -> gym.Env:
    """The world without the wrappers that only check its caller, and with the fast view."""
    spec = find_world(options.id)
    if options.max_steps is not None and options.max_steps < 1:
        raise BadInput(
            "env.max_steps", f"{options.max_steps} is no time limit; at least 1, or null for the task's own"
        )
    limit = {} if options.max_steps is None else {"max_steps": options.max_steps}
    try:
        env = gym.make(spec, disable_env_checker=True, **limit)
    except TypeError as error:
        if limit and "max_steps" in str(error):
            raise BadInput(
                "env.max_steps", f"{options.id} takes no max_steps; use null, which keeps the task's own"
            ) from error
        raise BadInput("env.id", f"{options.id} cannot be made: {error}") from error
    except (gym.error.Error, ImportError, AttributeError) as error:
        raise BadInput("env.id", f"{options.id} cannot be made: {error}") from error
    while isinstance(env, (OrderEnforcing, PassiveEnvChecker)):
        env = env.env
    try:
        world = core(env)
    except TypeError as error:
        raise BadInput(
            "env.id", f"{options.id}: {error}; use one, or derive yours from MiniGridEnv"
        ) from error
    use_fast_view(world)
    try:
        env.reset(seed=0)  # some ids of minigrid 3.2.0 (WFC) are registered without the files that they read
    except (TypeError, OSError, ImportError) as error:
        raise BadInput("env.id", f"{options.id}: {error}") from error
    return env

"""From options to objects: one table for each group."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lore.dreamer.agent import DreamerV3Agent
from lore.options import Config
from lore.random_agent import RandomAgent
from lore.replay import ReplayBuffer, columns
from lore.rng import generator
from lore.types import ObsSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Spec = dict[str, ObsSpec]


def _dreamer(cfg: Config, spec: Spec, num_actions: int) -> DreamerV3Agent:
    return DreamerV3Agent(spec, num_actions, cfg.agent, cfg.size, cfg.seed, cfg.device, DTYPES[cfg.dtype])


def _random(cfg: Config, spec: Spec, num_actions: int) -> RandomAgent:
    return RandomAgent(num_actions, cfg.device)


AGENTS: dict[str, Callable[[Config, Spec, int], DreamerV3Agent | RandomAgent]] = {
    "dreamer": _dreamer,
    "random": _random,
}


def build_agent(cfg: Config, spec: Spec, num_actions: int) -> DreamerV3Agent | RandomAgent:
    """The agent that `agent=NAME` stands for, untrained."""
    return AGENTS[cfg.agent.name](cfg, spec, num_actions)


def build_replay(cfg: Config, spec: Spec, num_actions: int) -> ReplayBuffer:
    """An empty replay of cfg.replay.capacity rows on the agent's device."""
    return ReplayBuffer(
        cfg.replay.capacity,
        cfg.run.envs,
        columns(spec, num_actions),
        cfg.size.deter,
        cfg.size.stoch,
        generator(cfg.seed, "replay", cfg.device),
        DTYPES[cfg.dtype],
        cfg.device,
    )

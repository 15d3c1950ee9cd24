"""MiniGrid and BabyAI tasks, side by side, as arrays of the agent's own view."""

from lore.envs.adapter import MODES, MiniGridAdapter
from lore.envs.make import make_env, make_vec
from lore.envs.privileged.skills import SkillMeter
from lore.envs.privileged.truth import Distances, distances, layout_hash
from lore.envs.vector import EpisodicEnv, VectorEnv, episode_seed

__all__ = [
    "MODES",
    "Distances",
    "EpisodicEnv",
    "MiniGridAdapter",
    "SkillMeter",
    "VectorEnv",
    "distances",
    "episode_seed",
    "layout_hash",
    "make_env",
    "make_vec",
]

"""A world of your own: two balls lie in a room, and the mission says which of them to fetch.

Importing this module registers the world, as Gymnasium wants it. LoRe finds it as `env.id=my_lab:MyLab-v0`:

    cd examples/own_environment
    PYTHONPATH=. lore-train env.id=my_lab:MyLab-v0 run.steps=3000

or, after `pip install examples/own_environment`, from any folder; and as `env.id=my_lab`, by its entry point.
docs/environments.md explains each line.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball
from minigrid.minigrid_env import MiniGridEnv


def mission(color: str) -> str:
    """Word the mission; MissionSpace lists it for every color."""
    return f"fetch the {color} ball from the lab"


class MyLab(MiniGridEnv):
    """An episode ends when a ball is picked up: with a reward if it is the right one."""

    return_range = (0.0, 1.0)  # the lowest and the highest sum of an episode's rewards

    def __init__(self, size: int = 6, max_steps: int = 60, **kwargs: Any) -> None:
        missions = MissionSpace(mission, ordered_placeholders=[COLOR_NAMES])
        super().__init__(missions, grid_size=size, max_steps=max_steps, **kwargs)

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        wanted, other = self._rand_subset(COLOR_NAMES, 2)  # chance comes from the seed of the episode alone
        self.wanted = Ball(wanted)
        self.place_obj(self.wanted)
        self.place_obj(Ball(other))
        self.place_agent()
        self.mission = mission(wanted)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one action, as every MiniGrid world does, and look at what is in hand."""
        obs, reward, terminated, truncated, info = super().step(action)
        if self.carrying is not None:
            terminated = True
            reward = self._reward() if self.carrying is self.wanted else 0.0
        return obs, float(reward), terminated, truncated, info


gymnasium.register(id="MyLab-v0", entry_point=MyLab)

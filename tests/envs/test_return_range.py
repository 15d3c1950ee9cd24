"""The return range that a world declares, and that its episodes keep to."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from tests.envs.test_own_worlds import WORLD, package  # noqa: F401  (a fixture)

from lore.base.errors import BadInput
from lore.config.options import EnvOptions
from lore.envs import make_env, make_vec

RANGES = {
    "MiniGrid-DoorKey-5x5-v0": (0, 1),
    "MiniGrid-LavaGapS5-v0": (0, 1),
    "MiniGrid-Fetch-5x5-N2-v0": (0, 1),
    "BabyAI-UnlockPickup-v0": (0, 1),
    "MiniGrid-Dynamic-Obstacles-Random-5x5-v0": (-1, 1),
    "MiniGrid-Dynamic-Obstacles-5x5-v0": (-1, 1),
}


@pytest.mark.parametrize("env_id", RANGES)
def test_episodes_keep_to_the_range(env_id: str) -> None:
    vec = make_vec(EnvOptions(id=env_id, max_steps=40, shaping=0), "raw147", 2, 0, split="train")
    assert vec.return_range == RANGES[env_id]
    rng = np.random.default_rng(0)
    vec.reset()
    while len(vec.finished) < 60:
        vec.step(rng.integers(vec.num_actions, size=2))
    returns = [episode.return_ for episode in vec.finished]
    assert min(returns) == RANGES[env_id][0] and max(returns) <= 1


def test_every_registered_world_declares_one_of_the_two() -> None:
    names = [name for name in gym.registry if name.startswith(("MiniGrid-", "BabyAI-")) and "WFC" not in name]
    assert len(names) > 100
    for name in names[::5]:
        lowest = -1.0 if "Dynamic-Obstacles" in name else 0.0
        assert make_env(EnvOptions(id=name), "symbolic").return_range == (lowest, 1.0), name


def test_a_world_of_ones_own_says_it_or_has_none(package) -> None:  # noqa: F811
    text = f"{WORLD}\n"
    for name, value in {
        "two": "(-2, 3)",
        "nothing": "None",
        "one": "5",
        "turned": "(1, 0)",
        "words": "'ab'",
    }.items():
        text += f"\nclass {name.title()}(World):\n    return_range = {value}\n"
        text += f"\ngymnasium.register('{name}-v0', entry_point={name.title()})\n"
    text += "\ngymnasium.register('silent-v0', entry_point=World)\n"
    package("ranges", text)
    for name, expected in {"two": (-2.0, 3.0), "nothing": None, "silent": None}.items():
        vec = make_vec(EnvOptions(id=f"ranges:{name}-v0"), "symbolic", 1, 0, split="train")
        assert vec.return_range == expected
    for name in ("one", "turned", "words"):
        with pytest.raises(BadInput, match=r"^env.id: .*two numbers, low < high"):
            make_env(EnvOptions(id=f"ranges:{name}-v0"), "symbolic")

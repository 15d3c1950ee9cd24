"""The outside observer's metrics against an episode whose every step is known."""

from __future__ import annotations

import numpy as np
import pytest

from lore.config.options import EnvOptions
from lore.envs import SkillMeter, VectorEnv, make_vec
from lore.envs.actions import valid_actions
from lore.envs.privileged.oracle import optimal_actions
from lore.envs.privileged.skills import EVERY

DOORKEY = "MiniGrid-DoorKey-5x5-v0"
TASKS = (DOORKEY, "MiniGrid-KeyCorridorS3R3-v0", "MiniGrid-ObstructedMaze-1Dlh-v0", "BabyAI-UnlockPickup-v0")


def watched(envs: VectorEnv, meter: SkillMeter, actions: np.ndarray, obs: dict) -> dict:
    acted = (~obs["is_last"]).tolist()
    meter.before(obs["is_first"].tolist())
    obs = envs.step(actions)
    meter.after(acted, obs["is_last"].tolist())
    return obs


def play(envs: VectorEnv, meter: SkillMeter, steps: int, seed: int, obs: dict) -> dict:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        obs = watched(envs, meter, rng.integers(0, envs.num_actions, envs.num_envs), obs)
    return obs


def test_a_solved_episode_counts_key_toggle_and_lock_and_wastes_nothing() -> None:
    envs = make_vec(EnvOptions(id=DOORKEY), "symbolic", 1, 0, split="train")
    obs = envs.reset()
    meter = SkillMeter(envs.envs)
    names, carried, steps = envs.action_names, 0, 0
    wasted = names.index("done")
    obs = watched(envs, meter, np.array([wasted]), obs)
    while not obs["is_last"][0]:
        best = min(optimal_actions(envs.envs[0]))
        obs = watched(envs, meter, np.array([names.index(best)]), obs)
        steps += 1
        carried += envs.envs[0].unwrapped.carrying is not None
    row = meter.result()
    assert row["minigrid/pickup_key_rate"] == row["minigrid/door_toggle_rate"] == 1.0
    assert row["minigrid/unlock_open_rate"] == 1.0
    assert row["minigrid/invalid_action_ratio"] == pytest.approx(1 / (steps + 1))
    assert row["minigrid/has_key_ratio"] == pytest.approx(carried / (steps + 1))
    assert meter.result() == {}


def test_a_task_without_keys_has_nothing_to_say_of_them() -> None:
    envs = make_vec(EnvOptions(id="MiniGrid-Empty-5x5-v0"), "symbolic", 1, 0, split="train")
    meter = SkillMeter(envs.envs)
    play(envs, meter, 300, 0, envs.reset())
    assert set(meter.result()) == {"minigrid/invalid_action_ratio"}


@pytest.mark.parametrize("task", TASKS)
def test_distances_are_measured_now_and_then_and_shares_are_shares(task: str) -> None:
    envs = make_vec(EnvOptions(id=task), "symbolic", 2, 0, split="train")
    meter = SkillMeter(envs.envs)
    play(envs, meter, 20 * EVERY, 0, envs.reset())
    row = meter.result()
    assert {"minigrid/distance_agent_key", "minigrid/distance_key_door"} <= set(row)
    assert all(0 <= value <= 1 for name, value in row.items() if "distance" not in name)


def test_a_stored_meter_goes_on_as_if_it_had_not_been_stored() -> None:
    envs = make_vec(EnvOptions(id=DOORKEY, max_steps=40), "symbolic", 2, 0, split="train")
    meter = SkillMeter(envs.envs)
    obs = play(envs, meter, 57, 1, envs.reset())
    other = make_vec(EnvOptions(id=DOORKEY, max_steps=40), "symbolic", 2, 0, split="train")
    other.load_state_dict(envs.state_dict())
    copy = SkillMeter(other.envs)
    copy.load_state_dict(meter.state_dict())
    play(envs, meter, 80, 2, obs)
    play(other, copy, 80, 2, other.observation)
    assert meter.result() == copy.result()


@pytest.mark.parametrize("task", TASKS)
def test_every_action_that_changes_something_was_listed_as_valid(task: str) -> None:
    """By the outside observer's own measure of change, over 1500 random steps."""
    envs = make_vec(EnvOptions(id=task), "symbolic", 1, 3, split="train", remember=True)
    obs, rng = envs.reset(), np.random.default_rng(0)
    meter = SkillMeter(envs.envs)
    listed = idle = 0
    for _ in range(1500):
        action = int(rng.integers(0, envs.num_actions))
        may = valid_actions(envs.envs[0].state, envs.action_names)
        assert may[envs.action_names.index("left")] and not may[envs.action_names.index("done")]
        acted = not obs["is_last"][0]
        obs = watched(envs, meter, np.array([action]), obs)
        wasted = meter.result().get("minigrid/invalid_action_ratio")
        if acted and wasted == 0.0 and not obs["is_last"][0]:
            assert may[action], envs.action_names[action]
        if acted and may[action]:
            listed += 1
            idle += wasted == 1.0
    assert idle / listed < 0.05  # unseen cells, and boxes that cannot be opened

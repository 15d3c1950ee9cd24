import numpy as np
import pytest
from tests.envs.solver import Solver

import lore.envs
from lore.config.options import EnvOptions
from lore.envs import distances, layout_hash, make_env, make_vec
from lore.envs.privileged.shaping import GAMMA
from lore.envs.privileged.truth import Route

_SHAPED = """
    MiniGrid-Empty-5x5-v0 MiniGrid-DoorKey-5x5-v0 MiniGrid-DoorKey-8x8-v0 MiniGrid-Unlock-v0
    MiniGrid-UnlockPickup-v0 MiniGrid-KeyCorridorS3R3-v0 MiniGrid-MultiRoom-N2-S4-v0
    MiniGrid-MultiRoom-N4-S5-v1 MiniGrid-LavaGapS5-v0 MiniGrid-FourRooms-v0
    MiniGrid-ObstructedMaze-1Dlh-v0 BabyAI-UnlockPickup-v0 BabyAI-BlockedUnlockPickup-v0
"""
SHAPED = tuple(_SHAPED.split())


def test_doorkey5_has_48_layouts():
    env = make_env(EnvOptions(), "raw147")
    assert len({env.reset(seed=seed)[1]["layout"] for seed in range(1500)}) == 48


def test_layout_hash_sees_pose_grid_and_boxes():
    env = make_env(EnvOptions(id="MiniGrid-ObstructedMaze-1Dlh-v0"), "raw147")
    _, info = env.reset(seed=0)
    assert layout_hash(env) == info["layout"] == env.reset(seed=0)[1]["layout"]
    env.step(0)
    assert layout_hash(env) != info["layout"]
    env.step(1)
    assert layout_hash(env) == info["layout"]
    box = next(t for t in env.unwrapped.grid.grid if t is not None and t.type == "box")
    box.contains = None
    assert layout_hash(env) != info["layout"]


def test_distances_on_doorkey():
    env = make_env(EnvOptions(id="MiniGrid-DoorKey-6x6-v0"), "raw147")
    env.reset(seed=2)
    world = env.unwrapped
    solver = Solver(world, lambda name: env.step(env.action_names.index(name))[2])
    key, door = solver.find(lambda t: t.type == "key"), solver.find(lambda t: t.type == "door")
    agent, goal = tuple(int(v) for v in world.agent_pos), (4, 4)

    def manhattan(a, b):  # no inner walls on either side
        return abs(a[0] - b[0]) + abs(a[1] - b[1])

    before = distances(env)
    assert (before.agent_key, before.key_door, before.door_goal) == (
        manhattan(agent, key),
        manhattan(key, door),
        manhattan(door, goal),
    )
    solver.face(key)
    assert distances(env).agent_key == 1
    env.step(3)
    assert distances(env).agent_key == 0
    solver.face(door)
    assert distances(env).key_door == 1
    env.step(5)
    assert distances(env).door_goal == manhattan(door, goal)


def test_missing_landmarks_are_none():
    env = make_env(EnvOptions(id="MiniGrid-Empty-5x5-v0"), "raw147")
    env.reset(seed=0)
    assert distances(env) == lore.envs.Distances(None, None, None)


@pytest.mark.parametrize("env_id", SHAPED)
def test_shaping_telescopes_and_leaves_the_raw_return(env_id):
    """Discounted shaping rewards of an episode sum to gamma^T * phi(end) - phi(start), whatever was done."""
    coefficient = 0.7
    env = make_env(EnvOptions(id=env_id, shaping=coefficient), "symbolic")
    plain = make_env(EnvOptions(id=env_id), "symbolic")
    rng = np.random.default_rng(0)
    for seed in range(4):
        a, b = env.reset(seed=seed)[0], plain.reset(seed=seed)[0]
        total, t, over = 0.0, 0, False
        while not over and t < 150:
            for key in b:
                np.testing.assert_array_equal(a[key], b[key])
            action = int(rng.choice([0, 1, 2, 2, 2, 3, 5]))
            a, reward, terminated, truncated, info = env.step(action)
            b, raw, *_ = plain.step(action)
            assert info["raw_reward"] == raw
            total += GAMMA**t * (reward - raw)
            t, over = t + 1, terminated or truncated
        end = 0.0 if terminated else env.env._potential()
        assert total == pytest.approx(coefficient * (GAMMA**t * end + 1.0), abs=1e-9)


@pytest.mark.parametrize("env_id", [i for i in SHAPED if i.startswith("MiniGrid") and "Lava" not in i])
def test_a_solution_uses_up_the_way(env_id):
    """Along a scripted solution the remaining way never jumps up by more than a detour, and ends near 0."""
    env = make_env(EnvOptions(id=env_id), "raw147")
    env.reset(seed=5)
    route = Route(env)
    ways = [route.remaining()]

    def step(name):
        over = env.step(env.action_names.index(name))[2]
        ways.append(route.remaining())
        return over

    Solver(env.unwrapped, step).solve()
    assert None not in ways and ways[-1] == (1 if "Unlock-" in env_id else 0)
    assert max(np.diff(ways)) <= 1 and ways[0] == max(ways)


def test_shaped_episodes_report_both_returns():
    vec = make_vec(EnvOptions(shaping=0.5, max_steps=30), "symbolic", 2, 0, split="train")
    vec.reset()
    rng = np.random.default_rng(1)
    rewards = np.zeros(2)
    while not any(e.env == 0 for e in vec.finished):
        rewards += vec.step(rng.integers(7, size=2))["reward"]
    episode = next(e for e in vec.finished if e.env == 0)
    assert episode.shaped_return == pytest.approx(rewards[0], abs=1e-5)
    assert episode.shaped_return != episode.return_ and episode.success == (episode.return_ > 0)

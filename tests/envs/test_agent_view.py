"""The adapter shows what plain gymnasium stepping shows: no more, no less, nothing changed."""

import contextlib
import io

import gymnasium as gym
import minigrid  # noqa: F401
import numpy as np
import pytest
from minigrid.core.world_object import Ball, Lava
from minigrid.wrappers import RGBImgPartialObsWrapper

from lore.config.options import EnvOptions
from lore.envs import make_env
from lore.envs.agent_view import agent_view, use_fast_view
from lore.envs.missions import WORDS, MissionCode, code_of

IDS = [i for i in gym.registry if i.startswith(("MiniGrid-", "BabyAI-")) and "WFC" not in i]
_SOME = """
    MiniGrid-DoorKey-5x5-v0 MiniGrid-DoorKey-8x8-v0 MiniGrid-MultiRoom-N4-S5-v1
    MiniGrid-KeyCorridorS3R3-v0 MiniGrid-ObstructedMaze-1Dlh-v0 MiniGrid-LavaGapS5-v0
    MiniGrid-FourRooms-v0 MiniGrid-Dynamic-Obstacles-6x6-v0 BabyAI-UnlockPickup-v0
    BabyAI-BlockedUnlockPickup-v0 BabyAI-PutNextS5N2Carrying-v0
"""
SOME = tuple(_SOME.split())
ACTIONS = [0, 1, 2, 2, 2, 3, 4, 5, 5]  # walking and handling more often than chance


@pytest.mark.parametrize("env_id", SOME)
@pytest.mark.parametrize("mode", ["symbolic", "raw147", "rgb64"])
def test_same_as_plain_gymnasium(env_id, mode):
    plain = gym.make(env_id)
    if mode == "rgb64":
        plain = RGBImgPartialObsWrapper(plain, tile_size=9)
    ours = make_env(EnvOptions(id=env_id), mode)
    rng = np.random.default_rng(0)
    for seed in (0, 1, 123456789, 2**32 - 1):
        want, _ = plain.reset(seed=seed)
        got, info = ours.reset(seed=seed)
        assert len(info["layout"]) == 16
        for _ in range(120):
            compare(want, got, mode)
            action = min(int(rng.choice(ACTIONS)), ours.action_space.n - 1)
            want, reward, terminated, truncated, _ = plain.step(action)
            got, *rest, info = ours.step(action)
            assert rest == [reward, terminated, truncated] and info["raw_reward"] == reward
            if terminated or truncated:
                break
        compare(want, got, mode)


def compare(want, got, mode):
    image = want["image"]
    if mode == "raw147":
        np.testing.assert_array_equal(got["image"], image.flatten().astype(np.float32))
    elif mode == "rgb64":
        np.testing.assert_array_equal(got["image"][:63, :63], image)
        assert not got["image"][63].any() and not got["image"][:, 63].any()
    else:
        for channel, key in enumerate(("object", "color", "state")):
            np.testing.assert_array_equal(got[key], image[..., channel])
        assert got["direction"] == want["direction"]
    if "mission" in got:
        assert words_of(got["mission"]) == want["mission"].replace(",", "")


def words_of(tokens):
    """Token ids (L,) -> the words, joined by spaces."""
    return " ".join(WORDS[token - 1] for token in tokens if token)


@pytest.mark.parametrize("part", range(4))
def test_fast_view_equals_minigrids_on_every_task(part):
    rng = np.random.default_rng(part)
    for env_id in IDS[part::4]:
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints when it rejects a layout
            env = gym.make(env_id, disable_env_checker=True).unwrapped
            env.reset(seed=part)
            for _ in range(40):
                np.testing.assert_array_equal(agent_view(env), env.gen_obs()["image"], env_id)
                action = min(int(rng.choice(ACTIONS)), env.action_space.n - 1)
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset(seed=int(rng.integers(1000)))


def test_a_class_with_its_own_view_keeps_it():
    from minigrid.envs import EmptyEnv

    class Own(EmptyEnv):
        def gen_obs(self):
            return {**super().gen_obs(), "direction": 0}

    env = Own()
    use_fast_view(env)
    assert "gen_obs" not in vars(env)


@pytest.mark.parametrize(
    "env_id", ["MiniGrid-DoorKey-8x8-v0", "MiniGrid-KeyCorridorS3R3-v0", "BabyAI-UnlockPickup-v0"]
)
@pytest.mark.parametrize("mode", ["symbolic", "raw147", "rgb64"])
def test_what_the_agent_cannot_see_does_not_matter(env_id, mode):
    env = make_env(EnvOptions(id=env_id), mode)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=4)
    world, changed = env.unwrapped, 0
    for _ in range(60):
        _, visible = world.gen_obs_grid()
        before = list(world.grid.grid)
        for x in range(world.width):
            for y in range(world.height):
                at = world.relative_coords(x, y)
                if at is None or not visible[int(at[0]), int(at[1])]:
                    world.grid.set(x, y, [None, Ball("red"), Lava()][rng.integers(3)])
                    changed += 1
        for key, value in env._observe(world.gen_obs()).items():
            np.testing.assert_array_equal(value, obs[key])
        world.grid.grid = before
        obs, _, terminated, truncated, _ = env.step(int(rng.choice(ACTIONS)))
        if terminated or truncated:
            obs, _ = env.reset(seed=int(rng.integers(1000)))
    assert changed > 1000


@pytest.mark.slow
def test_every_mission_of_every_task_has_its_tokens():
    for env_id in IDS:
        with contextlib.redirect_stdout(io.StringIO()):
            env = gym.make(env_id, disable_env_checker=True).unwrapped
            code = code_of(env)
            texts = {env.reset(seed=seed)[0]["mission"] for seed in range(100, 150)}
        assert code.words == WORDS, env_id  # one table for all tasks of MiniGrid and BabyAI
        if code.length == 0:
            assert len(texts) == 1, env_id
        else:
            for text in texts:
                assert words_of(code.encode(text)) == text.replace(",", ""), env_id


def test_tokens():
    code = MissionCode(7)
    assert len(set(WORDS)) == len(WORDS) == code.classes - 1
    tokens = code.encode("Pick up the red ball")
    assert tokens.dtype == np.uint8 and tokens.tolist()[5:] == [0, 0] and tokens.max() < code.classes
    assert words_of(tokens) == "pick up the red ball"
    with pytest.raises(ValueError, match="banana"):
        code.encode("pick up the banana")
    with pytest.raises(ValueError, match="5 words"):
        MissionCode(4).encode("pick up the red ball")

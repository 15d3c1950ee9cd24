"""The privileged oracle against brute force: stepping copies of the true environment into every state."""

import contextlib
import copy
import io
from collections import deque
from types import SimpleNamespace

import gymnasium as gym
import minigrid  # noqa: F401
import numpy as np
import pytest
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Box, Door, Key, Wall
from minigrid.envs import UnlockPickupEnv
from tests.envs.test_make import NAMES, load

from lore.config.options import EnvOptions
from lore.envs import make_env
from lore.envs.privileged.oracle import optimal_actions

ACTIONS = ["left", "right", "forward", "pickup", "drop", "toggle"]
MAPS = {
    "blocked": ["######", "#.ol.#", "#ak#t#", "######"],
    "boxed": ["######", "#..l.#", "#ab#t#", "######"],
    "blocked by the target": ["#####", "#tok#", "#a..#", "#####"],
    "behind a heap": ["#####", "#ak##", "#.bt#", "#####"],
}


class Drawn(UnlockPickupEnv):
    """Pick up `t`. a: agent, looking east. k: key, l: its locked door, o: ball, b: box with the key."""

    def __init__(self, rows):
        self.rows = rows
        super().__init__()

    def _gen_grid(self, width, height):
        things = {"#": Wall(), "k": Key("red"), "o": Ball("blue"), "t": Ball("green")}
        things |= {"l": Door("red", is_locked=True), "b": Box("grey", Key("red"))}
        self.width, self.height = len(self.rows[0]), len(self.rows)
        self.grid = Grid(self.width, self.height)
        for y, row in enumerate(self.rows):
            for x, mark in enumerate(row):
                if mark in things:
                    self.put_obj(things[mark], x, y)
                elif mark == "a":
                    self.agent_pos, self.agent_dir = (x, y), 0
        self.obj, self.mission = things["t"], "pick up the green ball"


def duplicate(world):
    shared = [world.observation_space, world.action_space, world.np_random, world.spec]
    return copy.deepcopy(world, {id(thing): thing for thing in shared})


def signature(world):
    def code(thing):
        return None if thing is None else (*thing.encode(), code(thing.contains))

    pose = tuple(int(v) for v in (*world.agent_pos, world.agent_dir))
    return pose, code(world.carrying), tuple(code(thing) for thing in world.grid.grid)


def explore(world, actions):
    """Every state within reach: signature -> (a copy of the world, what each action leads to)."""
    world.max_steps = 10**6
    states, queue = {signature(world): (world, {})}, deque([world])
    while queue:
        here = queue.popleft()
        _, leads = states[signature(here)]
        for name in actions:
            there = duplicate(here)
            _, reward, terminated, _, _ = there.step(there.actions[name])
            leads[name] = "success" if reward > 0 else "failure" if terminated else signature(there)
            if not terminated and leads[name] not in states:
                states[leads[name]] = (there, {})
                queue.append(there)
    return states


def distances(states):
    """Of every state from success, by going back from it."""
    before = {}
    for name, (_, leads) in states.items():
        for there in leads.values():
            before.setdefault(there, []).append(name)
    far, queue = {"success": 0}, deque(["success"])
    while queue:
        there = queue.popleft()
        for name in before.get(there, []):
            if name not in far:
                far[name] = far[there] + 1
                queue.append(name)
    return far


def compare(world, actions, every):
    states = explore(world, actions)
    far, solvable = distances(states), 0
    for i, (name, (there, leads)) in enumerate(states.items()):
        if i % every:
            continue
        best = {
            action for action, to in leads.items() if name in far and far.get(to, 1 << 30) == far[name] - 1
        }
        found = optimal_actions(SimpleNamespace(unwrapped=there, action_names=actions))
        assert (found or set()) == best, (name, found, best)
        solvable += bool(best)
    assert solvable > 4


@pytest.mark.parametrize("rows", MAPS.values(), ids=MAPS)
def test_every_state_of_a_small_world(rows):
    world = Drawn(rows)
    world.reset(seed=0)
    compare(world, ACTIONS, every=3)


_SMALL = """
    MiniGrid-Empty-5x5-v0 MiniGrid-LavaGapS5-v0 MiniGrid-DoorKey-5x5-v0 MiniGrid-MultiRoom-N2-S4-v0
    BabyAI-GoToLocalS5N2-v0
"""


@pytest.mark.parametrize(
    "env_id", [*_SMALL.split(), pytest.param("BabyAI-PutNextS4N1-v0", marks=pytest.mark.slow)]
)
def test_every_state_of_a_small_task(env_id):
    with contextlib.redirect_stdout(io.StringIO()):
        world = gym.make(env_id).unwrapped
        world.reset(seed=1)
    actions = [name for name in ACTIONS if "DoorKey" not in env_id or name != "drop"]
    compare(world, actions, every=5)


def follow(env, layout, chance=0):
    """Take optimal actions, ties by chance -> (last reward, number of steps)."""
    with contextlib.redirect_stdout(io.StringIO()):
        env.reset(seed=layout)
    rng = np.random.default_rng(chance)
    for step in range(1, 400):
        best = sorted(optimal_actions(env))
        _, reward, terminated, truncated, _ = env.step(env.action_names.index(best[rng.integers(len(best))]))
        if terminated or truncated:
            return reward, step
    raise AssertionError("no end")


@pytest.mark.parametrize("name", NAMES)
def test_following_it_solves_every_documented_task_whichever_way(name):
    """Ties are broken at random: all the ways that it allows are of one length."""
    env = make_env(load(name), "symbolic")
    for layout in range(2):
        ways = {follow(env, layout, chance) for chance in range(3)}
        assert len(ways) == 1 and ways.pop()[0] > 0


_PARTS = """
    BabyAI-GoToSeqS5R2-v0 BabyAI-OpenTwoDoors-v0 BabyAI-MoveTwoAcrossS5N2-v0 BabyAI-SynthS5R2-v0
    BabyAI-KeyInBox-v0 BabyAI-PickupLoc-v0 BabyAI-ActionObjDoor-v0 BabyAI-UnblockPickup-v0
"""


@pytest.mark.parametrize("env_id", _PARTS.split())
def test_following_it_solves_babyai_part_by_part(env_id):
    with contextlib.redirect_stdout(io.StringIO()):
        env = make_env(EnvOptions(id=env_id), "raw147")
    for seed in range(3):
        assert follow(env, seed)[0] > 0


def test_it_only_looks():
    env = make_env(load("obstructed"), "raw147")
    env.reset(seed=0)
    before = signature(env.unwrapped)
    first = optimal_actions(env)
    assert first and signature(env.unwrapped) == before and optimal_actions(env) == first
    assert env.unwrapped.step_count == 0


def test_it_gives_up_at_its_bound_and_where_the_aim_is_unknown():
    env = make_env(load("keycorridor"), "raw147")
    env.reset(seed=0)
    assert optimal_actions(env, limit=20) is None and optimal_actions(env)
    unknown = make_env(EnvOptions(id="MiniGrid-RedBlueDoors-6x6-v0"), "raw147")
    unknown.reset(seed=0)
    assert optimal_actions(unknown) is None


def test_it_keeps_to_the_actions_there_are():
    env = make_env(EnvOptions(id="MiniGrid-DoorKey-6x6-v0", actions="useful"), "raw147")
    env.reset(seed=1)
    env.step(env.action_names.index("right"))
    assert optimal_actions(env) <= set(env.action_names)
    env.action_names = ["left", "forward"]
    assert optimal_actions(env) is None

"""What the agent remembers is true, whole, and no more than it saw. Only the tests look at env.unwrapped."""

import contextlib
import io
from dataclasses import asdict

import gymnasium as gym
import minigrid  # noqa: F401
import numpy as np
import pytest
from minigrid.core.world_object import Ball
from minigrid.utils.baby_ai_bot import BabyAIBot
from tests.envs.solver import Solver
from tests.envs.test_make import NAMES, load

from lore.base.types import Thing
from lore.config.options import EnvOptions
from lore.envs import MODES, MiniGridAdapter, make_env, make_vec
from lore.envs.missions import MissionCode
from lore.envs.remembered_map import MapMemory

IDS = [i for i in gym.registry if i.startswith(("MiniGrid-", "BabyAI-")) and "WFC" not in i]
MOVING = [i for i in IDS if "Dynamic" in i]
ACTIONS = ["left", "right", "forward", "forward", "forward", "pickup", "drop", "toggle", "toggle"]


def test_every_task_with_moving_things_is_known():
    assert len(MOVING) == 6 and len(IDS) > 160


class Witness:
    """Compares an adapter's state with the true grid, from the episode's start on."""

    def __init__(self, env):
        self.env, self.world, self.checks, self.step = env, env.unwrapped, 0, 0
        self.x0, self.y0 = (int(v) for v in self.world.agent_pos)

    def check(self):
        state, world = self.env.state, self.world
        assert state.position == (int(world.agent_pos[0]) - self.x0, int(world.agent_pos[1]) - self.y0)
        assert state.direction == int(world.agent_dir)
        assert (state.step, state.max_steps) == (self.step, world.max_steps)
        assert state.mission == world.mission
        assert state.carrying == (None if world.carrying is None else thing_of(world.carrying))
        assert state.visible == self.visible()
        assert state.visible <= state.cells.keys()
        for cell, thing in state.cells.items():
            assert thing == self.truth(cell), (cell, thing, self.truth(cell))
        self.step += 1
        self.checks += len(state.cells)

    def truth(self, cell):
        x, y = cell[0] + self.x0, cell[1] + self.y0
        if not (0 <= x < self.world.grid.width and 0 <= y < self.world.grid.height):
            return Thing("wall", "grey")  # what MiniGrid shows beyond the edge
        thing = self.world.grid.get(x, y)
        return Thing("empty") if thing is None else thing_of(thing)

    def visible(self):
        world = self.world
        _, mask = world.gen_obs_grid()
        left, top, right, bottom = (int(v) for v in world.get_view_exts())
        cells = set()
        for x in range(left, right):
            for y in range(top, bottom):
                if mask[tuple(int(v) for v in world.relative_coords(x, y))]:
                    cells.add((x - self.x0, y - self.y0))
        return cells


def thing_of(thing):
    state = ""
    if thing.type == "door":
        state = "open" if thing.is_open else "locked" if thing.is_locked else "closed"
    return Thing(thing.type, thing.color, state)


def quiet_reset(env, seed):
    with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints when it rejects a layout
        return env.reset(seed=seed)


def wander(env, seed, steps, look):
    """Random actions, handling more often than chance, for one episode at most."""
    rng = np.random.default_rng(seed)
    names = [name for name in ACTIONS if name in env.action_names]
    quiet_reset(env, seed)
    look()
    for _ in range(steps):
        name = names[rng.integers(len(names))]
        _, _, terminated, truncated, _ = env.step(env.action_names.index(name))
        look()
        if terminated or truncated:
            break


@pytest.mark.parametrize("part", range(4))
def test_random_play_in_every_task_is_remembered_as_it_was(part):
    checks = 0
    for env_id in IDS[part::4]:
        if env_id in MOVING:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            env = make_env(EnvOptions(id=env_id), "symbolic", remember=True)
        for seed in (0, 1):
            witness = None

            def look(env=env):
                nonlocal witness
                witness = witness or Witness(env)
                witness.check()

            wander(env, seed, 40, look)
            checks += witness.checks
    assert checks > 50_000


@pytest.mark.parametrize("name", NAMES)
def test_solved_episodes_are_remembered_as_they_were(name):
    options = load(name)
    env = make_env(options, "raw147", remember=True)
    for seed in range(4):
        quiet_reset(env, seed)
        witness = Witness(env)
        witness.check()

        def step(action, witness=witness):
            _, reward, terminated, _, _ = env.step(env.action_names.index(action))
            witness.check()
            assert not terminated or reward > 0
            return terminated

        if options.id.startswith("BabyAI"):
            bot = BabyAIBot(env)
            while not step(bot.replan().name):
                pass
        else:
            Solver(env.unwrapped, step).solve()
        assert witness.step > 3


@pytest.mark.parametrize("size", [3, 5, 9, 11])
@pytest.mark.parametrize("env_id", ["MiniGrid-KeyCorridorS3R3-v0", "MiniGrid-Empty-8x8-v0", "BabyAI-GoTo-v0"])
def test_views_of_other_sizes(env_id, size):
    env = gym.make(env_id, agent_view_size=size)
    ours = MiniGridAdapter(env, "symbolic", range(7), MissionCode(0), remember=True)
    quiet_reset(ours, 3)
    witness = Witness(ours)
    witness.check()
    rng = np.random.default_rng(size)
    for _ in range(80):
        over = ours.step(ours.action_names.index(ACTIONS[rng.integers(len(ACTIONS))]))[2]
        witness.check()
        if over:
            break


def obstacles(env_id, episodes):
    """(position is right, forward was blocked by what stepped in) at each step among moving balls."""
    env = make_env(EnvOptions(id=env_id), "symbolic", remember=True)
    world, rng = env.unwrapped, np.random.default_rng(0)
    for seed in range(episodes):
        env.reset(seed=seed)
        x0, y0 = (int(v) for v in world.agent_pos)
        over = False
        while not over:
            before = tuple(world.agent_pos)
            free = not isinstance(world.grid.get(*world.front_pos), Ball)
            name = "forward" if free and rng.random() < 0.6 else ("left", "right")[rng.integers(2)]
            wall = world.grid.get(*world.front_pos)
            _, _, terminated, truncated, _ = env.step(env.action_names.index(name))
            over = terminated or truncated
            blocked = name == "forward" and wall is None and tuple(world.agent_pos) == before
            x, y = env.state.position
            right = (x + x0, y + y0) == tuple(int(v) for v in world.agent_pos)
            if right:
                for cx, cy in env.state.visible:
                    inside = 0 <= cx + x0 < world.width and 0 <= cy + y0 < world.height
                    thing = world.grid.get(cx + x0, cy + y0) if inside else None
                    assert env.state.cells[cx, cy].kind == (
                        thing.type if thing else "empty" if inside else "wall"
                    )
            yield right, blocked


@pytest.mark.parametrize("env_id", MOVING)
def test_balls_that_step_into_the_way(env_id):
    """In 16x16 a view may hold nothing by which to tell a step from none; it is put right when one does."""
    right, blocked = np.array(list(obstacles(env_id, 40))).T
    assert blocked.sum() >= 3
    if "16x16" in env_id:
        assert right.mean() > 0.95
    else:
        assert right.all()


@pytest.mark.parametrize(
    "env_id",
    ["MiniGrid-DoorKey-5x5-v0", "MiniGrid-Dynamic-Obstacles-6x6-v0", "BabyAI-PutNextS5N2Carrying-v0"],
)
def test_every_mode_and_table_of_actions_gives_the_same_states(env_id):
    def states(options, mode):
        env, seen = make_env(options, mode, remember=True), []
        rng = np.random.default_rng(0)
        for seed in range(3):
            quiet_reset(env, seed)
            seen.append(env.state)
            for name in rng.choice(["left", "right", "forward"], 30):
                over = env.step(env.action_names.index(name))[2]
                seen.append(env.state)
                if over:
                    break
        return seen

    first, *others = [states(EnvOptions(id=env_id), mode) for mode in MODES]
    assert len(first) > 10 and all(other == first for other in others)
    if "DoorKey" in env_id:
        assert states(EnvOptions(id=env_id, actions="useful", shaping=0.5), "symbolic") == first


def test_what_a_task_begins_with_in_hand_is_known_at_once():
    env = make_env(EnvOptions(id="BabyAI-PutNextS5N2Carrying-v0"), "symbolic", remember=True)
    quiet_reset(env, 0)
    Witness(env).check()
    assert env.state.carrying is not None and env.state.step == 0


def test_states_are_snapshots():
    env, kept = make_env(EnvOptions(id="MiniGrid-KeyCorridorS3R3-v0"), "symbolic", remember=True), []
    wander(env, 5, 120, lambda: kept.append((env.state, asdict(env.state))))
    assert all(asdict(state) == copy for state, copy in kept)
    assert len({frozenset(state.cells.items()) for state, _ in kept}) > 5


def test_states_side_by_side_and_a_new_episode():
    vec = make_vec(EnvOptions(max_steps=5), "raw147", 2, 0, split="train", remember=True)
    vec.reset()
    for t in range(6):
        states = vec.states()
        assert [s.step for s in states] == [t, t] and states[0].max_steps == 5
        vec.step(np.zeros(2, np.int64))
    fresh = vec.states()[0]
    assert (fresh.step, fresh.position) == (0, (0, 0)) and set(fresh.cells) == fresh.visible


OPTIONS = [
    EnvOptions(id="MiniGrid-KeyCorridorS3R3-v0"),
    EnvOptions(id="MiniGrid-Dynamic-Obstacles-16x16-v0"),
    EnvOptions(id="BabyAI-UnlockPickup-v0", max_steps=30, shaping=0.3, actions="useful"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: o.id)
def test_resumed_states_are_those_of_the_stored_moment(options):
    def make():
        return make_vec(options, "rgb64", 3, 7, split="train", remember=True)

    def roll(vec, seed):
        rng, states = np.random.default_rng(seed), [vec.states()]
        for _ in range(25):
            vec.step(rng.integers(vec.num_actions, size=3))
            states.append(vec.states())
        return states

    first = make()
    first.reset()
    roll(first, 0)
    stored = first.state_dict()
    ahead = roll(first, 1)
    second = make()
    second.load_state_dict(stored)
    assert roll(second, 1) == ahead
    first.load_state_dict(stored)
    assert roll(first, 1) == ahead


def test_no_state_without_memory_or_before_the_first_reset():
    vec = make_vec(EnvOptions(), "symbolic", 1, 0, split="train")
    vec.reset()
    with pytest.raises(RuntimeError, match="remember"):
        vec.states()
    with pytest.raises(RuntimeError, match="remember"):
        _ = make_env(EnvOptions(), "symbolic", remember=True).state
    with pytest.raises(RuntimeError, match="reset"):
        MapMemory(9).step("left", np.zeros((7, 7, 3), np.uint8), 0)

"""A world of the user's own package: found by its id or its entry point, or refused by the key."""

from __future__ import annotations

import sys
import textwrap
import tomllib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from lore.base.errors import BadInput
from lore.base.files import as_file_name
from lore.config.compose import compose
from lore.config.options import EnvOptions
from lore.envs import make_env, make_vec
from lore.envs.missions import WORDS

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_environment"
WORLD = """
import gymnasium
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Goal
from minigrid.minigrid_env import MiniGridEnv

class World(MiniGridEnv):
    TEXTS = ["go on"]

    def __init__(self, **kwargs):
        limit = kwargs.pop("max_steps", 20)
        super().__init__(MissionSpace(lambda: "go on"), grid_size=5, max_steps=limit, **kwargs)

    def _gen_grid(self, width, height):
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.put_obj(Goal(), 3, 3)
        self.place_agent()
        self.mission = self.TEXTS[self._rand_int(0, len(self.TEXTS))]
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules that can be imported in this test only."""
    before = set(gym.registry), set(sys.modules)

    def write(name: str, text: str) -> None:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in set(gym.registry) - before[0]:
        del gym.registry[name]
    for name in set(sys.modules) - before[1]:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    yield
    gym.registry.pop("MyLab-v0", None)
    sys.modules.pop("my_lab", None)


def refused(**options):
    with pytest.raises(BadInput) as caught:
        make_env(EnvOptions(**options), "symbolic")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_example_is_a_task_like_any_other(example):
    vec = make_vec(EnvOptions(id="my_lab:MyLab-v0"), "symbolic", 2, 0, split="train", remember=True)
    spec, rng = vec.obs_spec["mission"], np.random.default_rng(0)
    assert spec.shape == (7,) and spec.classes == len(WORDS) + 2  # "lab" is a word of this task alone
    obs, missions = vec.reset(), set()
    for _ in range(400):
        assert obs["mission"].max() < spec.classes
        missions |= {state.mission for state in vec.states()}
        obs = vec.step(rng.integers(7, size=2))
    assert (
        len(missions) == 6
        and any(e.success for e in vec.finished)
        and not all(e.success for e in vec.finished)
    )
    assert vec.envs[0].action_names == ["left", "right", "forward", "pickup", "drop", "toggle", "done"]
    assert make_env(EnvOptions(id="my_lab:MyLab-v0", max_steps=5), "rgb64").unwrapped.max_steps == 5


def test_a_world_is_told_by_its_type_and_not_by_where_it_lives(package):
    package("plain", f"{WORLD}\ngymnasium.register('Plain-v0', entry_point=World)\n")
    package("by_name", f"{WORLD}\ngymnasium.register('ns/ByName-v0', entry_point='by_name:World')\n")
    package("made", f"{WORLD}\ngymnasium.register('Made-v0', entry_point=lambda **k: World(**k))\n")
    package("limited", f"{WORLD}\ngymnasium.register('Lim-v0', entry_point=World, max_episode_steps=3)\n")
    for env_id in ("plain:Plain-v0", "Plain-v0", "by_name:ns/ByName-v0", "made:Made-v0", "limited:Lim-v0"):
        env = make_env(EnvOptions(id=env_id, max_steps=7), "symbolic")
        env.reset(seed=0)
        assert [env.step(0)[3] for _ in range(3)][-1] == (env_id == "limited:Lim-v0")


def test_an_entry_point_names_a_world(package, tmp_path):
    package("elsewhere", WORLD)
    info = tmp_path / "worlds-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: worlds\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[lore.envs]\nquiet_room = elsewhere:World\nlost = nowhere:World\n"
    )
    assert make_env(EnvOptions(id="quiet_room", max_steps=9), "symbolic").unwrapped.max_steps == 9
    assert refused(id="lost").startswith("env.id: 'lost' cannot be loaded")
    assert "quiet_room" in refused(id="quiet_rom")


def test_the_example_package_offers_its_entry_point(example):
    import importlib

    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lore.envs"]["my_lab"].partition(":")
    assert issubclass(getattr(importlib.import_module(module), name), gym.Env)


@pytest.mark.parametrize(
    ("options", "key", "hint"),
    [
        ({"id": "no_such_package:MyLab-v0"}, "env.id", "install it, or put its folder on PYTHONPATH"),
        ({"id": "minigrid.no_such_part:MyLab-v0"}, "env.id", "no package 'minigrid.no_such_part'"),
        ({"id": ":MyLab-v0"}, "env.id", "PACKAGE:ID"),
        ({"id": "../up:MyLab-v0"}, "env.id", "PACKAGE:ID"),
        ({"id": "a:b:MyLab-v0"}, "env.id", "PACKAGE:ID"),
        ({"id": "needs:MyLab-v0"}, "env.id", "needs needs no_such_thing, which is not installed"),
        ({"id": "broken:MyLab-v0"}, "env.id", "broken cannot be imported"),
        ({"id": "silent:MyLab-v0"}, "env.id", "call gymnasium.register"),
        ({"id": "one:MyLab-v0"}, "env.id", "it registers One-v0"),
        ({"id": "other:Other-v0"}, "env.id", "Other is not a MiniGrid environment"),
        ({"id": "gymnasium:CartPole-v1"}, "env.id", "CartPoleEnv is not a MiniGrid environment"),
        ({"id": "CartPole-v1"}, "env.id", "derive yours from MiniGridEnv"),
        ({"id": "fixed:Fixed-v0", "max_steps": 9}, "env.max_steps", "null"),
        ({"id": "wide:Wide-v0"}, "env.id", "Discrete(7)"),
        ({"id": "talks:Talks-v0"}, "env.id", "ordered_placeholders"),
        ({"id": "one:One-v0", "actions": "useful"}, "env.actions", "use env.actions=all"),
        ({"id": ""}, "env.id", "MiniGrid-DoorKey-5x5-v0"),
        ({"id": "MyLab-v0"}, "env.id", "PACKAGE:ID"),
        ({"id": "MiniGrid-DoorKey-5x5"}, "env.id", "MiniGrid-DoorKey-5x5-v0"),
    ],
)
def test_what_cannot_be_made_is_refused_by_its_key(package, options, key, hint):
    package("needs", "import no_such_thing")
    package("broken", "class World(:")
    package("silent", "")
    package("one", f"{WORLD}\ngymnasium.register('One-v0', entry_point='one:World')\n")
    other = "import gymnasium\nclass Other(gymnasium.Env): pass\n"
    package("other", f"{other}gymnasium.register('Other-v0', entry_point=Other)\n")
    fixed = "class Fixed(World):\n    def __init__(self, render_mode=None): super().__init__()\n"
    package("fixed", f"{WORLD}\n{fixed}gymnasium.register('Fixed-v0', entry_point=Fixed)\n")
    wide = "def make():\n    env = World()\n    env.action_space = gymnasium.spaces.Discrete(9)\n"
    wide += "    return env\n"
    package("wide", f"{WORLD}\n{wide}gymnasium.register('Wide-v0', entry_point=make)\n")
    talks = "World.TEXTS = ['go north', 'go south']\ngymnasium.register('Talks-v0', entry_point=World)\n"
    package("talks", f"{WORLD}\n{talks}")
    line = refused(**options)
    assert line.startswith(f"{key}: ") and hint in line


def test_useful_actions_are_known_under_both_spellings_of_an_id():
    options = EnvOptions(id="minigrid:MiniGrid-DoorKey-5x5-v0", actions="useful")
    assert len(make_env(options, "symbolic").action_names) == 5


@pytest.mark.parametrize(
    "env_id", ["my_lab:MyLab-v0", "ns/MyLab-v0", "my_lab:ns/My.Lab-v0", "MiniGrid-DoorKey-5x5-v0"]
)
def test_a_run_folder_is_one_folder_whatever_the_id(env_id):
    folder = Path(compose([f"env.id={env_id}"]).run.dir)
    assert len(folder.parts) == 3 and folder.parts[0] == "outputs"
    assert f"_{as_file_name(env_id)}_E_seed0" in folder.name
    assert set(folder.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_the_guide_shows_the_example_as_it_is():
    page = (EXAMPLE.parents[1] / "docs" / "environments.md").read_text(encoding="utf-8")
    for name in ("my_lab.py", "pyproject.toml"):
        assert (EXAMPLE / name).read_text(encoding="utf-8").strip() in page, name

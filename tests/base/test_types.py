"""What a thing and a map say of themselves, held against MiniGrid itself."""

from __future__ import annotations

from itertools import product

import pytest
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall
from minigrid.envs import EmptyEnv

from lore.base.types import EMPTY, STEPS, UNSEEN, GridState, Thing, next_cell

STATES = {"open": {"is_open": True}, "closed": {}, "locked": {"is_locked": True}}
DOORS = [("door", color, state) for color in COLOR_NAMES for state in STATES]
OTHERS = [(kind, color, "") for kind in ("key", "ball", "box", "floor") for color in COLOR_NAMES]
PLAIN = [("wall", "grey", ""), ("goal", "green", ""), ("lava", "red", ""), ("empty", "", "")]
THINGS = [*DOORS, *OTHERS, *PLAIN]
MAKE = {"key": Key, "ball": Ball, "box": Box, "floor": Floor}


def make(kind, color, state):
    """MiniGrid's own object; None for an empty cell."""
    if kind == "door":
        return Door(color, **STATES[state])
    if kind in MAKE:
        return MAKE[kind](color)
    return {"wall": Wall, "goal": Goal, "lava": Lava, "empty": lambda: None}[kind]()


def ahead_of(thing, hand=None):
    """A MiniGrid world whose agent faces the thing."""
    env = EmptyEnv(size=5)
    env.reset(seed=0)
    env.agent_pos, env.agent_dir, env.carrying = (1, 1), 0, hand
    env.grid.set(2, 1, thing)
    return env


@pytest.mark.parametrize("words", THINGS)
def test_where_one_can_step_is_what_minigrid_says(words):
    env, thing = ahead_of(make(*words)), Thing(*words)
    env.step(env.actions.forward)
    assert thing.enterable == (tuple(env.agent_pos) == (2, 1))
    assert thing.walkable == (thing.enterable and thing.kind != "lava")


@pytest.mark.parametrize(("words", "key"), list(product(DOORS, [None, *COLOR_NAMES])))
def test_what_a_hand_opens_is_what_minigrid_says(words, key):
    env, thing = ahead_of(make(*words), key and Key(key)), Thing(*words)
    was_open = env.grid.get(2, 1).is_open
    env.step(env.actions.toggle)
    opened = not was_open and env.grid.get(2, 1).is_open
    assert thing.opens_with(key and Thing("key", key)) == opened
    assert thing.shut == (not was_open)
    assert not thing.opens_with(Thing("ball", words[1])) or thing.state == "closed"


def test_only_doors_have_a_state_that_counts():
    for kind, state in product(("key", "wall", "ball", "unseen", "lava"), STATES):
        odd, plain = Thing(kind, "red", state), Thing(kind, "red")
        assert (odd.walkable, odd.enterable, odd.shut, odd.opens_with(None)) == (
            plain.walkable,
            plain.enterable,
            False,
            False,
        )


def test_the_cell_ahead():
    for direction, (dx, dy) in enumerate(STEPS):
        state = GridState("", None, (3, 4), direction, {(3 + dx, 4 + dy): EMPTY}, frozenset(), 0, 1)
        assert state.ahead == (3 + dx, 4 + dy) == next_cell((3, 4), direction - 4)
        assert state.thing_at(state.ahead) == EMPTY and state.thing_at((9, 9)) == UNSEEN
    assert not UNSEEN.walkable and not UNSEEN.enterable

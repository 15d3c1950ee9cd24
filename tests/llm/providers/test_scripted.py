import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.llm.follow import follow

from lore.base.errors import BadInput
from lore.base.types import GridState, Thing
from lore.config.options import LLMOptions
from lore.llm.answer import parse_answer
from lore.llm.plans.language import COLORS, parse
from lore.llm.prompt import plan_key, policy_key
from lore.llm.providers import build_provider
from lore.llm.providers.scripted import FAILURES, ScriptedProvider, right_plan
from lore.llm.request import Request

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
DOORKEY = "use the key to open the door and then get to the goal"
KEY, LOCKED, OPEN = Thing("key", "yellow"), Thing("door", "yellow", "locked"), Thing("door", "yellow", "open")
TARGETS = {
    "MiniGrid-DoorKey-5x5-v0": (0.99, 12),
    "MiniGrid-DoorKey-8x8-v0": (0.99, 60),
    "MiniGrid-DoorKey-16x16-v0": (0.95, 60),
    "BabyAI-UnlockPickup-v0": (0.95, 60),
    "MiniGrid-MultiRoom-N4-S5-v1": (0.95, 60),
    "MiniGrid-KeyCorridorS3R3-v0": (0.95, 60),
    "MiniGrid-UnlockPickup-v0": (0.95, 60),
    "MiniGrid-ObstructedMaze-1Dlh-v0": (0.8, 60),
    "BabyAI-BlockedUnlockPickup-v0": (0.8, 60),
    "MiniGrid-Empty-5x5-v0": (0.95, 60),
    "MiniGrid-DoorKey-6x6-v0": (0.95, 60),
    "MiniGrid-Unlock-v0": (0.95, 60),
    "MiniGrid-MultiRoom-N2-S4-v0": (0.95, 60),
    "MiniGrid-LavaGapS5-v0": (0.95, 60),
    "MiniGrid-FourRooms-v0": (0.95, 60),
}
"""Task -> the success that is asked for, and the most asks in all."""
SEQUENCE = (
    "put the yellow ball next to the yellow key and put a purple ball next to the yellow box, "
    "then put the yellow ball next to the yellow key and open the purple door"
)
MISSIONS = (DOORKEY, "open the door", "pick up the blue ball", "go to the red object on your left", SEQUENCE)


def state_of(mission, *things, carrying=None):
    """The agent at (0, 0) on an open floor of 9 x 9, with the things in a row north of it."""
    floor = {(x, y): Thing("empty") for x in range(-4, 5) for y in range(-4, 5)}
    cells = floor | {(x - 2, -2): thing for x, thing in enumerate(things)}
    return GridState(mission, carrying, (0, 0), 0, cells, frozenset(cells), 0, 100)


def ask(state, key=None, **options):
    request = Request("", "", state, policy_key(state), key or plan_key(state), ACTIONS, 100)
    return parse_answer(ScriptedProvider(LLMOptions("scripted", **options)).ask(request).text, ACTIONS)


# ---------------------------------------------------------------------------------------------- played


@pytest.mark.parametrize("env_id", TARGETS)
def test_its_word_alone_solves_some_held_out_episodes(env_id):
    played = follow(env_id, ScriptedProvider(LLMOptions("scripted")), episodes=8)
    assert sum(played.success) >= 7, played.ended
    assert played.asks <= 8


@pytest.mark.slow
@pytest.mark.parametrize("env_id", TARGETS)
def test_its_word_alone_solves_200_held_out_episodes(env_id):
    success, asks = TARGETS[env_id]
    played = follow(env_id, ScriptedProvider(LLMOptions("scripted")), episodes=200)
    assert played.rate >= success, played.ended
    assert played.asks <= asks


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-5x5-v0", "MiniGrid-MultiRoom-N2-S4-v0"])
def test_without_competence_it_is_no_better_than_chance(env_id):
    wrong = follow(env_id, ScriptedProvider(LLMOptions("scripted", competence=0.0)), episodes=25)
    even = follow(env_id, build_provider(LLMOptions("uniform")), episodes=25)
    assert wrong.rate <= even.rate
    assert wrong.uniform == 0  # it is followed all the time: it never runs out of wrong advice


# --------------------------------------------------------------------------------------------- right


@pytest.mark.parametrize(
    ("state", "plan"),
    [
        (state_of(DOORKEY, KEY, carrying=None), "pickup(key); toggle(locked door); goto(goal)"),
        (state_of(DOORKEY, LOCKED, carrying=KEY), "pickup(key); toggle(locked door); goto(goal)"),
        (state_of(DOORKEY, OPEN, carrying=KEY), "goto(goal)"),
        (state_of("traverse the rooms to get to the goal"), "goto(goal)"),
        (state_of("open the door", KEY, LOCKED), "pickup(key); toggle(locked door)"),
        (
            state_of("open the red door after you go to a ball", Thing("ball", "red")),
            "goto(ball); explore until visible(red door); toggle(red door)",
        ),
        (
            state_of("put a key near the box and go to the ball", Thing("key"), Thing("box"), Thing("ball")),
            "pickup(key); drop(box); goto(ball)",
        ),
        (state_of("find the matching thing"), "explore"),
    ],
)
def test_the_plan_says_all_that_is_left_in_order(state, plan):
    said = [str(step) for step in parse(right_plan(state)).body]
    wanted = [str(step) for step in parse(plan).body]
    assert [step for step in said if step in wanted] == wanted
    extra = [step for step in said if step not in wanted]
    assert all(step.startswith(("if", "until", "explore until")) for step in extra)


def test_the_answer_follows_from_the_plan_key_alone():
    things = [Thing("key", "green"), Thing("door", "green", "locked"), Thing("box", "red")]
    one = state_of("pick up the red box", *things)
    other = state_of(
        "pick up the red box", *(t._replace(color=t.color.replace("green", "blue")) for t in things)
    )
    other = replace(other, position=(1, 1), direction=2, cells=dict(reversed(other.cells.items())), step=7)
    assert plan_key(one) == plan_key(other) and policy_key(one) != policy_key(other)
    for failure in ("independent", "colors", "explore"):
        for competence in (0.0, 1.0):
            assert ask(one, competence=competence, failure=failure) == ask(
                other, competence=competence, failure=failure
            )


# --------------------------------------------------------------------------------------------- wrong


@pytest.mark.parametrize("competence", [0.0, 0.3, 0.8, 1.0])
def test_competence_is_the_share_of_right_situations(competence):
    def texts(**options):
        adviser = ScriptedProvider(LLMOptions("scripted", **options))
        requests = [Request("", "", state, "", f"situation {i}", ACTIONS, 100) for i in range(1000)]
        return [adviser.ask(request).text for request in requests]

    state = state_of(DOORKEY, KEY, LOCKED)
    right, said = texts()[0], texts(competence=competence)
    assert said.count(right) / len(said) == pytest.approx(competence, abs=0.05)
    assert said == texts(competence=competence)
    assert len(set(said) - {right}) == (2 if competence < 1 else 0)  # towards the key, towards the door
    if 0 < competence < 1:
        assert said != texts(competence=competence, seed=1)


def test_it_confuses_colors():
    red = ask(state_of("pick up the red ball", Thing("ball", "red")), competence=0.0, failure="colors")
    assert "red" not in str(red.plan) and "green ball" in str(red.plan)
    bare = ask(state_of(DOORKEY, KEY, LOCKED), competence=0.0, failure="colors")
    assert any(f"pickup({color} key)" in str(bare.plan) for color in COLORS)
    goal = state_of("get to the green goal square")
    assert str(ask(goal, competence=0.0, failure="colors").plan) == "goto(goal)"  # no color to confuse


def test_it_confuses_left_and_right():
    """The ball is north, the agent faces east: the right way begins with a turn left, or with a step."""
    state = state_of("go to the ball", Thing("wall"), Thing("wall"), Thing("ball"))
    answer = ask(state, competence=0.0, failure="sides")
    assert answer.plan is None and answer.weights is not None
    assert dict(zip(ACTIONS, answer.weights, strict=True)) == dict.fromkeys(ACTIONS, 0.0) | {"right": 1.0}


def test_it_always_explores():
    assert str(ask(state_of(DOORKEY), competence=0.0, failure="explore").plan) == "explore"


WORDS = st.lists(
    st.sampled_from(sorted({word for m in MISSIONS for word in m.split()} | {"x;"})), max_size=30
)


@given(
    st.one_of(st.sampled_from(MISSIONS), WORDS.map(" ".join), st.text(max_size=40)),
    st.lists(st.sampled_from([KEY, LOCKED, OPEN, Thing("ball", "red"), Thing("goal", "green")]), max_size=4),
    st.sampled_from([None, KEY, Thing("ball", "purple")]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(FAILURES),
)
def test_every_answer_is_legal(mission, things, hand, competence, failure):
    answer = ask(state_of(mission, *things, carrying=hand), competence=competence, failure=failure)
    assert (answer.plan is None) == (competence == 0.0 and failure == "sides")


# ------------------------------------------------------------------------------------------- provider


def test_it_is_free_and_always_named_scripted():
    adviser = build_provider(LLMOptions("scripted", competence=0.5, failure="colors", seed=3))
    assert isinstance(adviser, ScriptedProvider)
    assert (adviser.name, adviser.model, adviser.paid, adviser.privileged) == (
        "scripted",
        "scripted",
        False,
        False,
    )
    assert adviser.identity() == "scripted competence=0.5 failure=colors seed=3"
    state = state_of(DOORKEY)
    request = Request("", "", state, "", "", ACTIONS, 100)
    reply = adviser.ask(request)
    assert reply.cost_usd == adviser.max_cost_usd(request) == 0
    assert reply.input_tokens == reply.output_tokens == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("competence", 1.5), ("competence", -0.1), ("competence", math.nan), ("failure", "lazy")],
)
def test_options_that_cannot_be_are_refused(key, value):
    with pytest.raises(BadInput) as caught:
        ScriptedProvider(LLMOptions("scripted", **{key: value}))
    assert caught.value.key == f"llm.{key}"

from dataclasses import replace

import pytest
from tests.llm.follow import follow

from lore.base.types import GridState, Thing
from lore.config.options import LLMOptions
from lore.llm.answer import BadAnswer, parse_answer
from lore.llm.prompt import plan_key, policy_key
from lore.llm.providers import build_provider
from lore.llm.providers.controls import move_elsewhere
from lore.llm.request import Request

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
CONTROLS = ("none", "uniform", "shuffled", "adversarial", "oracle")
DOORKEY = "MiniGrid-DoorKey-5x5-v0"
CELLS = {(x, y): Thing("empty") for x in range(5) for y in range(-4, 1)} | {(2, 0): Thing("goal", "green")}
STATE = GridState("get to the green goal square", None, (0, 0), 0, CELLS, frozenset(CELLS), 0, 100)


def control(name):
    return build_provider(LLMOptions(name))


def request_of(state=STATE, privileged=None):
    return Request("", "", state, policy_key(state), plan_key(state), ACTIONS, 100, privileged)


def weights(reply):
    answer = parse_answer(reply.text, ACTIONS)
    assert answer.plan is None and answer.weights is not None
    return dict(zip(ACTIONS, answer.weights, strict=True))


@pytest.mark.parametrize("name", CONTROLS)
def test_they_are_free_and_only_the_oracle_is_privileged(name):
    adviser = control(name)
    assert adviser.name == adviser.identity() == name
    assert not adviser.paid and adviser.max_cost_usd(request_of()) == 0
    assert adviser.privileged == (name == "oracle")


def test_none_says_nothing():
    with pytest.raises(BadAnswer) as caught:
        parse_answer(control("none").ask(request_of()).text, ACTIONS)
    assert caught.value.kind == "no_advice"


def test_uniform_says_all_alike():
    assert weights(control("uniform").ask(request_of())) == pytest.approx(dict.fromkeys(ACTIONS, 1 / 7))


def test_adversarial_advice_keeps_from_success():
    played = follow(DOORKEY, control("adversarial"), episodes=10)
    assert not any(played.success) and played.uniform == 0


def test_adversarial_advice_undoes_what_was_done():
    def first(state):
        adviser = parse_answer(control("adversarial").ask(request_of(state)).text, ACTIONS)
        assert adviser.plan is not None
        return str(adviser.plan)

    assert first(STATE).startswith("drop; if reachable(open door) { toggle(open door) }; repeat")


def test_the_oracle_says_what_it_is_told_and_nothing_else():
    said = weights(control("oracle").ask(request_of(privileged=lambda: ["left", "forward"])))
    assert said == dict.fromkeys(ACTIONS, 0.0) | {"left": 0.5, "forward": 0.5}
    with pytest.raises(BadAnswer, match="no_advice"):
        parse_answer(control("oracle").ask(request_of(privileged=list)).text, ACTIONS)
    with pytest.raises(RuntimeError, match="privileged"):
        control("oracle").ask(request_of())


def test_the_oracle_solves_held_out_episodes_as_fast_as_can_be():
    played = follow(DOORKEY, control("oracle"), episodes=6)
    scripted = follow(DOORKEY, build_provider(LLMOptions("scripted")), episodes=6)
    assert all(played.success)
    assert sum(played.length) <= sum(scripted.length)


def test_shuffled_advice_is_right_for_another_place():
    """The goal is two steps ahead; from most other places the way to it begins otherwise."""
    said = []
    for step in range(30):  # situations that differ only in a far thing, so that each is sent elsewhere
        state = replace(STATE, cells=CELLS | {(step % 5, -3 + step // 10): Thing("ball", "red")})
        there = move_elsewhere(state)
        assert there.cells == state.cells and there.mission == state.mission
        assert there == move_elsewhere(state)
        said.append(weights(control("shuffled").ask(request_of(state))))
    assert all(sum(one.values()) == pytest.approx(1) for one in said)
    assert 0.1 < sum(one["forward"] for one in said) / len(said) < 0.6
    assert all(one["drop"] == one["done"] == 0 for one in said)


def test_shuffled_advice_does_not_solve_the_task():
    assert follow(DOORKEY, control("shuffled"), episodes=10).rate <= 0.2

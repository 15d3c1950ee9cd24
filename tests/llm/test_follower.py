"""One rule for all who follow advice: the running plan, or else a stored answer that can be followed."""

from collections import Counter
from dataclasses import replace

import pytest
from tests.llm.fakes import ACTIONS, LEFT, plan, room

from lore.base.types import Thing
from lore.llm.answer import parse_answer
from lore.llm.follower import Follower
from lore.llm.prompt import GRID_WORDING

KEYS = ("kind", "here")


def answer(text):
    return parse_answer(text, ACTIONS)


def advised(advice):
    assert advice is not None
    return {name for name, share in zip(ACTIONS, advice.weights, strict=True) if share}


def test_without_an_answer_there_is_no_advice():
    assert Follower(ACTIONS).follow(room(), {}, KEYS) is None
    assert Follower(ACTIONS).follow(room(), {"elsewhere": answer(LEFT)}, KEYS) is None


def test_a_plan_runs_on_without_its_answer_until_it_is_done():
    state, ended = room({(2, 0): Thing("key", "red")}), Counter()
    follower = Follower(ACTIONS, ended)
    advice = follower.follow(state, {"kind": answer(plan("pickup(key)", 0.7))}, KEYS)
    assert advised(advice) == {"forward"} and (advice.source, advice.confidence) == ("plan", 0.7)
    assert advised(follower.follow(replace(state, position=(1, 0)), {}, KEYS)) == {"pickup"}
    assert follower.follow(room(carrying=Thing("key", "red")), {}, KEYS) is None
    assert ended == {"done": 1} and not follower.running


@pytest.mark.parametrize("first", ["pickup(key)", "goto(goal)"])  # it is stuck here, or at its end
def test_where_the_plan_of_the_kind_cannot_go_on_the_answer_to_this_state_is_followed(first):
    state = room({(0, 0): Thing("goal", "green")})
    answers = {"kind": answer(plan(first)), "here": answer(LEFT)}
    follower = Follower(ACTIONS)
    advice = follower.follow(state, answers, KEYS)
    assert advised(advice) == {"left"} and advice.source == "answer"
    assert sum(follower.ended.values()) == 1


def test_one_request_for_all():
    state = room()
    request = GRID_WORDING.make_request(state, ACTIONS, 64)
    assert (request.system, request.prompt) == (GRID_WORDING.system(ACTIONS), GRID_WORDING.describe(state))
    assert (request.key, request.plan_key) == (GRID_WORDING.policy_key(state), GRID_WORDING.plan_key(state))
    assert (request.state, request.actions, request.max_tokens) == (state, ACTIONS, 64)
    assert request.privileged is None

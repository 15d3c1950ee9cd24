"""When to ask: each trigger by numbers that can be counted by hand."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
from tests.llm.fakes import room

from lore.base.types import Thing
from lore.llm.asking.triggers import NAMES, Boundary, Novelty, Plateau, Surprise, Triggers

KEY = Thing("key", "yellow")


@pytest.mark.parametrize(("threshold", "visits"), [(0.1, 100), (0.2, 25), (0.05, 400), (0.5, 4), (1.0, 1)])
def test_a_key_is_new_in_exactly_its_first_visits(threshold: float, visits: int) -> None:
    novelty = Novelty(threshold)
    assert [novelty.visit("a") for _ in range(500)] == [True] * visits + [False] * (500 - visits)


def test_each_key_has_its_own_count() -> None:
    novelty = Novelty(0.5)
    assert [novelty.visit(key) for key in "aaabaacb"] == [True] * 5 + [False] + [True] * 2


@pytest.mark.parametrize("threshold", [0.2, 2.0])
def test_surprise_is_measured_in_standard_deviations_of_the_errors_before(threshold: float) -> None:
    draw, surprise, seen, fired = random.Random(0), Surprise(threshold), [], []
    for _ in range(500):
        error = draw.gauss(0.3, 1.0) * (10 if draw.random() < 0.02 else 1)
        expected = len(seen) > 1 and abs(error) > threshold * statistics.pstdev(seen)
        assert surprise.observe(error) == expected
        seen.append(error)
        fired.append(expected)
    assert 0.02 < sum(fired) / len(fired) < 0.95


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_an_error_that_is_not_finite_neither_fires_nor_counts(junk: float) -> None:
    surprise, clean = Surprise(2.0), Surprise(2.0)
    for error in (0.1, -0.2, 0.15, -0.1):
        assert not surprise.observe(junk)
        surprise.observe(error)
        clean.observe(error)
    assert (surprise.count, surprise.mean, surprise.squares) == (clean.count, clean.mean, clean.squares)
    assert surprise.observe(5.0)


@pytest.mark.parametrize(
    ("outcomes", "flat"),
    [
        ("0000000000", True),
        ("000000000", False),  # window not full
        ("0000011111", False),  # it moves
        ("1111100000", False),  # downwards too
        ("1010010100", True),
        ("1111111111", False),  # solved
        ("00000111111111100000000000", True),  # old episodes are forgotten
    ],
)
def test_a_plateau_is_success_that_does_not_move(outcomes: str, flat: bool) -> None:
    plateau = Plateau(10)
    for outcome in outcomes:
        plateau.record_episode(outcome == "1")
    assert plateau.is_flat() == flat


@pytest.mark.parametrize("window", [0, 1])
def test_a_window_too_short_to_compare_is_never_flat(window: int) -> None:
    plateau = Plateau(window)
    for _ in range(5):
        plateau.record_episode(False)
    assert not plateau.is_flat()


def test_an_episode_begins_at_a_boundary() -> None:
    boundary = Boundary()
    crossed = [boundary.observe(room(step=step)) for step in (0, 1, 2, 0, 1)]
    assert crossed == [True, False, False, True, False]


def test_a_key_picked_up_is_a_boundary_once_and_putting_it_down_is_none() -> None:
    boundary = Boundary()
    hands = [None, KEY, KEY, None, Thing("ball", "red"), None, KEY]
    crossed = [boundary.observe(room(carrying=hand)) for hand in hands]
    assert crossed == [False, True, False, False, False, False, True]


@pytest.mark.parametrize("shut", ["closed", "locked"])
@pytest.mark.parametrize(("direction", "cell"), list(enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)])))
def test_a_door_opened_is_a_boundary_and_one_that_closes_is_none(
    shut: str, direction: int, cell: tuple[int, int]
) -> None:
    boundary = Boundary()
    states = [shut, shut, "open", "open", "closed", "open"]
    seen = [room({cell: Thing("door", "red", state)}, direction=direction) for state in states]
    assert [boundary.observe(state) for state in seen] == [False, False, True, False, False, True]


def test_turning_to_an_open_door_is_no_boundary() -> None:
    boundary = Boundary()
    things = {(1, 0): Thing("door", "red", "open"), (0, 1): Thing("door", "red", "closed")}
    assert not any(boundary.observe(room(things, direction=d % 4)) for d in range(12))


def test_those_that_fire_are_named_in_order() -> None:
    triggers = Triggers(novelty_threshold=1.0, td_error_threshold=2.0, plateau_window=2)
    assert triggers.fire("a", None, boundary=False) == ["novelty"]
    assert triggers.fire("a", 1.0, boundary=True) == ["boundary"]
    assert triggers.fire("a", 1.1, boundary=False) == []
    assert triggers.fire("a", 9.0, boundary=False) == ["td_error"]
    for _ in range(2):
        triggers.plateau.record_episode(False)
    assert triggers.fire("b", 99.0, boundary=True) == list(NAMES)


@pytest.mark.parametrize("moment", range(0, 60, 7))
def test_their_state_goes_through_json_at_any_moment(moment: int) -> None:
    def play(triggers: Triggers, start: int, stop: int) -> list[list[str]]:
        seen = []
        for number in range(start, stop):
            draw = random.Random(number)
            if draw.random() < 0.3:
                triggers.plateau.record_episode(draw.random() < 0.5)
            seen.append(triggers.fire(draw.choice("abc"), draw.gauss(0, 1), draw.random() < 0.1))
        return seen

    original, copy = Triggers(0.3, 1.0, 6), Triggers(0.3, 1.0, 6)
    play(original, 0, moment)
    copy.load_state_dict(json.loads(json.dumps(original.state_dict())))
    assert play(copy, moment, 60) == play(original, moment, 60)

"""The circuit breaker, driven by outcomes at environment steps."""

from __future__ import annotations

import json

import pytest

from lore.llm.asking.breaker import Breaker


def opened(failures: int = 3, pause: int = 100, at: int = 50) -> Breaker:
    breaker = Breaker(failures, pause)
    for _ in range(failures):
        breaker.record_failure(at, "timeout")
    return breaker


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_opens_at_the_given_number_of_failures_in_a_row(failures: int) -> None:
    breaker = Breaker(failures, 100)
    for step in range(failures - 1):
        assert breaker.record_failure(step, "timeout") is None
        assert breaker.allow(step)
    said = breaker.record_failure(failures, "rate_limited")
    assert said is not None
    assert f"{failures} failures in a row" in said
    assert "rate_limited" in said
    assert str(failures + 100) in said
    assert not breaker.allow(failures)


def test_an_answer_begins_the_count_anew() -> None:
    breaker = Breaker(3, 100)
    for step in range(20):
        assert breaker.record_failure(step, "timeout") is None
        assert breaker.record_failure(step, "timeout") is None
        breaker.record_success()
        assert breaker.allow(step)
    assert breaker.openings == 0


def test_the_pause_is_counted_in_environment_steps() -> None:
    breaker = opened(pause=100, at=50)
    assert not any(breaker.allow(step) for step in range(50, 150))
    assert breaker.allow(150)


def test_one_trial_goes_and_no_ask_beside_it() -> None:
    breaker = opened(pause=100, at=50)
    assert breaker.allow(150)
    assert not any(breaker.allow(step) for step in range(150, 250))


def test_a_trial_that_goes_well_closes_it() -> None:
    breaker = opened(failures=3, pause=100, at=50)
    assert breaker.allow(150)
    breaker.record_success()
    assert all(breaker.allow(step) for step in range(150, 260))
    assert breaker.record_failure(260, "timeout") is None
    assert breaker.record_failure(260, "timeout") is None
    assert breaker.record_failure(260, "timeout") is not None


def test_a_trial_that_fails_opens_it_for_a_whole_pause_and_says_so() -> None:
    breaker = opened(failures=3, pause=100, at=50)
    assert breaker.allow(170)
    said = breaker.record_failure(175, "server_error")
    assert said is not None
    assert "4 failures in a row" in said
    assert breaker.record_failure(176, "timeout") is None  # sent before the trial
    assert breaker.openings == 2
    assert not any(breaker.allow(step) for step in range(175, 275))
    assert breaker.allow(275)


def test_a_trial_without_outcome_is_followed_by_another() -> None:
    breaker = opened(pause=100, at=50)
    assert [step for step in range(50, 500) if breaker.allow(step)] == [150, 250, 350, 450]


def test_each_opening_is_said_once_however_many_failures_arrive_late() -> None:
    breaker = Breaker(2, 100)
    said = [breaker.record_failure(step, "timeout") for step in range(10)]
    assert [line is not None for line in said] == [False, True] + [False] * 8
    assert breaker.openings == 1
    assert [step for step in range(10, 150) if breaker.allow(step)] == [101]


@pytest.mark.parametrize("moment", range(12))
def test_its_state_goes_through_json(moment: int) -> None:
    """A copy made at any moment goes on as the original does."""
    original = Breaker(2, 10)
    events = [*"FFFAFAA", "ok", *"FFFA"]

    def play(breaker: Breaker, start: int, stop: int) -> list[object]:
        seen: list[object] = []
        for number in range(start, stop):
            step = number * 6
            if events[number] == "A":
                seen.append(breaker.allow(step))
            elif events[number] == "F":
                seen.append(breaker.record_failure(step, "timeout"))
            else:
                breaker.record_success()
            seen.append(breaker.openings)
        return seen

    play(original, 0, moment)
    copy = Breaker(2, 10)
    copy.load_state_dict(json.loads(json.dumps(original.state_dict())))
    assert play(copy, moment, len(events)) == play(original, moment, len(events))
    assert original.openings == 3

"""What a run may spend: no sequence of asks passes a limit, and the sums are exact."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.llm.asking.budget import Budget

BAD_NUMBERS = [math.nan, -math.nan, math.inf, -math.inf, -1e-12, -1.0]
BAD_COUNTS = [math.nan, math.inf, -1, -0.5, 1.0, 1.5, "3", None]

dollars = st.one_of(
    st.floats(0, 2, allow_subnormal=True),
    st.integers(0, 2000).map(lambda mills: mills / 1000),
    st.floats(0, 1e300),
)
counts = st.integers(0, 5000)
limits = st.tuples(
    st.none() | st.integers(0, 12), st.none() | st.floats(0, 5), st.none() | st.integers(0, 20_000)
)
asks = st.tuples(dollars, counts)


def decimal(usd: float) -> Fraction:
    """The exact number that Python prints for it."""
    return Fraction(repr(usd))


def again(budget: Budget, *limits: object) -> Budget:
    """A budget of the same limits with its state, through JSON."""
    copy = Budget(*limits)  # type: ignore[arg-type]
    copy.load_state_dict(json.loads(json.dumps(budget.state_dict())))
    return copy


# what hypothesis tries


@settings(deadline=None)  # the machine may be busy
@given(limits, st.data())
def test_no_sequence_passes_a_limit(limits: tuple, data: st.DataObject) -> None:
    """Asks that keep their bounds, in any order of reserving and settling, saved and loaded in between."""
    total, usd, tokens = limits
    budget = Budget(*limits)
    open_asks: dict[int, tuple[float, int]] = {}
    held: dict[int, tuple[float, int]] = {}  # what each ask ever granted may have taken
    for _ in range(data.draw(st.integers(0, 30))):
        if open_asks and data.draw(st.booleans()):
            ask = data.draw(st.sampled_from(sorted(open_asks)))
            bound = open_asks.pop(ask)
            took = data.draw(st.tuples(st.floats(0, bound[0]), st.integers(0, bound[1])))
            known = data.draw(st.booleans())
            budget.settle(ask, *(took if known else ()))
            held[ask] = took if known else bound
        else:
            bound = data.draw(asks)
            could = budget.can_reserve(*bound)
            ask = budget.reserve(*bound)
            assert could == (ask is not None)
            if ask is not None:
                assert ask not in held
                open_asks[ask] = held[ask] = bound
        if data.draw(st.booleans()):
            budget = again(budget, *limits)
        spent = {ask: took for ask, took in held.items() if ask not in open_asks}
        assert budget.asks == len(held)
        assert budget.tokens == sum(count for _, count in spent.values())
        assert math.isclose(budget.usd, math.fsum(cost for cost, _ in spent.values()), abs_tol=1e-7)
        assert total is None or len(held) <= total
        assert usd is None or sum(decimal(cost) for cost, _ in held.values()) <= decimal(usd)
        assert tokens is None or sum(count for _, count in held.values()) <= tokens


@settings(deadline=None)
@given(limits, st.lists(st.tuples(asks, asks), max_size=20))
def test_what_passes_its_bound_is_booked_and_nothing_is_granted_after_it(
    limits: tuple, history: list[tuple[tuple[float, int], tuple[float, int]]]
) -> None:
    budget = Budget(*limits)
    spent_usd, spent_tokens = Fraction(0), 0
    for bound, took in history:
        if (ask := budget.reserve(*bound)) is None:
            continue
        assert limits[1] is None or bound[0] == 0 or spent_usd < decimal(limits[1])
        assert limits[2] is None or bound[1] == 0 or spent_tokens < limits[2]
        budget.settle(ask, *took)
        spent_usd += decimal(took[0])
        spent_tokens += took[1]
        assert budget.tokens == spent_tokens
        assert math.isclose(budget.usd, spent_usd, rel_tol=1e-12, abs_tol=1e-7)


@settings(deadline=None)
@given(limits, st.lists(asks, max_size=15), st.lists(asks, max_size=15), st.data())
def test_a_copy_by_state_dict_goes_on_exactly_as_the_original(
    limits: tuple, before: list, after: list, data: st.DataObject
) -> None:
    budget = Budget(*limits)
    granted = [ask for ask in (budget.reserve(*bound) for bound in before) if ask is not None]
    settled = data.draw(st.lists(st.sampled_from(granted), unique=True)) if granted else []
    for ask in settled:
        budget.settle(ask, 0.1, 7)
    copy = again(budget, *limits)
    assert copy.state_dict() == budget.state_dict()
    assert [copy.reserve(*bound) for bound in after] == [budget.reserve(*bound) for bound in after]
    for ask in set(granted) - set(settled):
        copy.settle(ask)
        budget.settle(ask)
    assert copy.state_dict() == budget.state_dict()
    assert (copy.usd, copy.tokens, copy.remaining) == (budget.usd, budget.tokens, budget.remaining)


# single cases


def test_without_limits_everything_is_granted() -> None:
    budget = Budget(None)
    assert [budget.reserve(1e300, 10**12) for _ in range(3)] == [1, 2, 3]
    assert budget.remaining is None


def test_the_last_ask_of_the_limit_is_granted_and_none_after_it() -> None:
    budget = Budget(3)
    assert [budget.reserve(0, 0) for _ in range(5)] == [1, 2, 3, None, None]
    assert (budget.asks, budget.remaining) == (3, 0)


def test_a_failed_ask_is_not_given_back_but_its_dollars_are() -> None:
    budget = Budget(2, usd=1.0)
    ask = budget.reserve(1.0, 0)
    assert ask is not None
    assert not budget.can_reserve(0.5, 0)
    budget.settle(ask, 0.0, 0)
    assert budget.remaining == 1
    assert budget.can_reserve(1.0, 0)


def test_an_ask_of_unknown_cost_is_booked_at_its_bound() -> None:
    budget = Budget(None, usd=1.0, tokens=100)
    ask = budget.reserve(0.75, 60)
    assert ask is not None
    budget.settle(ask)
    assert (budget.usd, budget.tokens) == (0.75, 60)
    assert budget.can_reserve(0.25, 40)
    assert not budget.can_reserve(0.26, 0)
    assert not budget.can_reserve(0, 41)


@pytest.mark.parametrize("cost", [0.1, 0.07, 0.003, 1e-9])
def test_decimal_prices_add_up(cost: float) -> None:
    """Ten times 0.1 fits into 1.0 to the last cent; as binary fractions it may not."""
    budget = Budget(None, usd=float(decimal(cost) * 10))
    for _ in range(10):
        ask = budget.reserve(cost, 0)
        assert ask is not None
        budget.settle(ask, cost, 0)
    assert budget.usd == float(decimal(cost) * 10)
    assert budget.reserve(1e-12, 0) is None


def test_what_the_cache_serves_costs_an_ask_and_no_dollars() -> None:
    budget = Budget(5, usd=0.5)
    ask = budget.reserve(0.5, 10)
    assert ask is not None
    budget.settle(ask, 0.75, 10)  # the bound was wrong
    assert budget.usd == 0.75
    assert budget.reserve(1e-9, 0) is None
    assert budget.reserve(0, 0) == 2


@pytest.mark.parametrize("bad", BAD_NUMBERS)
def test_bad_dollars_are_refused_and_change_nothing(bad: float) -> None:
    with pytest.raises(ValueError):
        Budget(1, usd=bad)
    budget = Budget(5, usd=1.0)
    ask = budget.reserve(0.5, 1)
    assert ask is not None
    before = budget.state_dict()
    with pytest.raises(ValueError):
        budget.can_reserve(bad, 0)
    with pytest.raises(ValueError):
        budget.reserve(bad, 0)
    with pytest.raises(ValueError):
        budget.settle(ask, bad, 1)
    assert budget.state_dict() == before
    budget.settle(ask, 0.5, 1)
    assert budget.usd == 0.5


@pytest.mark.parametrize("bad", BAD_COUNTS)
def test_bad_tokens_are_refused_and_change_nothing(bad: int) -> None:
    budget = Budget(5, tokens=10)
    ask = budget.reserve(0, 5)
    assert ask is not None
    before = budget.state_dict()
    with pytest.raises(ValueError):
        budget.reserve(0, bad)
    if bad is not None:
        with pytest.raises(ValueError):
            Budget(bad)
        with pytest.raises(ValueError):
            Budget(None, tokens=bad)
        with pytest.raises(ValueError):
            budget.settle(ask, 0.0, bad)
    assert budget.state_dict() == before


def test_an_ask_is_settled_once() -> None:
    budget = Budget(5)
    ask = budget.reserve(0.5, 5)
    assert ask is not None
    budget.settle(ask, 0.5, 5)
    for wrong in (ask, ask + 1, 0, -1):
        with pytest.raises(ValueError, match=f"ask {wrong} "):
            budget.settle(wrong, 0.5, 5)
    assert (budget.usd, budget.tokens) == (0.5, 5)

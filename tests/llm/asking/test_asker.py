"""One ask: what it costs, how it fails, and that a resumed run asks nothing twice."""

from __future__ import annotations

import asyncio
import io
import json
import math
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.llm.fakes import (
    LEFT,
    FakeProvider,
    make_asker,
    plan,
    policy,
    question,
    records,
    reply,
    request,
    room,
)

from lore.base.errors import BadInput
from lore.base.types import Thing
from lore.llm import prompt
from lore.llm.answer import KINDS
from lore.llm.asking import asker as asker_module
from lore.llm.asking import stored_answers
from lore.llm.asking.asker import Asker
from lore.llm.asking.cache import AnswerCache
from lore.llm.asking.ledger import SweepLedger
from lore.llm.asking.question import Asked, Question
from lore.llm.asking.sender import EXTRA_TOKENS, MAY_HAVE_ANSWERED
from lore.llm.providers import FAILURES, ProviderError, Reply

BAD_TEXT = {
    "empty": "  ",
    "too_large": LEFT + " " * 20_000,
    "not_json": "I would turn left.",
    "truncated": LEFT[:40],
    "wrong_type": "[1, 2]",
    "not_finite": LEFT.replace("1.0", "NaN"),
    "negative": LEFT.replace("1.0", "-1"),
    "huge": LEFT.replace("1.0", "1e9"),
    "missing_action": LEFT.replace('"left"', '"why not"').replace('"why not": 1.0, ', ""),
    "unknown_action": LEFT.replace('"left": 1.0', '"left": 1.0, "jump": 1'),
    "no_advice": policy(),
    "bad_plan": plan("import os"),
}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds a provider back; let go at the end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()
    end = time.monotonic() + 10
    while any(thread.name == "lore-ask" for thread in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)


def cached(folder: Path, name: str = "answers.sqlite") -> AnswerCache:
    return AnswerCache(folder / name, lambda line: None)


def resumed(state: dict[str, Any], folder: Path, provider: FakeProvider, **options: Any) -> Asker:
    """New objects on the same journal, with a state that went through torch.save as plain data."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    asker = make_asker(folder, provider, **options)
    asker.load_state_dict(torch.load(file, weights_only=True))
    return asker


def arrive(asker: Asker, env_step: int) -> Asked:
    """Wait for the thread that asks, then take what it brought."""
    end = time.monotonic() + 10
    while not asker._result and time.monotonic() < end:
        time.sleep(0.001)
    asked = asker.collect_arrival(env_step)
    assert asked is not None
    return asked


# an answer and its price


def test_an_answer_is_journaled_before_it_is_used_and_booked_at_what_it_took(tmp_path: Path) -> None:
    asker = make_asker(tmp_path, FakeProvider([reply(LEFT, 0.02, (300, 40))]), total=5, usd=1.0, tokens=10**6)
    asked = asker.ask(question(1, env_step=7, env=2))
    assert asked.outcome == "answered" and asked.answer is not None
    assert asked.answer.weights == (1, 0, 0, 0, 0, 0, 0)
    assert (asker.budget.asks, asker.budget.usd, asker.budget.tokens) == (1, 0.02, 340)
    assert asker.counts == {"asked": 1, "provider_calls": 1, "cached": 0}
    (record,) = records(asker)
    assert (record["env_step"], record["arrived"], record["env"], record["text"]) == (7, 7, 2, LEFT)
    assert (record["usd"], record["tokens"], record["sent"]) == (0.02, 340, 1)


def test_nothing_is_used_that_is_not_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = make_asker(tmp_path, FakeProvider(), cache=cached(tmp_path))

    def refuse(record: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(asker.journal, "append", refuse)
    with pytest.raises(OSError, match="disk full"):
        asker.ask(question())
    assert not asker.failures and asker.counts["provider_calls"] == 0
    assert asker._stored.find(question().request) == (None, 0)


def test_budget_total_is_charged_by_the_ask_whoever_serves_it(tmp_path: Path) -> None:
    """Answered, failed, unreadable or from the cache: each is one; then none is asked any more."""
    provider = FakeProvider([LEFT, ProviderError("http_400"), "junk", LEFT])
    asker = make_asker(tmp_path, provider, total=5, cache=cached(tmp_path), retries=0)
    outcomes = [asker.ask(question(n, step)).outcome for step, n in enumerate((0, 1, 2, 0, 3, 4, 0))]
    assert outcomes == ["answered", "failed", "failed", "answered", "answered", "budget", "budget"]
    assert (asker.budget.remaining, len(provider.asked), asker.counts["cached"]) == (0, 4, 1)


def test_what_the_cache_serves_costs_no_dollars_and_no_tokens(tmp_path: Path) -> None:
    make_asker(tmp_path / "a", FakeProvider(), cache=cached(tmp_path)).ask(question())
    provider = FakeProvider()
    asker = make_asker(tmp_path / "b", provider, total=1, usd=0.0, tokens=0, cache=cached(tmp_path))
    assert asker.ask(question(1)).outcome == "budget"
    assert asker.ask(question(0)).outcome == "answered"
    assert (asker.budget.usd, asker.budget.tokens, asker.budget.remaining) == (0.0, 0, 0)
    assert (provider.asked, asker.counts["cached"], asker.counts["provider_calls"]) == ([], 1, 0)
    assert records(asker)[0]["cached"] is True


def test_two_runs_in_different_order_pay_the_same_for_the_same_key(tmp_path: Path) -> None:
    charges: list[dict[str, int]] = []
    for run, order in enumerate([(0, 1, 2, 3), (3, 1, 0, 2)]):
        asker, charge = make_asker(tmp_path / str(run), FakeProvider(), total=9, cache=cached(tmp_path)), {}
        for step, number in enumerate(order):
            before = asker.budget.asks
            asked = asker.ask(question(number, step))
            charge[asked.question.request.key] = asker.budget.asks - before
        charges.append(charge)
    assert charges[0] == charges[1] and set(charges[0].values()) == {1}


def test_a_plan_is_stored_for_its_kind_of_situation_and_a_policy_for_its_own(tmp_path: Path) -> None:
    here, there = (request(room({cell: Thing("key", "red")})) for cell in ((1, 1), (2, 0)))
    assert here.plan_key == there.plan_key and here.key != there.key
    for text, hit in ((plan("pickup(key)"), True), (LEFT, False)):
        folder = tmp_path / str(hit)
        first = make_asker(folder / "a", FakeProvider([text]), cache=cached(folder))
        first.ask(Question(here, 0, 0, "novelty"))
        provider = FakeProvider([text])
        second = make_asker(folder / "b", provider, cache=cached(folder))
        assert second.ask(Question(there, 0, 0, "novelty")).outcome == "answered"
        assert (provider.asked == []) == hit


def test_another_model_prompt_answer_form_or_action_set_never_gets_an_old_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calls(run: str, model: str = "one") -> int:
        provider = FakeProvider(model=model)
        make_asker(tmp_path / run, provider, cache=cached(tmp_path)).ask(question())
        return len(provider.asked)

    assert [calls("first"), calls("same"), calls("model", "two")] == [1, 0, 1]
    for name in ("PROMPT_VERSION", "ANSWER_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(stored_answers, name, "another")
            assert calls(name) == 1
    assert stored_answers.PROMPT_VERSION == asker_module.PROMPT_VERSION == prompt.PROMPT_VERSION
    assert calls("again") == 0


# reserved before it is sent


def test_dollars_are_reserved_before_sending_for_every_try(tmp_path: Path) -> None:
    """Two tries at 0.05 do not fit into 0.09, so nothing is sent; into 0.10 they do."""
    for usd, sent in ((0.09, 0), (0.1, 1)):
        provider = FakeProvider([reply(LEFT, 0.01)], max_usd=0.05)
        asker = make_asker(tmp_path / str(usd), provider, usd=usd, retries=1)
        assert asker.ask(question()).outcome == ("answered" if sent else "budget")
        assert len(provider.asked) == sent
        assert asker.budget.usd == 0.01 * sent


def test_tokens_are_reserved_at_max_tokens_and_the_whole_prompt_for_every_try(tmp_path: Path) -> None:
    asked = question(max_tokens=50)
    bound = 2 * (50 + len((asked.request.system + asked.request.prompt).encode()) + EXTRA_TOKENS)
    for tokens, outcome in ((bound - 1, "budget"), (bound, "answered")):
        asker = make_asker(tmp_path / str(tokens), FakeProvider(), tokens=tokens, retries=1)
        assert asker.ask(asked).outcome == outcome


def test_the_reservation_is_held_while_the_provider_works(tmp_path: Path, gate: threading.Event) -> None:
    asker = make_asker(tmp_path, FakeProvider(gate=gate), usd=0.15, retries=1, wait=False)
    assert asker.ask(question()).outcome == "waiting"
    assert asker.budget.can_reserve(0.05, 0) and not asker.budget.can_reserve(0.06, 0)
    gate.set()
    assert arrive(asker, 3).outcome == "answered"
    assert asker.budget.can_reserve(0.14, 0)


@pytest.mark.parametrize("kind", MAY_HAVE_ANSWERED)
def test_where_a_model_may_have_answered_the_whole_reservation_is_booked(kind: str, tmp_path: Path) -> None:
    asker = make_asker(tmp_path, FakeProvider([ProviderError(kind), reply(LEFT, 0.01)]), usd=1.0, retries=1)
    asker.ask(question())
    assert asker.budget.usd == 0.1


@pytest.mark.parametrize("kind", ["truncated", "refusal", "empty"])
def test_an_answer_of_no_use_is_paid_for(kind: str, tmp_path: Path) -> None:
    """At what it took where that is known, else at its bound."""
    for said, usd in ((ProviderError(kind, reply=reply("", 0.03)), 0.03), (ProviderError(kind), 0.05)):
        asker = make_asker(tmp_path / str(usd), FakeProvider([said]), usd=1.0, retries=0)
        assert asker.ask(question()).outcome == "failed"
        assert asker.budget.usd == usd


def test_tries_that_cost_nothing_are_not_booked(tmp_path: Path) -> None:
    script = [ProviderError("overloaded"), ProviderError("server_error"), reply(LEFT, 0.02)]
    asker = make_asker(tmp_path, FakeProvider(script), usd=1.0, retries=2)
    assert asker.ask(question()).outcome == "answered"
    assert (asker.budget.usd, asker.counts["provider_calls"]) == (0.02, 3)
    assert asker.failures == {"overloaded": 1, "server_error": 1}


# failures


@pytest.mark.parametrize("kind", FAILURES)
def test_each_failure_is_counted_under_its_name_and_retried_only_where_that_can_help(
    kind: str, tmp_path: Path
) -> None:
    provider = FakeProvider([ProviderError(kind)])
    asker = make_asker(tmp_path, provider, total=5, retries=2)
    asked = asker.ask(question())
    tries = 3 if FAILURES[kind] else 1
    assert (asked.outcome, asked.answer) == ("failed", None)
    assert asker.failures == {kind: tries}
    assert (len(provider.asked), asker.counts["provider_calls"], asker.budget.asks) == (tries, tries, 1)
    assert records(asker)[0]["failures"] == [kind] * tries


@pytest.mark.parametrize("kind", BAD_TEXT)
def test_each_unusable_answer_is_counted_under_its_name_and_neither_retried_nor_stored(
    kind: str, tmp_path: Path
) -> None:
    provider = FakeProvider([BAD_TEXT[kind]])
    asker = make_asker(tmp_path, provider, total=5, retries=2, cache=cached(tmp_path))
    asked = asker.ask(question())
    assert (asked.outcome, asked.answer, asker.failures) == ("failed", None, {kind: 1})
    assert (len(provider.asked), asker.budget.asks, asker.budget.usd) == (1, 1, 0.01)
    asker.ask(question(0, 1))
    assert len(provider.asked) == 2


def test_there_is_a_text_for_every_kind_of_bad_answer() -> None:
    assert set(BAD_TEXT) == set(KINDS)


class Odd(BaseException):
    """Neither an Exception nor anything that Python knows."""


JUNK: dict[str, tuple[Any, str]] = {
    "KeyError": (KeyError("x"), "bug_KeyError"),
    "TimeoutError": (TimeoutError(), "bug_TimeoutError"),
    "SystemExit": (SystemExit(3), "bug_SystemExit"),
    "CancelledError": (asyncio.CancelledError(), "bug_CancelledError"),
    "KeyboardInterrupt": (KeyboardInterrupt(), "bug_KeyboardInterrupt"),
    "Odd": (Odd("?"), "bug_Odd"),
    "None": (None, "bug_TypeError"),
    "bytes": (Reply(b"{}", 1, 1, 0, 0.0, 0.0, ""), "bug_TypeError"),  # type: ignore[arg-type]
    "no text": (Reply(None, 1, 1, 0, 0.0, 0.0, ""), "bug_TypeError"),  # type: ignore[arg-type]
}


def test_a_bug_of_a_provider_is_shown_with_its_traceback_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-ant-" + "a1" * 20
    monkeypatch.setenv("SOMEBODYS_API_KEY", secret)
    for wanted in ("0", "1"):
        monkeypatch.setenv("LORE_DEBUG", wanted)
        lines: list[str] = []
        (tmp_path / wanted).mkdir()
        provider = FakeProvider([KeyError(secret), KeyError("again")])
        asker = make_asker(tmp_path / wanted, provider, total=5, retries=0, said=lines)
        asker.ask(question())
        asker.ask(question(1, 2))
        assert secret not in "".join(lines)
        traces = [line for line in lines if line.startswith("Traceback ")]
        assert len(traces) == int(wanted) and (len(lines) > 3) == bool(traces)
        assert any("fakes.py" in line for line in lines) == bool(traces)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("junk", JUNK)
def test_whatever_a_provider_raises_or_returns_training_goes_on(
    junk: str, wait: bool, tmp_path: Path
) -> None:
    said_by_provider, kind = JUNK[junk]
    lines: list[str] = []
    asker = make_asker(
        tmp_path, FakeProvider([said_by_provider, LEFT]), usd=1.0, retries=1, said=lines, wait=wait
    )
    asked = asker.ask(question())
    if asked.outcome == "waiting":
        asked = arrive(asker, 1)
    assert (asked.outcome, asker.failures) == ("failed", {kind: 1})
    assert asker.budget.usd == 0.1  # it may have been paid for
    assert len(lines) == 1 and "fake" in lines[0] and kind.removeprefix("bug_") in lines[0]
    asked = asker.ask(question(1, 2))
    if asked.outcome == "waiting":
        asked = arrive(asker, 3)
    assert asked.outcome == "answered"


@pytest.mark.parametrize("usd", [math.nan, math.inf, -1.0, None])
def test_a_price_that_is_no_price_is_booked_at_its_bound(usd: Any, tmp_path: Path) -> None:
    asker = make_asker(tmp_path, FakeProvider([reply(LEFT, usd)]), usd=1.0, retries=0)
    assert asker.ask(question()).outcome == "answered"
    assert asker.budget.usd == 0.05
    failing = FakeProvider([ProviderError("refusal", reply=reply("", usd))])
    asker = make_asker(tmp_path / "failing", failing, usd=1.0, retries=0)
    assert asker.ask(question()).outcome == "failed"
    assert asker.budget.usd == 0.05


@pytest.mark.parametrize("tokens", [(-1, 1), (1.5, 1), (None, 1)])
def test_counts_that_are_none_are_booked_at_their_bound(tokens: Any, tmp_path: Path) -> None:
    asker = make_asker(tmp_path, FakeProvider([reply(LEFT, 0.01, tokens)]), tokens=10**6, retries=0)
    assert asker.ask(question()).outcome == "answered"
    assert asker.budget.tokens == asker._sender.bounds(question().request)[1]


def test_no_ask_takes_longer_than_its_deadline_whatever_the_provider_does(
    tmp_path: Path, gate: threading.Event
) -> None:
    asker = make_asker(tmp_path, FakeProvider(gate=gate), timeout_s=0.3, retries=3)
    started = time.monotonic()
    assert asker.ask(question()).outcome == "failed"
    assert 0.25 < time.monotonic() - started < 1.5
    assert asker.failures == {"timeout": 1} and asker.counts["provider_calls"] == 1


@pytest.mark.parametrize(("pause", "tries"), [(0.0, 3), (0.05, 3), (60.0, 1)])
def test_a_retry_waits_as_asked_but_not_past_the_deadline(pause: float, tries: int, tmp_path: Path) -> None:
    provider = FakeProvider([ProviderError("rate_limited", retry_after_s=pause)] * 2 + [LEFT])
    asker = make_asker(tmp_path, provider, timeout_s=5.0, retries=2)
    started = time.monotonic()
    assert asker.ask(question()).outcome == ("answered" if tries == 3 else "failed")
    assert len(provider.asked) == tries
    assert time.monotonic() - started < 3.0
    assert time.monotonic() - started >= (2 * pause if tries == 3 else 0)


def test_nobody_waits_after_the_last_try(tmp_path: Path) -> None:
    asker = make_asker(tmp_path, FakeProvider([ProviderError("rate_limited", retry_after_s=4.0)]), retries=0)
    started = time.monotonic()
    assert asker.ask(question()).outcome == "failed"
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("pause", [-1.0, math.nan])
def test_a_pause_that_is_none_is_no_pause(pause: float, tmp_path: Path) -> None:
    provider = FakeProvider([ProviderError("rate_limited", retry_after_s=pause), LEFT])
    assert make_asker(tmp_path, provider, retries=1).ask(question()).outcome == "answered"


def test_the_breaker_opens_after_failures_in_a_row_and_says_so_once(tmp_path: Path) -> None:
    lines: list[str] = []
    provider = FakeProvider([ProviderError("http_401")])
    asker = make_asker(tmp_path, provider, total=50, failures=3, pause=10, said=lines)
    outcomes = [asker.ask(question(step, step)).outcome for step in range(12)]
    assert outcomes == ["failed"] * 3 + ["breaker"] * 9
    assert len(lines) == 1 and "3 failures in a row" in lines[0] and "http_401" in lines[0]
    assert (asker.budget.asks, len(provider.asked)) == (3, 3)
    assert asker.ask(question(12, 12)).outcome == "failed"  # the trial
    assert asker.ask(question(13, 13)).outcome == "breaker"
    assert len(lines) == 2


def test_an_open_breaker_holds_no_stored_answer_back_and_a_stored_one_does_not_close_it(
    tmp_path: Path,
) -> None:
    make_asker(tmp_path / "a", FakeProvider(), cache=cached(tmp_path)).ask(question())
    provider = FakeProvider([ProviderError("http_401")])
    asker = make_asker(tmp_path / "b", provider, failures=2, pause=100, cache=cached(tmp_path))
    numbers = (1, 0, 2, 3, 0, 4)
    assert [asker.ask(question(n, step)).outcome for step, n in enumerate(numbers)] == [
        "failed",
        "answered",
        "failed",
        "breaker",
        "answered",
        "breaker",
    ]


def test_a_stored_text_that_is_no_answer_is_a_counted_miss_and_said_once(tmp_path: Path) -> None:
    """Its checksum fits, so the file is not damaged: somebody wrote it. The provider is asked instead."""
    said: list[str] = []
    asker = make_asker(tmp_path, FakeProvider(), cache=AnswerCache(tmp_path / "a.sqlite", said.append))
    cache = cached(tmp_path, "a.sqlite")
    for number in range(3):
        asked = question(number).request
        cache.put(asker._stored._name(asked.key, asked), "junk", {})
        cache.put(asker._stored._name(asked.plan_key, asked), LEFT, {})  # weights in the place of a plan
        assert asker.ask(question(number, number)).outcome == "answered"
    assert asker.failures == {"bad_cache_entry": 6} and asker.breaker.openings == 0
    assert (asker.counts["provider_calls"], asker.counts["cached"]) == (3, 0)
    assert len(said) == 1 and "no answer" in said[0] and "a.sqlite" in said[0]
    assert [record["failures"] for record in records(asker)] == [["bad_cache_entry"] * 2] * 3


# asking in the background


def test_an_answer_arrives_later_and_no_second_question_goes_out_before(
    tmp_path: Path, gate: threading.Event
) -> None:
    provider = FakeProvider(gate=gate)
    asker = make_asker(tmp_path, provider, total=9, wait=False)
    started = time.monotonic()
    assert asker.ask(question(0, 0)).outcome == "waiting"
    assert [asker.ask(question(n, n)).outcome for n in (1, 2)] == ["busy", "busy"]
    assert asker.collect_arrival(3) is None
    assert time.monotonic() - started < 5
    assert (asker.budget.asks, asker.counts["asked"]) == (1, 1)
    gate.set()
    asked = arrive(asker, 4)
    assert len(provider.asked) == 1
    assert (asked.outcome, asked.question.env_step) == ("answered", 0)
    assert (records(asker)[0]["env_step"], records(asker)[0]["arrived"]) == (0, 4)
    assert asker.collect_arrival(5) is None
    assert asker.ask(question(5, 5)).outcome in ("waiting", "answered")


# resumption


def test_a_resumed_run_is_served_from_its_journal_and_charged_as_before(tmp_path: Path) -> None:
    script = [LEFT, ProviderError("http_403"), "junk", plan("left"), LEFT]
    asker = make_asker(tmp_path, FakeProvider(script), total=9, retries=0)
    start = asker.state_dict()
    outcomes = [asker.ask(question(n, n)) for n in range(4)]
    provider = FakeProvider([LEFT])
    again = resumed(start, tmp_path, provider, total=9, retries=0)
    assert [again.ask(question(n, n)).answer for n in range(4)] == [asked.answer for asked in outcomes]
    assert again.state_dict() == asker.state_dict()
    assert provider.asked == []
    assert again.ask(question(4, 4)).outcome == "answered" and len(provider.asked) == 1


def test_a_resumed_run_needs_no_cache_for_what_the_cache_served(tmp_path: Path) -> None:
    make_asker(tmp_path / "other", FakeProvider(), cache=cached(tmp_path)).ask(question(1))
    asker = make_asker(tmp_path, FakeProvider(), total=9, cache=cached(tmp_path))
    start = asker.state_dict()
    asks = [question(n, n) for n in (0, 1, 2)]
    answers = [asker.ask(asked).answer for asked in asks]
    provider = FakeProvider()
    again = resumed(start, tmp_path, provider, total=9, cache=cached(tmp_path, "empty.sqlite"))
    assert [again.ask(asked).answer for asked in asks] == answers
    assert again.state_dict() == asker.state_dict() and provider.asked == []


@pytest.mark.parametrize(
    "other", [question(0, 6), question(0, 5, env=1), question(1, 5)], ids=["step", "environment", "situation"]
)
def test_a_journal_of_another_run_is_an_error_that_names_the_file(other: Any, tmp_path: Path) -> None:
    make_asker(tmp_path, FakeProvider()).ask(question(0, 5))
    asker = make_asker(tmp_path, FakeProvider())
    with pytest.raises(BadInput, match=r"llm\.jsonl"):
        asker.ask(other)


@pytest.mark.parametrize("change", ["model", "PROMPT_VERSION", "ANSWER_VERSION"])
def test_a_journal_of_another_model_or_version_is_an_error_too(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_asker(tmp_path, FakeProvider()).ask(question(0, 5))
    if change != "model":
        monkeypatch.setattr(asker_module, change, "another")
    asker = make_asker(tmp_path, FakeProvider(model="two" if change == "model" else "one"))
    with pytest.raises(BadInput, match=r"llm\.jsonl"):
        asker.ask(question(0, 5))


def test_a_question_under_way_at_the_checkpoint_gets_the_answer_of_the_journal(
    tmp_path: Path, gate: threading.Event
) -> None:
    asker = make_asker(tmp_path, FakeProvider(gate=gate), total=9, wait=False)
    asker.ask(question(0, 0))
    state = asker.state_dict()
    gate.set()
    answer = arrive(asker, 4).answer
    provider = FakeProvider()
    again = resumed(state, tmp_path, provider, total=9, wait=False)
    assert again.ask(question(3, 3)).outcome == "busy"
    assert again.state_dict()["budget"] == state["budget"]
    asked = again.collect_arrival(4)
    assert asked is not None and asked.answer == answer
    assert provider.asked == [] and again.counts == asker.counts and again.budget.usd == asker.budget.usd


def test_a_question_under_way_that_died_with_its_run_is_lost_and_paid_for(
    tmp_path: Path, gate: threading.Event
) -> None:
    asker = make_asker(tmp_path, FakeProvider(gate=gate), usd=1.0, retries=0, wait=False)
    asker.ask(question(0, 0))
    state = asker.state_dict()
    for _ in range(2):  # the second time from the journal
        provider = FakeProvider()
        again = resumed(state, tmp_path, provider, usd=1.0, retries=0, wait=False)
        asked = again.collect_arrival(3)
        assert asked is not None and asked.outcome == "failed"
        assert (again.failures, again.budget.usd, again.budget.asks) == ({"lost": 1}, 0.05, 1)
        assert len(records(again)) == 1


def test_what_a_thread_brings_after_a_load_is_no_answer_to_the_next_question(
    tmp_path: Path, gate: threading.Event
) -> None:
    asker = make_asker(tmp_path, FakeProvider([policy(right=1.0), LEFT], gate=gate), wait=False)
    start = asker.state_dict()
    asker.ask(question(0, 0))
    pending = asker.state_dict()
    asker.load_state_dict(pending)
    asker.load_state_dict(pending)  # "lost" is there once, however often
    asker.load_state_dict(start)
    gate.set()
    time.sleep(0.2)
    asked = asker.ask(question(1, 1))
    answer = (asked if asked.answer else arrive(asker, 2)).answer
    assert answer is not None and answer.weights == (1, 0, 0, 0, 0, 0, 0)


# the server's pause


class Clock:
    """Seconds since 1970, as a test sets them."""

    def __init__(self, now: float = 1e9):
        self.now = now

    def __call__(self) -> float:
        return self.now


PAUSE_OF_60_S = ProviderError("rate_limited", retry_after_s=60.0)


def test_the_servers_pause_holds_between_asks(tmp_path: Path) -> None:
    """Ten questions in 2.5 seconds were ten requests: now they are one."""
    clock, lines = Clock(), list[str]()
    provider = FakeProvider([PAUSE_OF_60_S, LEFT])
    asker = make_asker(tmp_path, provider, total=50, said=lines, retries=1, clock=clock)
    outcomes = []
    for step in range(10):
        outcomes.append(asker.ask(question(step, step)).outcome)
        clock.now += 0.25
    assert outcomes == ["failed"] + ["paused"] * 9
    assert (len(provider.asked), asker.budget.asks, len(records(asker))) == (1, 1, 1)
    assert len(lines) == 1 and "60 s" in lines[0]
    clock.now += 57.4
    assert asker.ask(question(10, 10)).outcome == "paused"
    clock.now += 0.2
    assert asker.ask(question(11, 11)).outcome == "answered"
    assert asker.ask(question(12, 12)).outcome == "answered"  # its answer asked for no further pause


def test_a_pause_holds_no_stored_answer_back(tmp_path: Path) -> None:
    make_asker(tmp_path / "a", FakeProvider(), cache=cached(tmp_path)).ask(question(7))
    asker = make_asker(tmp_path / "b", FakeProvider([PAUSE_OF_60_S]), cache=cached(tmp_path))
    outcomes = [asker.ask(question(n, step)).outcome for step, n in enumerate((0, 7, 1))]
    assert outcomes == ["failed", "answered", "paused"]


@pytest.mark.parametrize(("asked_s", "held_s"), [(10.0, 10.0), (3600.0, 3600.0), (1e12, 3600.0)])
def test_a_pause_lasts_an_hour_at_most(asked_s: float, held_s: float, tmp_path: Path) -> None:
    clock = Clock()
    provider = FakeProvider([ProviderError("overloaded", retry_after_s=asked_s), LEFT])
    asker = make_asker(tmp_path, provider, retries=0, clock=clock)
    asker.ask(question(0, 0))
    clock.now += held_s - 0.5
    assert asker.ask(question(1, 1)).outcome == "paused"
    clock.now += 1.0
    assert asker.ask(question(2, 2)).outcome == "answered"


def test_a_clock_that_is_set_back_makes_no_pause_longer_than_it_may_be(tmp_path: Path) -> None:
    clock = Clock()
    asker = make_asker(tmp_path, FakeProvider([PAUSE_OF_60_S, LEFT]), retries=0, clock=clock)
    asker.ask(question(0, 0))
    clock.now -= 1e6
    assert asker.ask(question(1, 1)).outcome == "answered"


def test_a_resumed_run_keeps_a_pause_that_still_lasts(tmp_path: Path) -> None:
    clock = Clock()
    asker = make_asker(tmp_path, FakeProvider([PAUSE_OF_60_S]), retries=0, clock=clock)
    start = asker.state_dict()
    asker.ask(question(0, 0))
    for state, first in ((start, 0), (asker.state_dict(), 1)):
        clock.now = 1e9 + 30.0
        provider = FakeProvider()
        again = resumed(state, tmp_path, provider, retries=0, clock=clock)
        outcomes = [again.ask(question(n, n)).outcome for n in range(first, 3)]
        assert outcomes == ["failed", "paused", "paused"][first:] and provider.asked == []
    clock.now = 1e9 + 61.0
    assert again.ask(question(3, 3)).outcome == "answered"


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_a_replay_does_not_look_at_the_clock(seed: int, wait: bool, tmp_path: Path) -> None:
    """Pauses of random length, steps of random length; the resumed run's clock tells any time at all."""
    draw, clock = random.Random(seed), Clock()
    said = [
        *[ProviderError("rate_limited", retry_after_s=draw.uniform(2, 20)) for _ in range(4)],
        ProviderError("http_400"),
        LEFT,
    ]
    script = [draw.choice(said) for _ in range(60)]
    options: dict[str, Any] = {"total": 30, "failures": 3, "pause": 6, "retries": 0, "wait": wait}

    def step(asker: Asker, number: int) -> list[Any]:
        arrived, asked = asker.collect_arrival(number), asker.ask(question(number, number))
        return [(one.outcome, one.answer) for one in (arrived, asked) if one is not None]

    asker = make_asker(tmp_path, FakeProvider(script), clock=clock, **options)
    states, whole = [], []
    for number in range(60):
        states.append(json.loads(json.dumps(asker.state_dict())))
        whole.append(step(asker, number))
        end = time.monotonic() + 10
        while asker._open and not asker._result and time.monotonic() < end:
            time.sleep(0.001)
        clock.now += draw.uniform(0, 3)
    assert {"paused", "failed"} <= {outcome for pair in whole for outcome, _ in pair}
    last = json.loads((tmp_path / "llm.jsonl").read_text().splitlines()[-1])["env_step"]
    for moment in draw.sample(range(last), 8):
        provider = FakeProvider([LEFT])
        again = resumed(
            states[moment], tmp_path, provider, clock=Clock(draw.choice([0.0, 1e9, 2e9])), **options
        )
        assert [step(again, number) for number in range(moment, last + 1)] == whole[moment : last + 1]
        assert provider.asked == []


def test_a_checkpoint_from_before_there_were_pauses_is_read(tmp_path: Path) -> None:
    asker = make_asker(tmp_path, FakeProvider())
    state = asker.state_dict()
    del state["pause_until"]
    assert resumed(state, tmp_path, FakeProvider()).ask(question()).outcome == "answered"


# what was never sent


class Unready(FakeProvider):
    """Its client cannot be built, until `ready`."""

    ready = False

    def prepare(self) -> None:
        if not self.ready:
            raise ProviderError("no_client", "ValueError; look at ALL_PROXY")


def test_what_cannot_be_sent_costs_nothing_and_is_said_once(tmp_path: Path) -> None:
    ledger, lines, provider = SweepLedger(tmp_path / "ledger.sqlite", 5), list[str](), Unready()
    asker = make_asker(
        tmp_path, provider, usd=1.0, tokens=10**6, ledger=ledger, said=lines, failures=100, retries=3
    )
    assert {asker.ask(question(n, n)).outcome for n in range(70)} == {"failed"}
    assert asker.failures == {"no_client": 70} and provider.asked == []
    assert (asker.budget.usd, asker.budget.tokens, ledger.used()) == (0.0, 0, 0)
    assert asker.counts["provider_calls"] == 0
    assert len(lines) == 1 and "ALL_PROXY" in lines[0]
    provider.ready = True
    assert asker.ask(question(70, 70)).outcome == "answered"
    assert ledger.used() == asker.counts["provider_calls"] == 1


def test_a_bug_before_sending_costs_nothing_either(tmp_path: Path) -> None:
    provider = Unready()
    provider.prepare = lambda: [][1]  # type: ignore[method-assign]
    asker = make_asker(tmp_path, provider, usd=1.0)
    assert asker.ask(question()).outcome == "failed"
    assert asker.failures == {"bug_IndexError": 1} and asker.budget.usd == 0.0


# secrets that come back


def test_a_key_that_an_adviser_echoes_reaches_no_file_and_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = 'MARKED"\\é-0123456789'
    monkeypatch.setenv("SOME_API_KEY", key)
    escaped = "".join(f"\\u{ord(c):04x}" for c in key)
    for number, word in enumerate((key, escaped, json.dumps(key)[1:-1])):
        lines, folder = list[str](), tmp_path / str(number)
        said = [
            LEFT.replace('"why": ""', f'"why": "it is {word}"'),
            ProviderError("http_400", f"the key {key} is wrong"),
            RuntimeError(f"with {key}"),
            f"{word} {LEFT}",
        ]
        cache = AnswerCache(folder / "answers.sqlite", lines.append)
        asker = make_asker(folder, FakeProvider(said), said=lines, cache=cache, retries=0, failures=2)
        asked = [asker.ask(question(n, n)) for n in range(4)]
        assert len({one.outcome for one in asked}) > 1 and lines
        cache.close()
        shown = [repr(asked), repr(asker.state_dict()), *lines]
        shown += [path.read_bytes().decode("latin-1") for path in folder.iterdir()]
        for text in shown:
            assert "MARKED" not in text and "\\u004d\\u0041" not in text, text


@pytest.mark.parametrize("seed", range(6))
def test_resumed_from_any_moment_it_ends_as_the_uninterrupted_run(seed: int, tmp_path: Path) -> None:
    """Random questions, failures, retries, cache hits, limits and breaker; a checkpoint before every step."""
    draw = random.Random(seed)
    numbers = [draw.randrange(12) for _ in range(40)]
    kinds = [LEFT, LEFT, plan("left"), "junk", *map(ProviderError, ("http_400", "overloaded", "timeout"))]

    def script(asked: Any) -> Any:
        return random.Random(asked.prompt).choice(kinds)

    options: dict[str, Any] = {"total": 25, "usd": 1.5, "failures": 3, "pause": 5, "retries": 1}
    make_asker(tmp_path / "other", FakeProvider(script), cache=cached(tmp_path)).ask(question(3))

    def play(asker: Asker, start: int) -> list[Any]:
        asked = [asker.ask(question(n, step)) for step, n in enumerate(numbers[start:], start)]
        return [(one.outcome, one.answer) for one in asked]

    asker = make_asker(tmp_path, FakeProvider(script), cache=cached(tmp_path), **options)
    states, whole = [], []
    for step, number in enumerate(numbers):
        states.append(json.loads(json.dumps(asker.state_dict())))
        one = asker.ask(question(number, step))
        whole.append((one.outcome, one.answer))
    assert len({outcome for outcome, _ in whole}) > 2
    journal = (tmp_path / "llm.jsonl").read_bytes()
    for moment in draw.sample(range(40), 12):
        provider = FakeProvider(script)
        again = resumed(states[moment], tmp_path, provider, cache=cached(tmp_path), **options)
        assert play(again, moment) == whole[moment:]
        assert again.state_dict() == asker.state_dict()
        assert provider.asked == []
    assert (tmp_path / "llm.jsonl").read_bytes() == journal


# the sweep's ledger


def test_a_used_up_ledger_is_met_once_and_stored_answers_still_come(tmp_path: Path) -> None:
    make_asker(tmp_path / "a", FakeProvider(), cache=cached(tmp_path)).ask(question(7))
    ledger, provider = SweepLedger(tmp_path / "ledger.sqlite", 2), FakeProvider()
    asker = make_asker(tmp_path / "b", provider, total=9, ledger=ledger, cache=cached(tmp_path))
    outcomes = [asker.ask(question(n, n)).outcome for n in (0, 1, 2, 3, 7)]
    assert outcomes == ["answered", "answered", "sweep_budget", "sweep_budget", "answered"]
    assert (len(provider.asked), asker.counts["provider_calls"], ledger.used()) == (2, 2, 2)


def test_every_try_takes_a_call_of_the_ledger(tmp_path: Path) -> None:
    ledger = SweepLedger(tmp_path / "ledger.sqlite", 2)
    provider = FakeProvider([ProviderError("overloaded")])
    asker = make_asker(tmp_path, provider, ledger=ledger, retries=5)
    assert asker.ask(question()).outcome == "sweep_budget"
    assert (len(provider.asked), ledger.used(), asker.failures) == (2, 2, {"overloaded": 2})


def test_a_broken_ledger_lets_nothing_out_and_stops_nothing(tmp_path: Path) -> None:
    ledger, provider, lines = SweepLedger(tmp_path / "ledger.sqlite", 9), FakeProvider(), []
    (tmp_path / "ledger.sqlite").unlink()
    asker = make_asker(tmp_path, provider, ledger=ledger, said=lines)
    assert asker.ask(question()).outcome == "failed"
    assert asker.failures == {"ledger_error": 1} and provider.asked == []
    assert len(lines) == 1 and "ledger.sqlite" in lines[0]


def test_a_locked_ledger_holds_nobody_past_the_deadline(tmp_path: Path) -> None:
    ledger, provider = SweepLedger(tmp_path / "ledger.sqlite", 9), FakeProvider()
    asker = make_asker(tmp_path, provider, ledger=ledger, timeout_s=0.3)
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert asker.ask(question()).outcome == "failed"
    assert time.monotonic() - started < 2.0
    assert asker.failures == {"ledger_error": 1} and provider.asked == []
    other.execute("ROLLBACK")
    other.close()


def test_an_answer_between_two_looks_at_one_step_is_replayed_between_them(
    tmp_path: Path, gate: threading.Event
) -> None:
    """An episode's last row and the next one's first have the same env_step where one environment runs."""
    asker = make_asker(tmp_path, FakeProvider(gate=gate), wait=False)
    start = asker.state_dict()
    assert asker.collect_arrival(9) is None
    asker.ask(question(0, 9))
    assert asker.collect_arrival(10) is None
    gate.set()
    answer = arrive(asker, 10).answer
    again = resumed(start, tmp_path, FakeProvider(), wait=False)
    assert again.collect_arrival(9) is None
    assert again.ask(question(0, 9)).outcome == "waiting"
    assert again.collect_arrival(10) is None
    asked = again.collect_arrival(10)
    assert asked is not None and asked.answer == answer


FORK = multiprocessing.get_context("fork")


def job(folder: Path, number: int, die_at: int = 0) -> None:
    """One run of a sweep: asks until the ledger refuses; each call is a byte in the file `calls`."""
    calls = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    draw, made = random.Random(number), 0

    def answer(asked: Any) -> str:
        nonlocal made
        made += 1
        if made == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(calls, b".")
        time.sleep(draw.random() * 0.004)
        return LEFT

    ledger = SweepLedger(folder / "ledger.sqlite", 100)
    asker = make_asker(folder / str(number), FakeProvider(answer), ledger=ledger)
    step = 0
    while asker.ask(question(step, step)).outcome == "answered":
        step += 1


def sweep(jobs: list[Callable[[], Any]]) -> list[int | None]:
    children = [FORK.Process(target=each) for each in jobs]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    return [child.exitcode for child in children]


def calls(folder: Path) -> int:
    return (folder / "calls").stat().st_size


def test_eight_runs_on_one_ledger_of_100_make_exactly_100_calls(tmp_path: Path) -> None:
    assert sweep([lambda n=n: job(tmp_path, n) for n in range(8)]) == [0] * 8
    assert calls(tmp_path) == 100
    assert sweep([lambda n=n: job(tmp_path, n) for n in range(8)]) == [0] * 8  # resumed: served, none sent
    assert calls(tmp_path) == 100
    sent = [json.loads(line)["sent"] for file in tmp_path.glob("*/llm.jsonl") for line in file.open()]
    assert sum(sent) == 100


@pytest.mark.parametrize("kills", [1, 5])
def test_killed_runs_lose_at_most_a_call_each_also_when_resumed(kills: int, tmp_path: Path) -> None:
    codes = sweep([lambda n=n: job(tmp_path, n, die_at=3 + n if n < kills else 0) for n in range(8)])
    killed = sum(code == -signal.SIGKILL for code in codes)
    assert killed >= 1
    assert 100 - killed <= calls(tmp_path) <= 100
    before = calls(tmp_path)
    assert sweep([lambda n=n: job(tmp_path, n) for n in range(8)]) == [0] * 8
    assert calls(tmp_path) == before
    assert Counter(codes)[0] == 8 - killed


def test_runs_killed_and_resumed_while_calls_are_left(tmp_path: Path) -> None:
    assert sweep([lambda n=n: job(tmp_path, n, die_at=4) for n in range(8)]) == [-signal.SIGKILL] * 8
    assert calls(tmp_path) == 24
    assert sweep([lambda n=n: job(tmp_path, n) for n in range(8)]) == [0] * 8
    assert calls(tmp_path) == 100 - 8

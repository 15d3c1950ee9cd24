"""When to ask and what to follow: the decision list, each reason by itself, whole runs taken up again."""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import shutil
import statistics
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.llm.asking.test_asker import BAD_TEXT, cached
from tests.llm.fakes import ACTIONS, LEFT, FakeProvider, make_asker, plan, policy, records, reply, room

from lore.base.errors import BadInput
from lore.base.types import SOURCES, GridState, Prior, Thing
from lore.config.options import EnvOptions
from lore.envs import make_vec
from lore.envs.remembered_map import MapMemory
from lore.llm.asking.controller import FLOOR, AskLimits, LLMController
from lore.llm.asking.ledger import SweepLedger
from lore.llm.asking.triggers import Triggers
from lore.llm.prompt import plan_key
from lore.llm.providers import FAILURES, ProviderError

KEY, BALL = Thing("key", "yellow"), Thing("ball", "red")
NO_LIMITS = AskLimits(None, None, use_triggers=False)
LEARNED = (0.0, 0.75, 0.25, 0.0, 0.0, 0.0, 0.0)


def make(
    folder: Path,
    provider: FakeProvider,
    limits: AskLimits = NO_LIMITS,
    triggers: Triggers | None = None,
    num_envs: int = 1,
    privileged: Any = None,
    **options: Any,
) -> LLMController:
    asker = make_asker(folder, provider, **options)
    triggers = triggers or Triggers(0.1, 2.0, 0)
    return LLMController(asker, triggers, limits, ACTIONS, num_envs, 50, privileged)


def step(controller: LLMController, state: GridState, env_step: int = 0, **options: Any) -> str:
    """One decision about one environment: its outcome."""
    before = Counter(controller.outcomes)
    controller.advise([state], env_step, **options)
    (outcome,) = (controller.outcomes - before).elements()
    return outcome


def place(number: int, step: int = 1, **things: Any) -> GridState:
    """Situations of one kind of key each."""
    return room(mission=f"go on {number}", step=step, **things)


def same(a: Prior, b: Prior) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def is_none(prior: Prior) -> bool:
    """No advice: constant logits, nothing masked, confidence and source 0."""
    flat = bool((prior.logits == prior.logits[:, :1]).all())
    return flat and bool(prior.mask.all()) and not prior.confidence.any() and not prior.source.any()


# what comes out


def test_a_policy_becomes_floored_logits_a_mask_a_confidence_and_a_source(tmp_path: Path) -> None:
    controller = make(tmp_path, FakeProvider([policy(0.75, left=3.0, forward=1.0)]))
    assert step(controller, place(0)) == "answered"
    prior = controller.advise([place(0)], 1)
    shares = torch.tensor([[0.75, 0, 0.25, 0, 0, 0, 0]])
    assert torch.allclose(prior.logits.exp(), (1 - FLOOR) * shares + FLOOR / 7)
    assert prior.mask.all()  # an action without a weight is advised against, not banned
    assert (prior.confidence.tolist(), prior.source.tolist()) == ([0.75], [SOURCES.index("answer")])
    assert (prior.logits.dtype, prior.mask.dtype, prior.confidence.dtype, prior.source.dtype) == (
        torch.float32,
        torch.bool,
        torch.float32,
        torch.uint8,
    )


def test_a_learned_policy_is_named_as_such(tmp_path: Path) -> None:
    controller = make(tmp_path, FakeProvider())
    prior = controller.advise([place(0)], 0, learned=[LEARNED])
    assert prior.source.tolist() == [SOURCES.index("prior_net")]
    assert prior.confidence.tolist() == [0.75] and prior.logits.argmax().item() == 1


def test_each_environment_has_advice_of_its_own(tmp_path: Path) -> None:
    script = {"go on 0": LEFT, "go on 1": "junk", "go on 2": plan("right", 0.25)}
    controller = make(tmp_path, FakeProvider(lambda asked: script[asked.state.mission]), num_envs=3)
    prior = controller.advise([place(n) for n in range(3)], 0)
    assert prior.source.tolist() == [SOURCES.index(name) for name in ("answer", "none", "plan")]
    assert prior.logits.argmax(-1).tolist()[::2] == [0, 1]
    assert prior.confidence.tolist() == [0.5, 0.0, 0.25]
    assert controller.outcomes == {"answered": 2, "failed": 1}


# the decision list

ORDER = [
    "plan",
    "quiet",
    "prior_net",
    "latch",
    "cooldown",
    "success_cooldown",
    "useless",
    "budget",
    "breaker",
]


@pytest.mark.parametrize("lifted", range(len(ORDER) + 1))
def test_reasons_come_in_the_order_of_the_specification(lifted: int, tmp_path: Path) -> None:
    """Every reason not to ask holds, but for those before `lifted`; the first that holds is the outcome."""
    holds = set(ORDER[lifted:])
    provider = FakeProvider([plan("goto(ball)"), LEFT])
    triggers, options = Triggers(1.0, 2.0, 0), {"total": 1, "failures": 1, "pause": 1000}
    controller = make(tmp_path, provider, AskLimits(50, 50), triggers, **options)
    asker = controller.asker
    assert asker is not None
    assert step(controller, room({(1, 1): BALL}, "go on 9"), 0) == "answered"
    kind = plan_key(room({}, "go on 9"))
    controller.end_episode(True, 1 if "success_cooldown" in holds else -100)
    if "budget" not in holds:
        asker.budget._total = 2
    if "breaker" in holds:
        asker.breaker.record_failure(1, "timeout")
    if "plan" not in holds:
        controller._slots[0].follower.running = False
    if "quiet" in holds:
        controller.triggers.novelty.visit(kind)
    if "cooldown" not in holds:
        controller._last_ask = -100
    if "useless" not in holds:
        controller.answers.clear()
    state = room({(1, 1): BALL} if "plan" in holds else {}, "go on 9")
    if "plan" not in holds and "useless" in holds:
        (answer,) = set(controller.answers.values())  # a plan for this state too, that leads nowhere
        controller.answers = {kind: answer}
    outcome = step(
        controller,
        state,
        10,
        learned=[LEARNED if "prior_net" in holds else None],
        latched=["latch" not in holds],
    )
    assert outcome == (ORDER[lifted] if lifted < len(ORDER) else "answered")
    assert len(provider.asked) == 1 + (lifted == len(ORDER))


@pytest.mark.parametrize("name", ["novelty", "td_error", "plateau", "boundary"])
def test_each_trigger_alone_makes_it_ask_and_is_named(name: str, tmp_path: Path) -> None:
    controller = make(tmp_path, FakeProvider(["junk"]), AskLimits(0, 0), Triggers(1.0, 2.0, 4))
    triggers, state = controller.triggers, place(0)
    if name != "novelty":
        triggers.novelty.visit("go on 0|nothing|")
        assert step(controller, state) == "quiet"
    errors = None
    if name == "td_error":
        for error in (0.1, -0.1, 0.1):
            triggers.surprise.observe(error)
        assert step(controller, state, td_error=[0.15]) == "quiet"
        errors = [3.0]
    if name == "plateau":
        for _ in range(4):
            controller.end_episode(False, 0)
    assert step(controller, place(0, step=0 if name == "boundary" else 1), 1, td_error=errors) == "failed"
    assert controller.triggers_fired == {name: 1}
    assert controller.asker is not None
    assert [record["trigger"] for record in records(controller.asker)] == [name]


def test_novelty_asks_in_the_first_hundred_visits_and_not_after(tmp_path: Path) -> None:
    controller = make(tmp_path, FakeProvider(["junk"]), AskLimits(0, 0))
    assert [step(controller, place(0), n) for n in range(120)] == ["failed"] * 100 + ["quiet"] * 20


@pytest.mark.parametrize("status", ["done", "impossible"])
def test_a_plan_that_ends_is_a_boundary_and_counted_once(status: str, tmp_path: Path) -> None:
    """It leads to the ask that follows, for the kind of situation in which it ended."""
    provider = FakeProvider([plan("pickup(ball)"), LEFT])
    controller = make(tmp_path, provider, AskLimits(0, 0), Triggers(1.0, 2.0, 0))
    here, after = room({(1, 0): BALL}), room(carrying=BALL) if status == "done" else room()
    assert step(controller, here, 0) == "answered"
    assert controller.advise([here], 1).source.tolist() == [SOURCES.index("plan")]
    controller.triggers.novelty.visit(plan_key(after))
    fired = Counter(controller.triggers_fired)
    assert step(controller, after, 2) == "answered"
    assert controller.triggers_fired - fired == {"boundary": 1}
    assert controller.plans == {status: 1}


def test_a_plan_that_cannot_run_is_tried_once_a_step(tmp_path: Path) -> None:
    """And not asked about again: the answer would be the same."""
    controller = make(tmp_path, FakeProvider([plan("goto(ball)")]), AskLimits(0, 0), Triggers(0.0, 2.0, 0))
    state = place(0)
    assert step(controller, state, 0) == "answered"
    assert controller.plans == {"impossible": 1}
    assert [step(controller, state, n) for n in (1, 2)] == ["useless"] * 2
    assert controller.plans == {"impossible": 3}


def test_an_episode_that_begins_ends_the_plan_of_the_one_before(tmp_path: Path) -> None:
    controller = make(tmp_path, FakeProvider([plan("left; left; left"), policy(forward=1.0)]))
    controller.advise([place(0)], 0)
    prior = controller.advise([place(1, step=0)], 1)
    assert prior.logits.argmax().item() == ACTIONS.index("forward")


def test_a_plan_serves_all_of_its_kind_and_a_policy_its_own_state(tmp_path: Path) -> None:
    here, there = (room({cell: KEY}) for cell in ((1, 1), (2, 0)))
    for text, asks in ((plan("pickup(key)"), 1), (LEFT, 2)):
        provider = FakeProvider([text])
        controller = make(tmp_path / str(asks), provider)
        for n, state in enumerate((here, there, here, there)):
            controller.advise([state], n)
            assert not is_none(controller.advise([state], n))
        assert len(provider.asked) == asks


def test_without_limits_it_asks_whenever_nothing_covers_the_state(tmp_path: Path) -> None:
    provider = FakeProvider(lambda asked: LEFT)
    controller = make(tmp_path, provider)
    for n in range(6):
        controller.triggers.novelty.visits[f"go on {n}|nothing|"] = 10**6
    outcomes = [step(controller, place(n % 6), n) for n in range(12)]
    assert outcomes == ["answered"] * 6 + ["answer"] * 6
    assert controller.asker is not None
    assert records(controller.asker)[0]["trigger"] == "uncovered"


# where advice may not act


def test_where_advice_may_not_act_nothing_is_asked_and_what_is_known_is_still_said(tmp_path: Path) -> None:
    provider = FakeProvider([plan("pickup(ball)"), LEFT])
    controller = make(tmp_path, provider, AskLimits(0, 0), num_envs=2)
    here = room({(1, 0): BALL})
    prior = controller.advise([here, place(5)], 0, may_ask=[False, False])
    assert is_none(prior) and controller.outcomes == {"unadvised": 2} and not provider.asked
    assert controller.advise([here, place(5)], 1, may_ask=[True, False]).source.tolist() == [1, 0]
    prior = controller.advise([here, here], 2, may_ask=[False, False])
    assert prior.source.tolist() == [SOURCES.index("plan")] * 2
    assert prior.logits.argmax(-1).tolist()[0] == prior.logits.argmax(-1).tolist()[1]
    assert len(provider.asked) == 1


def test_the_distilled_network_is_not_heard_where_advice_may_not_act(tmp_path: Path) -> None:
    controller = make(tmp_path, FakeProvider())
    assert is_none(controller.advise([place(0)], 0, learned=[LEARNED], may_ask=[False]))
    assert controller.advise([place(0)], 1, learned=[LEARNED], may_ask=[True]).source.tolist() == [3]


def test_the_corrupted_share_is_that_of_steps_at_which_advice_may_act(tmp_path: Path) -> None:
    script = {"go on 0": LEFT, "go on 1": policy(right=1.0)}
    provider = FakeProvider(lambda asked: script[asked.state.mission])
    controller = make(tmp_path, provider, is_corrupted=lambda plan_key: "go on 0" in plan_key)
    assert math.isnan(controller.metrics()["llm/corrupted_share"])
    for n, (number, acts) in enumerate([(0, True), (1, True), (1, True), (0, False), (0, False), (1, False)]):
        assert controller.advise([place(number)], n, may_ask=[acts]).source.item() > 0
    assert controller.metrics()["llm/corrupted_share"] == pytest.approx(1 / 3)


# cooldown


@pytest.mark.parametrize("span", [1, 7, 200])
@pytest.mark.parametrize("text", [LEFT, "junk"])
def test_the_cooldown_ends_at_its_step(text: str, span: int, tmp_path: Path) -> None:
    controller = make(tmp_path, FakeProvider([text]), AskLimits(span, None), Triggers(0.0, 2.0, 0))
    asked = [n for n in range(3 * span + 1) if step(controller, place(n), 10 + n) in ("answered", "failed")]
    assert asked == [0, span, 2 * span, 3 * span]


@pytest.mark.parametrize("span", [1, 7, 500])
def test_the_cooldown_after_a_success_ends_at_its_step(span: int, tmp_path: Path) -> None:
    controller = make(tmp_path, FakeProvider(["junk"]), AskLimits(None, span), Triggers(0.0, 2.0, 0))
    controller.end_episode(False, 5)
    assert step(controller, place(0), 5) == "failed"
    controller.end_episode(True, 5)
    outcomes = [step(controller, place(0), 5 + n) for n in range(span + 2)]
    assert outcomes == ["success_cooldown"] * span + ["failed"] * 2


@pytest.mark.parametrize("why", ["budget", "breaker", "sweep_budget"])
def test_what_was_not_asked_starts_no_cooldown(why: str, tmp_path: Path) -> None:
    ledger = SweepLedger(tmp_path / "ledger.sqlite", 0) if why == "sweep_budget" else None
    options: dict[str, Any] = {"total": 0 if why == "budget" else 99, "ledger": ledger, "failures": 1}
    controller = make(tmp_path, FakeProvider(), AskLimits(50, None), Triggers(0.0, 2.0, 0), **options)
    assert controller.asker is not None
    if why == "breaker":
        controller.asker.breaker.record_failure(0, "timeout")
    assert [step(controller, place(n), n) for n in range(3)] == [why] * 3


def test_budget_total_ends_the_asking(tmp_path: Path) -> None:
    provider = FakeProvider()
    controller = make(tmp_path, provider, total=3)
    assert [step(controller, place(n), n) for n in range(6)] == ["answered"] * 3 + ["budget"] * 3
    assert controller.metrics()["llm/budget_remaining"] == 0 and len(provider.asked) == 3
    assert step(controller, place(1), 9) == "answer"


# failures


FAILED = [
    *((kind, ProviderError(kind)) for kind in FAILURES),
    *BAD_TEXT.items(),
    ("bug_ZeroDivisionError", ZeroDivisionError()),
]


@pytest.mark.parametrize(("kind", "said"), FAILED)
def test_a_failure_gives_no_advice_and_is_charged_as_documented(kind: str, said: Any, tmp_path: Path) -> None:
    controller = make(
        tmp_path, FakeProvider([said, LEFT]), AskLimits(5, None), Triggers(0.0, 2.0, 0), total=9, retries=0
    )
    prior = controller.advise([place(0)], 0)
    assert is_none(prior) and controller.outcomes == {"failed": 1}
    assert controller.asker is not None and controller.asker.budget.asks == 1
    row = controller.metrics()
    assert row[f"llm/failure/{kind}"] == 1
    assert (row["llm/calls_used"], row["llm/budget_remaining"]) == (1, 8)
    assert [step(controller, place(0), n) for n in range(1, 6)] == ["cooldown"] * 4 + ["answered"]


def test_the_breaker_pauses_asking_and_says_so_once(tmp_path: Path) -> None:
    lines: list[str] = []
    provider = FakeProvider([ProviderError("http_401")])
    controller = make(tmp_path, provider, failures=3, pause=20, said=lines)
    outcomes = [step(controller, place(n), n) for n in range(22)]
    assert outcomes == ["failed"] * 3 + ["breaker"] * 19 and len(lines) == 1
    assert step(controller, place(22), 22) == "failed" and len(lines) == 2


# in the background


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def settle(controller: LLMController) -> None:
    """Wait until the thread that asks has brought something."""
    asker, end = controller.asker, time.monotonic() + 10
    assert asker is not None
    while asker._open is not None and not asker._result and time.monotonic() < end:
        time.sleep(0.0005)


def test_the_environment_does_not_wait_and_the_answer_is_used_when_it_is_there(
    tmp_path: Path, gate: threading.Event
) -> None:
    controller = make(tmp_path, FakeProvider(gate=gate), wait=False)
    outcomes = [step(controller, place(n), n) for n in range(3)]
    assert outcomes == ["waiting", "busy", "busy"]
    gate.set()
    settle(controller)
    assert step(controller, place(0), 3) == "answer"


def test_a_question_that_is_not_sent_starts_no_cooldown(tmp_path: Path, gate: threading.Event) -> None:
    """An answer that takes longer than the cooldown does not put the next ask off."""
    controller = make(
        tmp_path, FakeProvider(gate=gate), AskLimits(5, None), Triggers(0.0, 2.0, 0), wait=False
    )
    outcomes = [step(controller, place(n), n) for n in range(8)]
    assert outcomes == ["waiting"] + ["cooldown"] * 4 + ["busy"] * 3
    gate.set()
    settle(controller)
    assert step(controller, place(8), 8) in ("waiting", "answered")


def test_a_privileged_provider_sees_what_it_is_asked_about(tmp_path: Path, gate: threading.Event) -> None:
    """Not the one that the environment has moved on to; others see nothing."""
    now, seen = [["left"]], []

    class Oracle(FakeProvider):
        privileged = True

        def ask(self, request: Any) -> Any:
            gate.wait(10)
            seen.append(request.privileged())
            return reply(LEFT)

    controller = make(tmp_path, Oracle(), privileged=lambda i: now[i], wait=False)
    controller.advise([place(0)], 0)
    now[0] = ["right"]
    gate.set()
    settle(controller)
    assert seen == [["left"]]
    plain = FakeProvider()
    make(tmp_path / "plain", plain, privileged=lambda i: now[i]).advise([place(0)], 0)
    assert plain.asked[0].privileged is None


def test_steps_on_corrupted_advice_are_counted_wherever_the_answer_comes_from(tmp_path: Path) -> None:
    """A plan is counted as its answer is, also where it leads to another kind; learned advice never is."""
    wrong = {plan_key(place(0)), plan_key(place(1))}
    script = {"go on 0": LEFT, "go on 1": plan("left; left; left"), "go on 2": plan("goto(goal)")}
    controller = make(
        tmp_path,
        FakeProvider(lambda asked: script[asked.state.mission]),
        is_corrupted=lambda key: key in wrong,
    )
    assert math.isnan(controller.metrics()["llm/corrupted_share"])
    counts = []
    for number, mission in enumerate((0, 0, 1, 2, 2)):  # weights twice, a plan that goes on in another kind
        controller.advise([place(mission, step=number + 1)], number)
        counts.append((controller.followed["all"], controller.followed["corrupted"]))
    assert counts == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]
    controller.advise([place(2, step=0)], 6)  # an episode begins: no way to a goal, so no advice
    controller.advise([place(3, step=1)], 7, learned=[LEARNED])
    assert controller.followed == {"all": 5, "corrupted": 5}
    assert controller.metrics()["llm/corrupted_share"] == 1.0


def test_a_checkpoint_from_before_corruption_says_that_nothing_was_corrupted(tmp_path: Path) -> None:
    controller = make(tmp_path, FakeProvider([plan("left; left; left")]))
    controller.advise([place(0)], 0)
    state = json.loads(json.dumps(controller.state_dict()))
    del state["followed"]
    state["slots"] = [slot[:5] for slot in state["slots"]]
    state["answers"] = {key: stored[:4] for key, stored in state["answers"].items()}
    again = make(tmp_path, FakeProvider([LEFT]))
    again.load_state_dict(state)
    again.advise([place(0, step=2)], 1)
    assert again.followed == {"all": 1, "corrupted": 0} and again.metrics()["llm/corrupted_share"] == 0.0


# whole runs, and taken up again


@dataclass(frozen=True)
class Step:
    """What a run met at one step, all that its controller is told."""

    states: list[GridState]
    env_step: int
    td_error: list[float]
    latched: list[bool]
    learned: list[tuple[float, ...] | None]
    successes: list[bool]


@dataclass(frozen=True)
class Run:
    folder: Path
    seed: int
    wait: bool
    steps: list[Step]
    states: list[dict[str, Any]]
    journal_bytes: list[int]
    priors: list[Prior]
    outcomes: list[Counter[str]]
    end: dict[str, Any]


STEPS = 160
PROGRAMS = (
    "pickup(key); toggle(locked door); goto(goal)",
    "pickup(key)",
    "explore until visible(goal)",
    "toggle(door)",
    "left; forward",
    "goto(blue ball)",
    "repeat 3 { left }; forward",
)


def script(asked: Any) -> Any:
    """Good plans, poor ones, weights, and failures: the same for the same question."""
    draw = random.Random(asked.prompt)
    kind = draw.random()
    if kind < 0.45:
        return plan(draw.choice(PROGRAMS), draw.random())
    if kind < 0.7:
        return policy(draw.random(), **{name: draw.random() for name in draw.sample(ACTIONS, 3)})
    return draw.choice([*BAD_TEXT.values(), *map(ProviderError, FAILURES), KeyError("a bug")])


def is_corrupted(plan_key: str) -> bool:
    return zlib.crc32(plan_key.encode()) % 2 == 0


def controller_of(folder: Path, seed: int, wait: bool, provider: FakeProvider) -> LLMController:
    limits = (NO_LIMITS, AskLimits(5, 25), AskLimits(0, 0), AskLimits(15, None))[seed]
    total, usd = ((None, None), (None, 3.0), (5, None), (40, 0.7))[seed]
    options: dict[str, Any] = {"failures": (1, 2, 2, 2)[seed], "pause": 12, "retries": 1, "wait": wait}
    options["is_corrupted"] = is_corrupted
    triggers = Triggers((0.2, 0.2, 0.5, 0.1)[seed], 2.0, 4)
    return make(folder, provider, limits, triggers, 2, cache=cached(folder), total=total, usd=usd, **options)


def warm(folder: Path, seed: int) -> None:
    """Another run's answers to some of the questions, in the cache."""
    controller = make(folder / "other", FakeProvider(script), num_envs=2, cache=cached(folder))
    envs = make_vec(EnvOptions(max_steps=30), "symbolic", 2, seed, split="train", remember=True)
    draw = random.Random(seed)
    envs.reset()
    for number in range(25):
        controller.advise(envs.states(), number)
        envs.step(np.array([draw.randrange(7) for _ in range(2)]))


def record_run(folder: Path, seed: int, wait: bool) -> Run:
    """A run on DoorKey that mostly follows its advice, with a checkpoint before every step."""
    warm(folder, seed)
    gate = threading.Event()
    provider = FakeProvider(script, gate=None if wait else gate)
    controller = controller_of(folder, seed, wait, provider)
    envs = make_vec(EnvOptions(max_steps=30), "symbolic", 2, seed, split="train", remember=True)
    draw = random.Random(seed)
    run = Run(folder, seed, wait, [], [], [], [], [], {})
    envs.reset()
    for number in range(STEPS):
        successes = [episode.success for episode in envs.pop_episodes()]
        learned = [LEARNED if draw.random() < 0.05 else None for _ in range(2)]
        latched = [number < STEPS - 3 and draw.random() < 0.9 for _ in range(2)]
        errors = [draw.choice([draw.gauss(0, 1), math.nan]) for _ in range(2)]
        run.steps.append(Step(envs.states(), envs.transitions, errors, latched, learned, successes))
        run.states.append(controller.state_dict())
        run.journal_bytes.append((folder / "llm.jsonl").stat().st_size)
        prior = play(controller, run.steps[-1])
        run.priors.append(prior)
        run.outcomes.append(Counter(controller.outcomes))
        follow = [draw.random() < 0.85 and bool(source) for source in prior.source]
        best = prior.logits.argmax(-1).tolist()
        envs.step(np.array([best[i] if follow[i] else draw.randrange(7) for i in range(2)]))
        if draw.random() < 0.3 or number >= STEPS - 3:
            gate.set()
            if draw.random() < 0.7 or number >= STEPS - 3:  # else it races with the next step, as in life
                settle(controller)
                gate.clear()
        else:
            gate.clear()
    gate.set()
    run.end.update(controller.state_dict())
    return run


def play(controller: LLMController, told: Step) -> Prior:
    for success in told.successes:
        controller.end_episode(success, told.env_step)
    return controller.advise(told.states, told.env_step, told.td_error, told.latched, told.learned)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    return [record_run(folder / f"{seed} {wait}", seed, wait) for seed in range(4) for wait in (True, False)]


def test_the_recorded_runs_meet_everything(runs: list[Run]) -> None:
    """Else the tests below show little."""
    outcomes = sum((run.outcomes[-1] for run in runs), Counter())
    assert outcomes.keys() >= {
        *("plan", "answer", "prior_net", "quiet", "latch", "cooldown", "success_cooldown", "useless"),
        *("answered", "failed", "budget", "breaker", "waiting", "busy"),
    }
    assert all(sum(run.outcomes[-1].values()) == 2 * STEPS for run in runs)
    pending = [state["asker"]["pending"] is not None for run in runs for state in run.states]
    assert sum(pending) > 50
    assert not any(state["asker"]["pending"] for run in runs if run.wait for state in run.states)
    assert any(any(step.successes) for run in runs for step in run.steps)
    repeated = [a.env_step == b.env_step for run in runs for a, b in itertools.pairwise(run.steps)]
    assert any(repeated)  # both episodes ended at once
    assert sum(run.end["asker"]["counts"]["cached"] for run in runs) > 5
    assert all(0 < run.end["followed"]["corrupted"] < run.end["followed"]["all"] for run in runs)


def again(
    run: Run, moment: int, folder: Path, journal: bytes, gate: threading.Event | None = None
) -> tuple[LLMController, FakeProvider]:
    """New objects, the journal on disk, a checkpoint that went through torch.save as plain data."""
    shutil.rmtree(folder, ignore_errors=True)
    warm(folder, run.seed)
    (folder / "llm.jsonl").write_bytes(journal)
    provider = FakeProvider(script, gate=gate)
    controller = controller_of(folder, run.seed, run.wait, provider)
    file = io.BytesIO()
    torch.save(run.states[moment], file)
    file.seek(0)
    controller.load_state_dict(torch.load(file, weights_only=True))
    return controller, provider


def compare(controller: LLMController, run: Run, moment: int, stop: int = STEPS) -> None:
    for number in range(moment, stop):
        prior = play(controller, run.steps[number])
        assert same(prior, run.priors[number]), number
        assert controller.outcomes == run.outcomes[number], number


SHARED = [HealthCheck.function_scoped_fixture]
SETTINGS = settings(deadline=None, max_examples=40, suppress_health_check=SHARED)


def test_a_checkpoint_of_any_moment_is_loaded_whole(runs: list[Run], tmp_path: Path) -> None:
    for run in runs:
        journal = (run.folder / "llm.jsonl").read_bytes()
        controller, _ = again(run, 0, tmp_path / "again", journal)
        for state in run.states[::9]:
            controller.load_state_dict(json.loads(json.dumps(state)))
            assert controller.state_dict() == json.loads(json.dumps(state))


@SETTINGS
@given(st.integers(0, 7), st.integers(0, STEPS - 1))
def test_a_run_taken_up_at_any_moment_decides_and_pays_as_the_uninterrupted_one(
    runs: list[Run], tmp_path: Path, which: int, moment: int
) -> None:
    run = runs[which]
    journal = (run.folder / "llm.jsonl").read_bytes()
    controller, provider = again(run, moment, tmp_path / "again", journal)
    compare(controller, run, moment)
    assert controller.state_dict() == run.end
    assert provider.asked == []
    assert (tmp_path / "again" / "llm.jsonl").read_bytes() == journal


@SETTINGS
@given(st.integers(0, 3), st.integers(0, STEPS - 1), st.integers(0, STEPS - 1))
def test_a_run_killed_after_a_checkpoint_goes_on_as_if_it_had_not_been(
    runs: list[Run], tmp_path: Path, seed: int, moment: int, killed: int
) -> None:
    """The journal ends where the run was killed; from there on the provider is asked again."""
    run, moment, killed = runs[2 * seed], min(moment, killed), max(moment, killed)
    journal = (run.folder / "llm.jsonl").read_bytes()
    kept = journal[: run.journal_bytes[killed]]
    controller, provider = again(run, moment, tmp_path / "again", kept)
    compare(controller, run, moment, killed)
    assert provider.asked == []
    compare(controller, run, killed)
    ours, theirs = (strip(state) for state in (controller.state_dict(), run.end))
    assert ours == theirs
    sent = [json.loads(line)["sent"] for line in journal[len(kept) :].splitlines()]
    assert len(provider.asked) == sum(sent)


@SETTINGS
@given(st.integers(0, 3), st.integers(0, STEPS - 1), st.integers(0, STEPS - 1))
def test_a_run_killed_while_it_asked_in_the_background_repeats_all_that_it_journaled(
    runs: list[Run], tmp_path: Path, seed: int, moment: int, killed: int
) -> None:
    """A question of before the checkpoint whose answer never came is lost: one more failure, nothing else."""
    run, moment, killed = runs[2 * seed + 1], min(moment, killed), max(moment, killed)
    journal = (run.folder / "llm.jsonl").read_bytes()[: run.journal_bytes[killed]]
    gate = threading.Event()
    controller, provider = again(run, moment, tmp_path / "again", journal, gate)
    if run.states[moment]["asker"]["pending"] and len(journal) == run.journal_bytes[moment]:
        play(controller, run.steps[moment])
        assert controller.asker is not None
        assert controller.asker.failures - Counter(run.states[moment]["asker"]["failures"]) == {"lost": 1}
        assert controller.asker.budget.asks <= run.states[moment]["asker"]["budget"]["asks"] + 1
    else:
        compare(controller, run, moment, killed)
        assert len(provider.asked) <= 3  # one question with its retries, the one under way then
    gate.set()


def strip(state: dict[str, Any]) -> dict[str, Any]:
    """Without the clock: seconds, and with them the length of the journal's lines."""
    asker = {k: v for k, v in state["asker"].items() if k not in ("latency_s", "journal")}
    return state | {"asker": asker}


def test_a_journal_of_another_run_is_refused_by_name(runs: list[Run], tmp_path: Path) -> None:
    run, other = runs[0], runs[2]
    journal = (other.folder / "llm.jsonl").read_bytes()
    controller, _ = again(run, 0, tmp_path / "again", journal)
    with pytest.raises(BadInput, match=r"again/llm\.jsonl"):
        compare(controller, run, 0)


# cost


def test_map_keys_and_decision_cost_half_a_millisecond_a_step(tmp_path: Path) -> None:
    """In a state that a plan covers. Processor time of the median step, with room for a slow machine."""
    world = gym.make("MiniGrid-DoorKey-8x8-v0", disable_env_checker=True)
    controller, draw, times = make(tmp_path, FakeProvider([plan(PROGRAMS[0])])), random.Random(0), []
    raw, _ = world.reset(seed=0)
    memory = MapMemory(world.unwrapped.max_steps)
    state = memory.reset(raw["image"], int(raw["direction"]), raw["mission"])
    for number in range(300):
        action = draw.choice(("left", "right", "forward"))
        raw, *_ = world.step(ACTIONS.index(action))
        started = time.thread_time()
        state = memory.step(action, raw["image"], int(raw["direction"]))
        controller.advise([state], number)
        times.append(time.thread_time() - started)
    assert controller.outcomes["plan"] > 250
    assert statistics.median(times) < 1.5e-3, f"{1e3 * statistics.median(times):.3f} ms"


def test_without_the_latch_among_its_limits_it_asks_whatever_the_gate_says(tmp_path: Path) -> None:
    for use_latch, outcome in ((True, "latch"), (False, "answered")):
        folder = tmp_path / str(use_latch)
        folder.mkdir()
        controller = make(folder, FakeProvider())
        controller.limits = AskLimits(None, None, use_triggers=True, use_latch=use_latch)
        controller.advise([place(0)], 0, latched=[False])
        assert controller.outcomes == {outcome: 1}


def test_the_cooldown_status_is_the_steps_that_are_left_of_it(tmp_path: Path) -> None:
    controller = make(tmp_path, FakeProvider())
    controller.limits = AskLimits(10, 50)
    assert controller.metrics()["llm/cooldown_status"] == 0
    controller.advise([place(0)], 100)
    assert controller.metrics()["llm/cooldown_status"] == 10
    controller.advise([place(1)], 107)
    assert controller.metrics()["llm/cooldown_status"] == 3
    controller.end_episode(True, 107)
    assert controller.metrics()["llm/cooldown_status"] == 50
    controller.advise([place(1)], 200)
    assert controller.metrics()["llm/cooldown_status"] == 10  # it asked

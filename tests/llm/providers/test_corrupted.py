"""Corrupted advisers: what is made wrong, where, and that it is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import runs
from tests.llm.fakes import ACTIONS, FakeProvider, plan, policy, request, room
from tests.llm.follow import follow

from lore.base.errors import BadInput
from lore.base.types import GridState, Thing
from lore.config.ablations import arm_name
from lore.config.compose import compose
from lore.config.options import LLMOptions
from lore.llm.answer import BadAnswer, parse_answer
from lore.llm.plans.language import COLORS, parse
from lore.llm.providers import CorruptedProvider, ProviderError, Request, build_provider
from lore.llm.providers.corrupted import KINDS
from lore.llm.providers.recorded import SHIPPED_FOLDER, RecordedAnswersProvider
from lore.llm.providers.recorded_files import load
from lore.llm.providers.scripted import IDLE

DOORKEY = "MiniGrid-DoorKey-5x5-v0"
TASKS = sorted(path.name for path in (SHIPPED_FOLDER / "claude").iterdir())
THINGS = [
    Thing(kind, color, "locked" if kind == "door" else "")
    for kind in ("key", "ball", "box", "door")
    for color in COLORS
]
ALONE = ["agent=prior", "llm=recorded_claude", f"env.id={DOORKEY}", "env.actions=all", "env.max_steps=60"]
HALF = ["llm.corruption=0.5"]


def spoiled(
    text: str, kind: str, seed: int = 0, state: GridState | None = None, corruption: float = 1.0
) -> Any:
    """What becomes of an answer: the parsed one."""
    provider = CorruptedProvider(FakeProvider([text]), corruption, kind, seed)
    return parse_answer(provider.ask(request(state or room())).text, ACTIONS)


def seed_of(rule: str) -> int:
    return next(s for s in range(100) if CorruptedProvider(FakeProvider(), 1.0, "systematic", s).rule == rule)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
def test_every_shipped_answer_becomes_another_that_can_be_followed(task: str, kind: str) -> None:
    data, seen = load(SHIPPED_FOLDER / "claude" / task), set()
    for number, prompt in enumerate(data.prompts.values()):
        thing = THINGS[number % len(THINGS)]
        state = room(
            {(1, 0): thing, (2, 2): THINGS[5 * number % len(THINGS)]}, carrying=thing if number % 3 else None
        )
        asked = Request(data.header.system, prompt.prompt, state, prompt.key, prompt.plan_key, ACTIONS, 512)
        text = data.answers[prompt.id].text
        for seed in range(3):
            inner = FakeProvider([text])
            wrong = parse_answer(CorruptedProvider(inner, 1.0, kind, seed).ask(asked).text, ACTIONS)
            right = parse_answer(text, ACTIONS)
            assert wrong.plan is not None and wrong.plan != right.plan
            assert (wrong.confidence, wrong.why) == (right.confidence, right.why)
            seen.add(str(wrong.plan) == str(right.plan))
    assert seen == {False}


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 100), min_size=7, max_size=7).filter(lambda w: sum(w) > 0),
    st.sampled_from(KINDS),
    st.integers(0, 50),
)
def test_weights_become_other_weights(weights: list[float], kind: str, seed: int) -> None:
    text = policy(0.5, **dict(zip(ACTIONS, weights, strict=True)))
    wrong = spoiled(text, kind, seed)
    assert wrong.plan is None and wrong.weights != parse_answer(text, ACTIONS).weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("program", [IDLE, "explore", "goto(goal)", "left", "repeat 2 { forward }"])
def test_plans_of_one_step_have_a_wrong_one_too(program: str, kind: str) -> None:
    for seed in range(20):
        wrong = spoiled(plan(program), kind, seed).plan
        assert str(wrong) != str(parse(program))


def test_the_longest_plans_stay_plans() -> None:
    """Colors make a plan longer than a plan may be: then another way is taken."""
    program = "; ".join(["toggle(locked door)"] * 90)
    state = room({(1, 0): Thing("door", "yellow", "locked")})
    assert all(spoiled(plan(program), kind, seed, state).plan for kind in KINDS for seed in range(10))


def test_each_systematic_rule_does_what_it_says() -> None:
    state = room({(1, 0): Thing("key", "red"), (2, 0): Thing("door", "red", "locked")})
    text = plan("pickup(key); left; toggle(locked door); goto(green ball)")
    colors = str(spoiled(text, "systematic", seed_of("colors"), state).plan)
    named = [word for word in colors.replace("(", " ").split() if word in COLORS]
    assert len(named) == 3 and named[0] == named[1] != "red" and named[2] != "green"
    shift = COLORS.index(named[0]) - COLORS.index("red")
    assert named[2] == COLORS[(COLORS.index("green") + shift) % len(COLORS)]
    sides = str(spoiled(text, "systematic", seed_of("sides"), state).plan)
    assert sides == "pickup(key); right; toggle(locked door); goto(green ball)"
    last = str(spoiled(text, "systematic", seed_of("last"), state).plan)
    assert last == "pickup(key); left; toggle(locked door)"
    mirrored = spoiled(policy(left=3, right=1), "systematic", seed_of("sides")).weights
    assert mirrored == (0.25, 0.75, 0, 0, 0, 0, 0)
    assert str(spoiled(plan("goto(goal)"), "systematic", seed_of("colors")).plan) == IDLE


def test_a_random_corruption_is_drawn_among_all_ways() -> None:
    text = plan("pickup(key); toggle(locked door); goto(goal)")
    state = room({(1, 0): Thing("key", "red")}, mission="get to the goal")
    found = {str(spoiled(text, "random", seed, state).plan) for seed in range(200)}
    assert "pickup(key); toggle(locked door)" in found and "toggle(locked door); goto(goal)" in found
    assert any(IDLE in program for program in found)
    others = {
        program for program in found if program.startswith("pickup(") and program.endswith("goto(goal)")
    }
    assert others == {f"pickup({c} key); toggle(locked door); goto(goal)" for c in COLORS if c != "red"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_larger_shares_hold_smaller_ones(kind: str) -> None:
    def wrong(corruption: float, seed: int) -> set[str]:
        provider = CorruptedProvider(FakeProvider(), corruption, kind, seed)
        return {f"kind {i}" for i in range(2000) if provider.corrupts(f"kind {i}")}

    assert wrong(0.3, 1) == wrong(0.3, 1) != wrong(0.3, 2)
    assert wrong(0.3, 1) < wrong(0.6, 1) < wrong(1.0, 1) and len(wrong(1.0, 1)) == 2000
    assert abs(len(wrong(0.3, 1)) / 2000 - 0.3) < 0.04
    text = plan("pickup(key); toggle(locked door); goto(goal)")
    assert spoiled(text, kind, 4) == spoiled(text, kind, 4)
    assert len({str(spoiled(text, kind, seed, room({(1, 0): THINGS[0]})).plan) for seed in range(20)}) > 1


def test_failures_and_unusable_answers_stay_what_they_are() -> None:
    for said in ("I would rather not", plan(""), plan("fly(key)")):
        assert CorruptedProvider(FakeProvider([said]), 1.0, "random", 0).ask(request(room())).text == said
        with pytest.raises(BadAnswer):
            spoiled(said, "random")
    with pytest.raises(ProviderError, match="missing"):
        CorruptedProvider(FakeProvider([ProviderError("missing")]), 1.0, "random", 0).ask(request(room()))


def test_no_corruption_is_the_adviser_itself_and_each_corruption_another_one() -> None:
    options = {"dataset": f"lore:claude/{DOORKEY}"}
    assert type(build_provider(LLMOptions("recorded", **options), 3)) is RecordedAnswersProvider
    names = {build_provider(LLMOptions("recorded", **options), 3).identity()}
    for corruption in (0.25, 0.5):
        for kind in KINDS:
            for seed in range(2):
                changed = LLMOptions("recorded", corruption=corruption, corruption_kind=kind, **options)
                provider = build_provider(changed, seed)
                assert (provider.name, provider.model, provider.paid) == ("recorded", "claude", False)
                names.add(provider.identity())
    assert len(names) == 9


def test_a_provider_is_prepared_and_priced_as_without() -> None:
    class Careful(FakeProvider):
        prepared = 0

        def prepare(self) -> None:
            self.prepared += 1

    inner = Careful()
    provider = CorruptedProvider(inner, 1.0, "random", 0)
    provider.prepare()
    assert inner.prepared == 1 and provider.max_cost_usd(request(room())) == 0.05 and provider.paid
    assert not hasattr(CorruptedProvider(FakeProvider(), 1.0, "random", 0), "prepare")


@pytest.mark.parametrize(
    ("given", "key"),
    [("llm.corruption=1.5", "llm.corruption"), ("llm.corruption=-0.1", "llm.corruption"),
     ("llm.corruption_kind=some", "llm.corruption_kind")],
)  # fmt: skip
def test_impossible_corruptions_are_refused_by_key(given: str, key: str) -> None:
    with pytest.raises(BadInput) as refused:
        compose([given])
    assert refused.value.key == key


def test_the_arm_says_corrupted() -> None:
    assert arm_name(compose(["+ablation=D", "llm=recorded_claude", *HALF])) == "D-recorded-corrupted"
    assert arm_name(compose(HALF)) == "E-corrupted"
    assert arm_name(compose(["agent=prior", "llm=recorded_claude", *HALF])) == "recorded-corrupted"
    assert arm_name(compose(["+ablation=A", *HALF])) == "A"


def test_an_adviser_that_is_always_wrong_does_not_solve_the_task() -> None:
    for kind in KINDS:
        options = LLMOptions(
            "recorded", dataset=f"lore:claude/{DOORKEY}", corruption=1.0, corruption_kind=kind
        )
        assert follow(DOORKEY, build_provider(options, seed=1), episodes=10).rate < 0.5


def told(folder: Path) -> Any:
    return runs.summary(folder)["adviser"]


@pytest.fixture(scope="module")
def half(finished_run: Any) -> Path:
    """Advised right and wrong."""
    return finished_run(*ALONE, *HALF, "seed=3")


def test_a_run_counts_what_was_corrupted(half: Path, finished_run: Any) -> None:
    none, whole = finished_run(*ALONE, "seed=3"), finished_run(*ALONE, "llm.corruption=1", "seed=3")
    about = {"provider": "recorded", "model": "claude", "dataset": f"lore:claude/{DOORKEY}"}
    assert told(none) == {**about, "corruption": 0.0, "corruption_kind": None, "corrupted_share": 0.0}
    assert told(whole) == {**about, "corruption": 1.0, "corruption_kind": "random", "corrupted_share": 1.0}
    assert 0 < told(half)["corrupted_share"] < 1
    shares = [row["llm/corrupted_share"] for row in runs.rows(half) if "llm/corrupted_share" in row]
    assert shares[-1] == told(half)["corrupted_share"] and len(set(shares)) > 2
    provider = build_provider(compose([*ALONE, *HALF, "seed=3"]).llm, 3)
    asks = runs.rows(half, "llm.jsonl")
    assert isinstance(provider, CorruptedProvider)
    assert {provider.corrupts(ask["plan_key"]) for ask in asks} == {True, False}
    clean = {ask["plan_key"]: ask["text"] for ask in runs.rows(none, "llm.jsonl")}
    same = {
        ask["plan_key"]: ask["text"] == clean[ask["plan_key"]] for ask in asks if ask["plan_key"] in clean
    }
    assert same == {key: not provider.corrupts(key) for key in same} and len(same) > 1


def test_without_an_adviser_nobody_is_named(finished_run: Any) -> None:
    assert told(finished_run("gate=none")) is None


def test_a_run_taken_up_again_counts_on(half: Path, tmp_path: Path) -> None:
    for stop in (7, 50, 90):
        folder = runs.run(tmp_path / str(stop), *ALONE, *HALF, "seed=3", stop_at=stop)
        runs.run(folder, *ALONE, *HALF, "seed=3")
        assert told(folder) == told(half)
        assert runs.rows(folder, "episodes.jsonl") == runs.rows(half, "episodes.jsonl")


def test_answers_from_the_cache_are_counted_alike(half: Path, tmp_path: Path) -> None:
    cache = f"llm.cache={tmp_path / 'answers.sqlite'}"
    for name in ("first", "second"):
        folder = runs.run(tmp_path / name, *ALONE, *HALF, "seed=3", cache)
        assert told(folder) == told(half)
    assert all(ask["cached"] for ask in runs.rows(folder, "llm.jsonl"))
    clean = runs.run(tmp_path / "clean", *ALONE, "seed=3", cache)
    assert not any(ask["cached"] for ask in runs.rows(clean, "llm.jsonl"))


def test_a_learner_is_advised_by_corrupted_answers_too(finished_run: Any) -> None:
    fixed = ("+ablation=B", "gate.beta=3")
    right, wrong = finished_run(*fixed), finished_run(*fixed, "llm.corruption=1")
    assert (told(right)["corrupted_share"], told(wrong)["corrupted_share"]) == (0.0, 1.0)
    assert runs.summary(wrong)["arm"] == "B-corrupted"
    assert runs.rows(right, "episodes.jsonl") != runs.rows(wrong, "episodes.jsonl")

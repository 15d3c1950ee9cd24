"""Trials: every change of phase, the cap, the horizon, exact resume, and what is not trusted in an input."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lore.base.errors import BadInput
from lore.config.compose import compose
from lore.config.options import TrialOptions
from lore.training import paired
from lore.training.evidence import Case
from lore.training.paired import GRADUATED, HARMFUL, ON_TRIAL, OUTGROWN, SHOWN, Paired
from lore.training.trial import STAGES, Always, Coin, JumpStart, Trial, build_trial


class Alternating(random.Random):
    """Draws below and above every share in turn: advised, not, advised, ..."""

    def __init__(self, first: bool = True) -> None:
        super().__init__(0)
        self.turn = not first

    def random(self) -> float:
        self.turn = not self.turn
        return 0.0 if self.turn else 0.999


def make(name: str = "paired", envs: int = 1, rng: random.Random | None = None, **options) -> Trial:
    options = {"cap": 1.0, "horizon": None} | options
    return build_trial(TrialOptions(name=name, **options), envs, rng or Alternating(), (0.0, 1.0))


def make_paired(envs: int = 1, rng: random.Random | None = None, **options) -> Paired:
    trial = make("paired", envs, rng, **options)
    assert isinstance(trial, Paired)
    return trial


def run(trial: Trial, return_: float, steps: int = 1, env: int = 0) -> list[str]:
    """One whole episode of `steps` steps, whoever advises it."""
    trial.begin(env)
    for _ in range(steps):
        trial.step(env)
    return trial.end(env, return_, return_ > 0)


def play(trial: Trial, advised: float, unaided: float, until: str | None = None, episodes: int = 200) -> int:
    """Episodes with these returns until a phase is reached; the number of them."""
    for i in range(episodes):
        if isinstance(trial, Paired) and trial.phase == until:
            return i
        on = trial.begin(0)
        trial.step(0)
        trial.end(0, advised if on else unaided, (advised if on else unaided) > 0)
    assert until is None
    return episodes


def shown() -> Paired:
    trial = make_paired()
    play(trial, 1.0, 0.0, until=SHOWN)
    return trial


def graduated() -> Paired:
    trial = shown()
    play(trial, 1.0, 1.0, until=GRADUATED)
    return trial


def outgrown() -> Paired:
    """Advice goes on to succeed at 0.6 of the return, above the level of a decline; the agent does better."""
    trial = shown()
    for _ in range(500):
        if trial.phase == OUTGROWN:
            return trial
        on = trial.begin(0)
        trial.step(0)
        trial.end(0, 0.6 if on else 1.0, not on)
    raise AssertionError(trial.phase)


def harmful() -> Paired:
    trial = make_paired()
    play(trial, 0.0, 1.0, until=HARMFUL)
    return trial


def on_trial_again() -> Paired:
    trial = shown()
    play(trial, 0.0, 0.0, until=ON_TRIAL)
    return trial


def test_a_trial_begins_without_trust_and_ends_with_a_verdict_of_benefit() -> None:
    trial = make_paired()
    assert (trial.phase, trial.trust, trial.share) == (ON_TRIAL, 0.0, 0.5)
    told: list[str] = []
    while trial.phase == ON_TRIAL:
        told += run(trial, float(trial.count % 2 == 0))
    assert trial.case.benefit.value >= 40 > trial.case.harm.value
    assert (trial.phase, trial.trust, trial.share) == (SHOWN, 1.0, 0.5)
    assert len(told) == 1 and f"benefit shown after {trial.count} episodes" in told[0]
    assert trial.summary()["verdicts"] == [[trial.count, SHOWN]]
    assert trial.metrics()["trial/phase"] == 1.0


def test_advice_that_harms_is_barred_for_good() -> None:
    trial = harmful()
    assert (trial.phase, trial.trust, trial.share) == (HARMFUL, 0.0, 0.0)
    play(trial, 1.0, 0.0, episodes=300)
    assert trial.phase == HARMFUL and trial.tally.episodes_advised < 20


def test_a_verdict_of_harm_stops_advice_in_episodes_that_run() -> None:
    trial = make_paired(envs=2)
    assert trial.begin(1)
    trial.step(1)
    trial.rng = Alternating(first=False)
    while trial.phase == ON_TRIAL:
        on = trial.begin(0)
        trial.step(0)
        trial.end(0, float(not on), not on)
        assert trial.case.harm.value == 1.0 or trial.phase == HARMFUL, "the bet of the first comes first"
        if trial.count == 20:
            assert trial.acts(1)
            trial.end(1, 0.0, False)
            break
    assert trial.phase == HARMFUL


def test_an_agent_that_matches_its_adviser_graduates_and_trust_fades() -> None:
    trial = shown()
    episodes = play(trial, 1.0, 1.0, until=GRADUATED)
    assert episodes == 40  # 20 of each since the verdict
    assert (trial.trust, trial.share) == (1.0, 0.05)
    trial.begin(0)
    for half_lives in (1, 2, 3):
        for _ in range(1000):
            trial.step(0)
        assert trial.trust == pytest.approx(0.5**half_lives)


def test_a_graduate_whose_success_falls_is_advised_again() -> None:
    trial = graduated()
    trial.rng = random.Random(0)
    for fall in range(1, 5):
        while trial.begin(0):
            trial.end(0, 1.0, True)
        trial.step(0)
        assert trial.phase == GRADUATED
        told = trial.end(0, 0.0, False)
        assert bool(told) == (fall == 4)  # 4 of 20
    assert (trial.phase, trial.trust, trial.trial) == (SHOWN, 1.0, 1)
    trial.rng = Alternating()
    assert play(trial, 1.0, 1.0, until=GRADUATED) == 40


def test_an_adviser_that_turns_is_on_trial_again_with_all_evidence_anew() -> None:
    trial = on_trial_again()
    assert (trial.phase, trial.trust, trial.trial) == (ON_TRIAL, 0.0, 2)
    assert trial.case == Case.begun(0.05)
    play(trial, 1.0, 0.0, until=SHOWN)
    assert trial.case.benefit.value >= 2 * 3 / 0.05


def test_an_adviser_below_the_agent_is_outgrown() -> None:
    trial = outgrown()
    assert (trial.trust, trial.share) == (0.0, 0.0)
    assert [verdict for _, verdict in trial.verdicts] == [SHOWN, OUTGROWN]


def test_an_adviser_that_still_succeeds_is_not_punished_for_a_better_agent() -> None:
    """Advised 0.97, alone 1.0: within eps, so the adviser is left in honour, never barred."""
    trial = shown()
    for _ in range(400):
        on = trial.begin(0)
        trial.step(0)
        trial.end(0, 0.97 if on else 1.0, True)
    assert trial.phase == GRADUATED


def test_bets_are_settled_in_the_order_in_which_episodes_began() -> None:
    """Whatever the order of their ends: the same wealth, once all have ended."""
    values = {}
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        trial = make_paired(envs=3)
        for env in range(3):
            trial.begin(env)
        for env in order:
            trial.step(env)
            if env != order[0]:
                settled = 0 if order[0] else 1
                assert (trial.case.benefit.value != 1.0) == (settled == 1) or env == order[2]
            trial.end(env, (0.9, 0.1, 0.4)[env], True)
        values[order] = trial.case.benefit.value
        assert not trial.queue
    assert len(set(values.values())) == 1


def test_what_a_bet_depends_on_is_fixed_at_the_beginning() -> None:
    """A neighbour that ends later moves the centre of episodes that begin later, not of this one."""
    trial = make_paired(envs=2, horizon=3.0)
    trial.begin(0)
    trial.begin(1)
    trial.step(0)
    trial.end(0, 1.0, True)
    running = trial.running[1]
    assert running is not None and (running.centre, running.horizon) == (0.0, math.inf)
    trial.begin(0)
    later = trial.running[0]
    assert later is not None and (later.centre, later.horizon) == (0.5, 3)


def test_while_nothing_succeeds_only_the_cap_acts() -> None:
    trial = make_paired(rng=random.Random(0), cap=0.2, horizon=4.0)
    for _ in range(300):
        run(trial, 0.0, steps=5)
        assert trial.case.benefit.value <= 1 and trial.case.harm.value <= 1
        assert trial.case.advised_steps <= 0.2 * trial.case.steps + 5
    assert trial.phase == ON_TRIAL and trial.tally.episodes_advised > 50


def test_an_episode_without_a_draw_has_no_bet() -> None:
    trial = make_paired(cap=0.2)
    run(trial, 1.0, steps=10)
    value = trial.case.benefit.value
    assert trial.share == 0.0 and not trial.begin(0)
    trial.step(0)
    trial.end(0, 0.0, False)
    assert trial.case.benefit.value == value and not trial.queue


def test_after_the_horizon_an_unaided_episode_counts_as_failed_and_is_handed_over() -> None:
    trial = make_paired(horizon=2.0)
    run(trial, 1.0, steps=3)  # advised: the horizon is 6 from now on
    assert not trial.begin(0)
    for _ in range(6):
        assert not trial.acts(0) and trial.handed_over(0) is None
        trial.step(0)
    assert trial.case.off.count == 0  # it might have succeeded in its sixth step
    assert trial.acts(0) and trial.handed_over(0) == 6
    trial.step(0)
    assert (trial.case.off.count, trial.case.off.value) == (1, 0.0)
    trial.end(0, 0.9, True)
    assert trial.tally.unaided == [False] and trial.metrics()["trial/handovers"] == 1
    assert trial.case.advised_steps == 4 and trial.case.lengths.count == 1


def test_a_success_in_the_last_step_of_the_horizon_counts() -> None:
    trial = make_paired(horizon=2.0)
    run(trial, 1.0, steps=3)
    run(trial, 0.9, steps=6)
    assert trial.case.off.value == 0.9
    assert trial.tally.unaided == [True] and trial.handovers == 0


def test_the_cap_holds_handovers_back() -> None:
    trial = make_paired(horizon=2.0, cap=0.2)
    run(trial, 0.9, steps=4)  # advised, horizon 8
    run(trial, 0.0, steps=20)  # no draw: never handed over
    assert trial.handovers == 0 and trial.tally.advised_steps == 4
    trial.rng = Alternating(first=False)
    trial.case.advised_steps += 10
    trial.case.steps += 38  # 14 of 62
    trial.case.advised_steps -= 2  # 12 of 62: a draw
    assert not trial.begin(0)
    trial.case.advised_steps += 3  # 15 of 62: the room comes back after 13 steps
    for _ in range(13):
        assert not trial.acts(0)
        trial.step(0)
    assert trial.handed_over(0) == 13


def test_on_trial_advice_acts_for_at_most_a_horizon() -> None:
    trial = make_paired(horizon=2.0)
    run(trial, 1.0, steps=3)
    trial.rng = Alternating()
    acted = {}
    for on in (True, False):
        assert trial.begin(0) == on
        acted[on] = []
        for step in range(20):
            if trial.acts(0):
                acted[on].append(step)
            trial.step(0)
        trial.end(0, 0.5, True)
    assert acted == {True: list(range(6)), False: list(range(6, 12))}
    assert trial.tally.advised == [True, False] and trial.tally.unaided == [False]


def test_after_the_verdict_unaided_episodes_are_left_alone() -> None:
    trial = make_paired(horizon=2.0)
    play(trial, 1.0, 0.0, until=SHOWN)
    for _ in range(2):
        on = trial.begin(0)
        for _ in range(50):
            assert trial.acts(0) == on
            trial.step(0)
        trial.end(0, 0.5, True)


def test_returns_are_scaled_and_clipped() -> None:
    trial = build_trial(TrialOptions(name="paired", cap=1.0, horizon=None), 1, Alternating(), (-10.0, 10.0))
    assert isinstance(trial, Paired)
    for return_ in (5.0, -10.0, math.inf, -math.inf, 1e300, -1e300):
        run(trial, return_)
    assert (trial.case.on.total, trial.case.off.total) == (0.75 + 1 + 1, 0.0)
    assert math.isfinite(trial.case.benefit.value)
    trial.begin(0)
    with pytest.raises(ValueError, match="not a number"):
        trial.end(0, math.nan, True)


@pytest.mark.parametrize(
    "bounds", [None, (0.0, math.inf), (-math.inf, 1.0), (1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)]
)
def test_a_task_without_bounds_is_refused(bounds: tuple[float, float] | None) -> None:
    with pytest.raises(BadInput, match="trial: paired compares returns between two finite bounds"):
        build_trial(TrialOptions(name="paired"), 1, random.Random(0), bounds)
    assert isinstance(build_trial(TrialOptions(name="coin"), 1, random.Random(0), bounds), Coin)


def test_episodes_begin_and_end_in_turn() -> None:
    """One that begins twice would keep all later bets waiting."""
    trial = make_paired()
    with pytest.raises(ValueError, match="no episode has begun in environment 0"):
        trial.step(0)
    trial.begin(0)
    with pytest.raises(ValueError, match="environment 0 has not ended"):
        trial.begin(0)


def test_none_always_advises_and_says_nothing() -> None:
    trial = make("none")
    assert isinstance(trial, Always) and trial.begin(0) and trial.acts(0)
    assert run(trial, 1.0) == [] and (trial.metrics(), trial.summary(), trial.state_dict()) == ({}, {}, {})


def test_a_coin_advises_its_share() -> None:
    trial = make("coin", rng=random.Random(0), share=0.3)
    play(trial, 1.0, 0.0, episodes=1000)
    row = trial.metrics()
    assert 250 < row["trial/episodes_advised"] < 350 and row["trial/trust"] == 1.0
    assert row["trial/advised_success"] == 1.0 and row["trial/unaided_success"] == 0.0
    assert make("coin").unaided_success == make("none").unaided_success == 0.0
    run(trial, 1.0)
    while trial.advised[0]:
        run(trial, 1.0)
    assert trial.unaided_success == trial.metrics()["trial/unaided_success"] == 0.05


def test_a_share_of_0_never_advises() -> None:
    for name in ("coin", "paired"):
        trial = make(name, rng=random.Random(0), share=0.0)
        play(trial, 1.0, 0.0, episodes=100)
        assert trial.metrics()["trial/episodes_advised"] == 0


def test_the_jump_start_shortens_while_success_holds() -> None:
    trial = make("jumpstart")
    assert isinstance(trial, JumpStart)
    told = [text for _ in range(20) for text in run(trial, 1.0, steps=30)]
    assert told == ["advice now acts in the first 27 steps of an episode"] and trial.horizon == 27
    trial.begin(0)
    acted = []
    for _ in range(30):
        acted.append(trial.acts(0))
        trial.step(0)
    assert acted == [True] * 27 + [False] * 3
    trial.end(0, 0.0, False)
    for _ in range(19):
        run(trial, 1.0, steps=30)
    assert trial.stage == 2  # 0.95 is within the tolerance of 1.0
    for _ in range(40):
        run(trial, 0.0, steps=30)
    assert trial.stage == 2
    for _ in range(20 * STAGES):
        run(trial, 1.0, steps=30)
    assert trial.stage == STAGES and trial.horizon == 0 and not trial.begin(0) and not trial.acts(0)


def test_the_jump_start_counts_only_what_began_in_the_stage() -> None:
    trial = make("jumpstart", envs=2)
    assert isinstance(trial, JumpStart)
    trial.begin(1)
    for _ in range(20):
        run(trial, 1.0, steps=10)
    trial.step(1)
    trial.end(1, 0.0, False)
    assert trial.stage == 1 and trial.window == []


def script(trial: Trial, world: random.Random, steps: int, lengths: list[int]) -> Iterator[tuple]:
    """Steps of all environments with returns that the world draws; what the trial says to each."""
    for _ in range(steps):
        for env in range(len(lengths)):
            acts = trial.acts(env)
            trial.step(env)
            lengths[env] += 1
            success = world.random() < (0.2 if acts else 0.02)
            if success or lengths[env] >= 20:
                told = trial.end(env, 1 - 0.03 * lengths[env] if success else 0.0, success)
                lengths[env] = 0
                yield told, trial.begin(env), trial.metrics(), trial.summary(), trial.trust
            yield acts, trial.handed_over(env)


@pytest.mark.parametrize("name", ["coin", "jumpstart", "paired"])
@pytest.mark.parametrize("steps", [7, 60, 400, 1500])
def test_a_resumed_trial_goes_on_number_for_number(name: str, steps: int) -> None:
    """In the middle of episodes, four environments; the state survives JSON, so it is plain."""

    def fresh(seed: int) -> Trial:
        return build_trial(TrialOptions(name=name), 4, random.Random(seed), (0.0, 1.0))

    trial, world, lengths = fresh(1), random.Random(2), [0] * 4
    for env in range(4):
        trial.begin(env)
    list(script(trial, world, steps, lengths))
    other, stored = fresh(9), json.loads(json.dumps(trial.state_dict()))
    other.load_state_dict(stored)
    assert json.loads(json.dumps(other.state_dict())) == stored
    twin = random.Random()
    twin.setstate(world.getstate())
    assert list(script(trial, world, 600, list(lengths))) == list(script(other, twin, 600, list(lengths)))
    assert trial.state_dict() == other.state_dict()


@pytest.mark.parametrize("reach", [make_paired, shown, graduated, outgrown, harmful, on_trial_again])
def test_every_phase_is_resumed(reach) -> None:
    trial, other = reach(), make_paired(rng=random.Random(5))
    trial.rng = random.Random(3)
    trial.begin(0)
    trial.step(0)
    other.load_state_dict(json.loads(json.dumps(trial.state_dict())))
    for one in (trial, other):
        one.end(0, 1.0, True)
        world = random.Random(4)
        for _ in range(300):
            run(one, world.random(), steps=2)
    assert trial.state_dict() == other.state_dict() and trial.trust == other.trust


def test_the_options_compose_and_are_checked() -> None:
    assert compose().trial == TrialOptions()
    assert compose(["trial=paired"]).trial == TrialOptions(name="paired")
    for wrong, key in (
        ("trial=pair", "trial"),
        ("trial.alpha=0", "trial.alpha"),
        ("trial.cap=1.5", "trial.cap"),
        ("trial.eps=-1", "trial.eps"),
        ("trial.horizon=0.5", "trial.horizon"),
    ):
        with pytest.raises(BadInput, match=f"^{key}"):
            compose([wrong])
    with pytest.raises(BadInput, match=r"trial\.share"):
        compose(["trial=paired", "trial.share=1"])


def test_the_page_names_every_option_metric_and_phase() -> None:
    page = (Path(__file__).parents[2] / "docs" / "trial.md").read_text(encoding="utf-8")
    options = [f"| `trial.{field.name}` | " for field in dataclasses.fields(TrialOptions)]
    metrics = [f"`{name}`" for name in shown().metrics() | on_trial_again().metrics()]
    phases = [f"| {number} {phase} |" for number, phase in enumerate(paired.PHASES)]
    assert [each for each in (*options, *metrics, *phases) if each not in page] == []
    for field in dataclasses.fields(TrialOptions):
        default = "null" if field.default is None else field.default
        assert re.search(rf"\| `trial\.{field.name}` \| `?{default}`? \|", page), field.name


def test_the_phases_have_their_documented_numbers() -> None:
    assert paired.PHASES == ("on trial", "benefit shown", "graduated", "outgrown", "harmful")
    assert (paired.GRADUATED_SHARE, paired.FALL, paired.HALF_LIFE, paired.DECLINE) == (0.05, 0.2, 1000, 400)

"""Labels of situations are right, scores are what they say, and a probe runs end to end."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lore.base.errors import BadInput
from lore.config.options import EnvOptions, LLMOptions
from lore.envs.make import make_env
from lore.llm.plans.executor import Executor
from lore.llm.plans.language import parse
from lore.llm.prompt import describe, write_system
from lore.llm.providers import PROVIDERS, ProviderError, Reply, build_provider
from lore.studies import probe, probe_report
from lore.studies.labelled_situations import PATIENCE, TooFew, apply_rule, collect, find_subgoal
from lore.studies.probe import ProbeOptions, probe_adviser
from lore.studies.probe_report import Row, brier, ece, figure, interval, measure, yardsticks
from lore.studies.probe_table import print_table

DOORKEY, UNLOCK = "MiniGrid-DoorKey-5x5-v0", "BabyAI-UnlockPickup-v0"
DOORKEY8, ROOMS = "MiniGrid-DoorKey-8x8-v0", "MiniGrid-MultiRoom-N2-S4-v0"
FEW = {"situations": 10, "example_sets": 2, "examples": 2}


class Spy:
    """Notes what it is asked; costs a cent an ask if it is told to; fails where it is told to."""

    name, model, asked = "spy", "spy", []

    def __init__(self, options):
        type(self).asked = []
        self.paid, self.privileged, self.fails = options.paid, options.privileged, options.fails

    def identity(self):
        return "spy"

    def max_cost_usd(self, request):
        return 0.01

    def ask(self, request):
        self.asked.append(request)
        if self.fails:
            raise ProviderError("rate_limited")
        text = '{"why": "", "plan": "left", "policy": null, "confidence": 0.5}'
        return Reply(text, 100, 10, 50, 0.005, 0.25, "end")


class Options:
    corruption = 0.0

    def __init__(self, provider, paid=False, privileged=False, fails=False):
        self.provider, self.paid, self.privileged, self.fails = provider, paid, privileged, fails


@pytest.fixture
def spy(monkeypatch):
    monkeypatch.setitem(PROVIDERS, "spy", f"{__name__}:Spy")
    monkeypatch.setattr(Spy, "asked", [])
    return Spy


def situations_of(env_id, count=12, name="test", **more):
    return collect(make_env(EnvOptions(id=env_id), "symbolic", remember=True), count, 0, name, **more)


@pytest.mark.parametrize("env_id", [DOORKEY, UNLOCK, ROOMS])
def test_labels_are_right(env_id):
    """The labelled plan, carried out alone, begins optimally, leads to the labelled subgoal, and succeeds."""
    for situation in situations_of(env_id):
        plan, env, executor = parse(situation.plan), copy.deepcopy(situation.env), Executor()
        assert find_subgoal(plan, situation) == situation.subgoal
        executor.start(plan, tuple(env.action_names))
        over, info = False, {"raw_reward": 0}
        while not over and (probs := executor.advance(env.state).probs):
            action = env.action_names.index(max(probs, key=probs.__getitem__))
            _, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
        assert info["raw_reward"] > 0, (situation.plan, describe(situation.state))


def test_a_situation_follows_from_its_seed_and_actions():
    env = make_env(EnvOptions(id=UNLOCK), "symbolic", remember=True)
    for situation in situations_of(UNLOCK):
        env.reset(seed=situation.seed)
        for action in situation.actions:
            env.step(env.action_names.index(action))
        assert describe(env.state) == describe(situation.state)


def test_situations_repeat_differ_and_can_be_avoided():
    first, again, other = situations_of(DOORKEY), situations_of(DOORKEY), situations_of(DOORKEY, name="other")
    assert [s.key for s in first] == [s.key for s in again] != [s.key for s in other]
    keys = {s.key for s in first}
    assert len(keys) == len(first) and {s.subgoal for s in first} >= {"key", "door"}
    assert not keys & {s.key for s in situations_of(DOORKEY, name="other", avoid=keys)}


def test_a_world_without_a_goal_is_refused_with_the_reason(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "own_environment"))
    options, env = ProbeOptions(situations=2), EnvOptions(id="my_lab:MyLab-v0")
    with pytest.raises(BadInput, match="only where there is a goal to stand on") as error:
        probe_adviser(options, env, LLMOptions(provider="scripted"), {})
    assert error.value.key == "situations"


def test_a_task_with_few_situations_says_so():
    with pytest.raises(TooFew, match="not 1000"):
        situations_of("MiniGrid-Empty-5x5-v0", 1000)
    assert PATIENCE > 10
    with pytest.raises(BadInput) as error:
        probe_adviser(
            ProbeOptions(situations=1000), EnvOptions(id="MiniGrid-Empty-5x5-v0"), LLMOptions("scripted")
        )
    assert error.value.key == "situations"


def test_a_plan_that_leads_nowhere_has_no_subgoal():
    situation = next(s for s in situations_of(DOORKEY) if s.subgoal == "key")
    assert find_subgoal(parse("left; right; left"), situation) is None
    assert find_subgoal(parse("pickup(key); goto(goal)"), situation) == "key"


def test_the_rule_is_a_yardstick_worth_having():
    found = situations_of(DOORKEY, 30)
    kinds, actions = zip(*(apply_rule(s.state) for s in found), strict=True)
    assert sum(k == s.subgoal for k, s in zip(kinds, found, strict=True)) >= 25
    assert sum(a in s.optimal for a, s in zip(actions, found, strict=True)) >= 22


def test_one_plan_serves_all_of_doorkey_but_not_a_task_with_colors():
    """The executor looks at the world, so the same words are right from the key to the goal."""
    found = {env_id: yardsticks(situations_of(env_id, 20)) for env_id in (DOORKEY8, UNLOCK)}
    doorkey, unlock = (found[env_id]["subgoal"] for env_id in (DOORKEY8, UNLOCK))
    assert doorkey["one_plan"][0] >= 0.9 and doorkey["majority"][0] <= 0.7
    assert unlock["majority"][0] < unlock["one_plan"][0] <= 0.8
    assert found[DOORKEY8]["action"]["one_plan"][0] >= 0.9


def test_calibration_by_hand():
    pairs = np.array([[0.95, 1], [0.95, 0], [0.15, 0], [1.0, 1]])
    assert ece(pairs) == pytest.approx((abs(0.95 + 0.95 + 1.0 - 2) + 0.15) / 4)
    assert brier(pairs) == pytest.approx((0.05**2 + 0.95**2 + 0.15**2) / 4)


def test_the_interval_knows_that_answers_about_one_situation_go_together():
    values = [[1.0], [0.0]] * 10
    alone = interval(np.mean, values)
    fivefold = interval(np.mean, [row * 5 for row in values])
    independent = interval(np.mean, values * 5)
    assert alone == fivefold and alone[0] == 0.5 and alone[1] < 0.35 and alone[2] > 0.65
    assert independent[2] - independent[1] < 0.6 * (alone[2] - alone[1])
    assert interval(np.mean, [[], []]) == []


def test_an_ask_without_advice_is_wrong_but_not_uncalibrated():
    rows = [Row("full", 0, 0, action=1.0, subgoal=1.0, confidence=1.0), Row("full", 0, 1, failure="timeout")]
    found = measure(rows)
    assert found["action"]["accuracy"][0] == found["subgoal"]["accuracy"][0] == 0.5
    assert found["action"]["brier"][0] == 0 and found["failures"] == {"timeout": 1}


def test_oracle_and_uniform_are_the_ends_of_the_scale(capsys):
    found = {}
    for name in ("oracle", "uniform", "none"):
        found[name] = probe_adviser(ProbeOptions(**FEW), EnvOptions(id=DOORKEY), Options(name))
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line) == found["none"]
    action = {name: result["wordings"]["full"]["action"] for name, result in found.items()}
    assert action["oracle"]["accuracy"] == [1.0, 1.0, 1.0] and action["oracle"]["brier"][0] == 0
    assert action["uniform"]["accuracy"] == found["uniform"]["yardsticks"]["action"]["chance"]
    assert found["oracle"]["wordings"]["full"]["subgoal"]["accuracy"] == []
    assert found["none"]["wordings"]["short"]["failures"] == {"no_advice": 20}


def test_a_good_plan_scores_on_both_counts():
    result = probe_adviser(ProbeOptions(**FEW), EnvOptions(id=DOORKEY), LLMOptions("scripted"))["wordings"][
        "full"
    ]
    assert result["subgoal"]["accuracy"][0] >= 0.9 and result["action"]["accuracy"][0] >= 0.8
    assert result["executable"] == [1.0, 1.0, 1.0] and len(result["action"]["by_set"]) == 2


def test_what_is_asked(spy):
    probe_adviser(ProbeOptions(**FEW), EnvOptions(id=DOORKEY), Options("spy"))
    systems = list(dict.fromkeys(request.system for request in spy.asked))
    assert len(spy.asked) == 40 and len(systems) == 4
    names = spy.asked[0].actions
    assert all(s.startswith(write_system(names)) and s.count("\nAction: ") == 2 for s in systems[:2])
    assert len(systems[2]) < len(systems[0]) / 2
    assert all(request.privileged is None for request in spy.asked)
    assert not {r.prompt for r in spy.asked[:20]} & {r.prompt for r in spy.asked[20:]}
    probe_adviser(
        ProbeOptions(situations=3, examples=0), EnvOptions(id=DOORKEY), Options("spy", privileged=True)
    )
    assert len(spy.asked) == 6 and spy.asked[0].system == write_system(names)
    assert set(spy.asked[0].privileged()) <= set(names)


def test_costs_and_failures_are_counted(spy):
    result = probe_adviser(ProbeOptions(**FEW), EnvOptions(id=DOORKEY), Options("spy"))
    assert (result["calls"], result["input_tokens"], result["cached_tokens"]) == (40, 4000, 2000)
    assert result["cost_usd"] == pytest.approx(0.2) and result["latency_s"] == {"median": 0.25, "p95": 0.25}
    failed = probe_adviser(ProbeOptions(**FEW), EnvOptions(id=DOORKEY), Options("spy", fails=True))
    assert failed["wordings"]["full"]["failures"] == {"rate_limited": 20}
    assert failed["wordings"]["full"]["action"]["accuracy"][0] == 0


def test_a_paid_adviser_needs_a_limit_and_keeps_it(spy):
    with pytest.raises(BadInput, match="say how much") as error:
        probe_adviser(ProbeOptions(**FEW), EnvOptions(id=DOORKEY), Options("spy", paid=True))
    assert error.value.key == "budget_usd" and not spy.asked
    limited = ProbeOptions(**FEW, budget_usd=0.0351)
    result = probe_adviser(limited, EnvOptions(id=DOORKEY), Options("spy", paid=True))
    assert len(spy.asked) == result["calls"] == 6 and result["cost_usd"] == pytest.approx(0.03)
    assert result["wordings"]["short"]["failures"] == {"budget": 20}


def test_raw_answers_and_a_figure_are_left_behind(tmp_path):
    pytest.importorskip("matplotlib")
    result = probe_adviser(
        ProbeOptions(**FEW, out=str(tmp_path)), EnvOptions(id=DOORKEY), LLMOptions("scripted", competence=0.5)
    )
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    labels = [json.loads(line) for line in (tmp_path / "situations.jsonl").read_text().splitlines()]
    assert len(answers) == 40 and len(labels) == 10
    assert json.loads((tmp_path / "result.jsonl").read_text()) == result
    assert (tmp_path / "probe.png").read_bytes()[:4] == b"\x89PNG"
    accuracy = np.mean([row["action"] for row in answers if row["wording"] == "full"])
    assert accuracy == pytest.approx(result["wordings"]["full"]["action"]["accuracy"][0], abs=1e-4)


def test_without_matplotlib_the_probe_says_so_before_it_asks(spy, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BadInput, match=r"^out: .*pip install 'lore\[plot\]'"):
        probe_adviser(ProbeOptions(**FEW, out=str(tmp_path)), EnvOptions(id=DOORKEY), Options("spy"))
    assert not spy.asked
    with pytest.raises(BadInput, match=r"^out: .*pip install 'lore\[plot\]'"):
        figure({}, tmp_path / "x.png")


@pytest.mark.parametrize("key", ["situations", "example_sets", "examples", "max_tokens"])
def test_numbers_that_cannot_be_are_refused_by_name(key):
    with pytest.raises(BadInput) as error:
        probe_adviser(ProbeOptions(**{key: -1}), EnvOptions(id=DOORKEY), LLMOptions("scripted"))
    assert error.value.key == key


def test_scripted_stands_where_it_says():
    """The scale's ends: at competence 0 it is no better than guessing the subgoal."""
    result = probe_adviser(ProbeOptions(**FEW), EnvOptions(id=UNLOCK), LLMOptions("scripted", competence=0.0))
    guess = result["yardsticks"]["subgoal"]["chance"][0]
    assert result["wordings"]["full"]["subgoal"]["accuracy"][0] <= guess
    assert build_provider(LLMOptions("scripted")).name == "scripted" and probe_report.BINS == 10


def test_several_advisers_are_asked_about_the_same_situations_and_shown_side_by_side(
    capsys, monkeypatch, tmp_path
):
    """Collected once; a folder each, one table, one figure, one JSON object at the end."""
    from lore.cli.probe import main

    collected = []
    real = probe.collect
    monkeypatch.setattr(probe, "collect", lambda *a, **k: collected.append(a[3]) or real(*a, **k))
    few = [f"{key}={value}" for key, value in FEW.items()]
    assert main(["-m", "llm=oracle,uniform", "env=doorkey5", f"out={tmp_path}", *few]) == 0
    assert collected == ["probe/situations", "probe/examples"]
    lines = capsys.readouterr().out.splitlines()
    last = json.loads(lines[-1])["results"]
    assert list(last) == ["oracle", "uniform"]
    assert sum(line.startswith('{"llm"') for line in lines) == 2
    table = [line for line in lines if line.startswith(("| oracle", "| uniform"))]
    assert len(table) == 4
    assert any(line.startswith("| *chance*") for line in lines)
    assert (tmp_path / f"{DOORKEY}.png").stat().st_size > 5000
    first, second = (tmp_path / f"llm={name}" / "situations.jsonl" for name in last)
    assert first.read_bytes() == second.read_bytes()


def test_a_terminal_shows_a_table_and_json_stays_last(spy, monkeypatch, capsys):
    probed = {"a": probe_adviser(ProbeOptions(**FEW), EnvOptions(id=DOORKEY), Options("spy"))}
    capsys.readouterr()
    print_table(probed, piped=False)
    assert not capsys.readouterr().out
    print_table(probed)
    markdown = capsys.readouterr().out.splitlines()
    assert markdown[0].startswith("| adviser | task |") and len(markdown) == 2 + 4 + 2
    value, low, high = probed["a"]["wordings"]["full"]["action"]["accuracy"]
    assert f"| a | {DOORKEY} | full | {value:.2f} [{low:.2f}, {high:.2f}] |" in "\n".join(markdown)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    result = probe_adviser(ProbeOptions(**FEW), EnvOptions(id=DOORKEY), Options("spy"))
    shown = capsys.readouterr().out.splitlines()
    assert json.loads(shown[-1]) == result
    assert any("adviser" in line and "dollars" in line for line in shown)
    assert any("spy" in line and f"{value:.2f} [{low:.2f}, {high:.2f}]" in line for line in shown)

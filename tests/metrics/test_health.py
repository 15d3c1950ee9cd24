import dataclasses
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lore.config.options import Config, GateOptions, HealthOptions, KLOptions
from lore.metrics.health import RULES, HealthMonitor, Thresholds, monitor

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
HEALTHY = {
    "gradient_steps": 100, "success/windowed": 0.3, "success/cumulative": 0.2, "policy/entropy": 1.2,
    "policy/prob_max": 0.6, "policy/action_histogram": [0.5, 0.5], "loss/actor": -0.01, "loss/obs": 12.0,
    "opt/grad_norm": 120.0, "uncertainty_gate/avg_beta": 0.2, "uncertainty_gate/beta_saturation": 0.7,
    "uncertainty_gate/avg_kl": 0.02, "llm/prior_share": 0.4, "llm/influence_kl": 0.02, "llm/calls_used": 20.0,
    "llm/cache_hit_rate": None, "minigrid/invalid_action_ratio": 0.3,
    "trial/phase": 1.0, "trial/harm_e": 0.1,
}  # fmt: skip
FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "low_entropy": (
        "[WARNING] Low entropy detected: 0.25 < 0.5",
        {"policy/entropy": 0.25, "success/windowed": 0.1},
    ),
    "llm_failure": ("[ERROR] LLM request failed: timeout", {"llm/failure/timeout": 1.0}),
    "beta_saturation": ("[WARNING] Beta saturation: 0.95 > 0.8", {"uncertainty_gate/beta_saturation": 0.95}),
    "nonfinite_loss": (
        "[ERROR] Non-finite loss: loss/actor, loss/obs",
        {"loss/actor": None, "loss/obs": math.inf},
    ),
    "kl_above_target": (
        "[WARNING] KL above target: 0.15 > 0.1 for 10 rows",
        {"uncertainty_gate/avg_kl": 0.15},
    ),
    "no_influence": ("[WARNING] Prior without influence: KL 1e-06 < 0.0001", {"llm/influence_kl": 1e-6}),
    "invalid_actions": (
        "[WARNING] Surge of invalid actions: 0.9 > 0.6",
        {"minigrid/invalid_action_ratio": 0.9},
    ),
    "grad_explosion": ("[WARNING] Gradient explosion: 2500 > 1000", {"opt/grad_norm": 2500.0}),
    "advice_harmful": (
        "[WARNING] Harmful advice: the trial has barred it for the rest of the run",
        {"trial/phase": 4.0, "trial/harm_e": 43.0},
    ),
    "advice_outgrown": (
        "[WARNING] Advice is outgrown: the trial has barred it for the rest of the run",
        {"trial/phase": 3.0, "trial/harm_e": 43.0},
    ),
}
ROWS = {"kl_above_target": 10}  # rows in a row before an alert


def watch(**health: Any) -> HealthMonitor:
    return HealthMonitor(Thresholds(HealthOptions(**health), delta_target=0.1))


def names(watcher: HealthMonitor, *rows: dict[str, Any]) -> list[list[str]]:
    return [[alert.name for alert in watcher.check(step, row)] for step, row in enumerate(rows)]


def test_a_healthy_run_gives_none() -> None:
    watcher = watch()
    evaluation = {"eval/success": 0.1}
    assert not any(names(watcher, {}, {"gradient_steps": 0}, *[HEALTHY, evaluation] * 30))
    assert watcher.counts == {}


@pytest.mark.parametrize("name", [rule.name for rule in RULES])
def test_each_fault_gives_its_alert_once_an_occurrence(name: str) -> None:
    line, fault = FAULTS[name]
    sick, evaluation = {**HEALTHY, **fault}, {"eval/success": 0.0}
    watcher, rows = watch(), ROWS.get(name, 1)
    for repeat in (1, 2):
        for step in range(1, 30):
            alerts = watcher.check(step, sick)
            assert [alert.name for alert in alerts] == ([name] if step == rows else []), step
            if alerts:
                assert alerts[0].line() == line and alerts[0].env_step == step
            assert not watcher.check(step, evaluation)
        assert watcher.counts == {name: repeat}
        if name == "llm_failure":
            break  # a count that grows: see below
        assert not watcher.check(30, HEALTHY)


def test_an_alert_says_cause_and_knob() -> None:
    (alert,) = watch().check(7, {"uncertainty_gate/beta_saturation": 0.95})
    assert (alert.level, alert.name, alert.value, alert.limit) == ("WARNING", "beta_saturation", 0.95, 0.8)
    assert alert.line(verbose=True) == (
        "[WARNING] Beta saturation: 0.95 > 0.8\n"
        "  likely cause: the agent stays unsure, so the gate stays open\n"
        "  knob: gate.beta_max down; gate.tau or gate.warmup_steps up"
    )


def test_a_dead_adviser_costs_a_handful_of_lines() -> None:
    watcher, texts = watch(), []
    for step in range(1, 501):  # five calls in a hundred rows fail in another way
        row = {"llm/failure/timeout": float(step), "llm/failure/http_500": float(step // 20)}
        texts += [alert.text for alert in watcher.check(step, row)]
    assert texts == [
        "LLM request failed: timeout", "LLM request failed: timeout, 10 times so far",
        "LLM request failed: http_500", "LLM request failed: timeout, 100 times so far",
        "LLM request failed: http_500, 10 times so far",
    ]  # fmt: skip
    assert names(watch(), {"llm/failure/timeout": 7.0}, {"llm/failure/timeout": 9.0}) == [["llm_failure"], []]


LOW = {"policy/entropy": 0.3}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (LOW, True),  # nothing has ended yet
        (LOW | {"success/windowed": 0.0, "success/cumulative": 0.0}, True),
        (LOW | {"success/windowed": 0.5, "success/cumulative": 0.6}, True),
        (LOW | {"success/windowed": 0.5, "success/cumulative": 0.4}, False),  # it gets better
        (LOW | {"success/windowed": 0.2, "success/cumulative": 0.2}, False),  # the first twenty episodes
        (LOW | {"success/windowed": 0.9, "success/cumulative": 0.95}, False),
        ({"success/windowed": 0.0}, False),  # learning has not begun
    ],
)
def test_low_entropy_is_no_fault_of_a_policy_that_learns(row: dict[str, Any], told: bool) -> None:
    assert names(watch(), row) == [["low_entropy"] if told else []]


def test_success_that_comes_and_goes_repeats_no_alert() -> None:
    poor = LOW | {"success/windowed": 0.8, "success/cumulative": 0.85}
    good = LOW | {"success/windowed": 0.95, "success/cumulative": 0.85}
    high = poor | {"policy/entropy": 1.0}
    assert names(watch(), poor, good, poor, high, poor) == [["low_entropy"], [], [], [], ["low_entropy"]]


@pytest.mark.parametrize(
    "change",
    [
        {"uncertainty_gate/avg_beta": 0.04},  # the warm-up has just begun, or the gate is nearly shut
        {"uncertainty_gate/avg_beta": 0.0},
        {"llm/prior_share": 0.0},
        {"success/windowed": 0.95},  # it says what the policy does
        {"llm/influence_kl": None},
    ],
)
def test_a_prior_that_should_not_act_is_not_missed(change: dict[str, Any]) -> None:
    row = HEALTHY | {"llm/influence_kl": 1e-6}
    assert names(watch(), row | change, row) == [[], ["no_influence"]]


def test_an_untrained_policy_has_no_surge_of_invalid_actions_and_no_saturated_gate() -> None:
    row = {
        "minigrid/invalid_action_ratio": 0.65,
        "uncertainty_gate/beta_saturation": 0.99,
        "gradient_steps": 0,
    }
    trained = row | {"policy/prob_max": 0.2, "gradient_steps": 10}
    assert names(watch(), row, trained) == [[], ["beta_saturation"]]


@pytest.mark.parametrize("norm", [None, math.nan, math.inf])
def test_a_gradient_without_a_norm(norm: float | None) -> None:
    (alert,) = watch().check(1, {"opt/grad_norm": norm})
    assert alert.line() == "[WARNING] Gradient explosion: the norm is not finite" and alert.value is None


def test_the_kl_has_to_stay_above() -> None:
    above, below = {"uncertainty_gate/avg_kl": 0.1001}, {"uncertainty_gate/avg_kl": 0.1}
    rows = [above, above, below, above, above, above, above]
    assert names(watch(kl_rows=3), *rows) == [[], [], [], [], [], ["kl_above_target"], []]


def test_numbers_show_their_difference() -> None:
    (alert,) = watch().check(1, {"policy/entropy": 0.4999999})
    assert alert.text == "Low entropy detected: 0.4999999 < 0.5"


def test_resumed_in_any_row_it_gives_the_same_alerts() -> None:
    rows = [HEALTHY | FAULTS[rule.name][1] for rule in RULES for _ in range(12)]
    whole = names(watch(), *rows)
    assert {name for row in whole for name in row} == set(FAULTS)
    for cut in range(0, len(rows), 5):
        first, second = watch(), watch()
        before = names(first, *rows[:cut])
        second.load_state_dict(first.state_dict())
        assert before + names(second, *rows[cut:]) == whole
        assert sum(second.counts.values()) == sum(map(len, whole))


def limits(**gate: Any) -> Thresholds:
    watcher = monitor(asdict(Config(gate=GateOptions(**gate), health=HealthOptions(grad_norm=5.0))))
    assert watcher is not None and watcher.limits.health.grad_norm == 5.0
    return watcher.limits


def test_what_a_config_asks_for() -> None:
    assert monitor(asdict(Config(health=HealthOptions(enabled=False)))) is None
    assert limits(kl=KLOptions(delta_target=0.2)).delta_target == 0.2 and limits().adaptive
    free = limits(name="fixed", kl=KLOptions(mode="none"))
    assert free.delta_target is None and not free.adaptive
    row = {"uncertainty_gate/beta_saturation": 1.0, "uncertainty_gate/avg_kl": 3.0}
    assert not any(names(HealthMonitor(free), *[row] * 20))


def keys(options: Any, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        name = prefix + field.name
        found |= {name} | (keys(value, f"{name}.") if dataclasses.is_dataclass(value) else set())
    return found


def test_a_bug_of_a_provider_is_not_blamed_on_its_server() -> None:
    limits = Thresholds(HealthOptions())
    for kind, bug in (("bug_KeyError", True), ("timeout", False)):
        (alert,) = HealthMonitor(limits).check(1, {f"llm/failure/{kind}": 1.0})
        assert (alert.cause == "a bug in the provider") == bug and ("server" in alert.cause) != bug
        assert ("LORE_DEBUG=1" in alert.knob) == bug


def test_the_docs_have_the_rules() -> None:
    table = DOCS.read_text(encoding="utf-8").split("## Health")[1].split("\n## ")[0]
    lines = [
        line.replace("`", "").strip("| ").split(" | ")
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    assert lines == [[rule.name, rule.level, rule.when, rule.cause, rule.knob] for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_knobs_and_limits_are_options(rule: Any) -> None:
    options = keys(Config())
    named = re.findall(
        r"(?<![\w/])(?:agent|explore|env|gate|health|llm)\.[\w.]+|\w+(?==)", rule.knob + " " + rule.when
    )
    assert re.search(r"\b(up|down)\b|=", rule.knob)
    assert {name.rstrip(".") for name in named} <= options and named

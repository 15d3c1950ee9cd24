"""The health monitor: from rows of metrics to alerts. It reports and never changes training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lore.base.types import TRIAL_PHASES
from lore.config.options import HealthOptions

WARNING, ERROR = "WARNING", "ERROR"
SOLVED = 0.9  # success/windowed from which an agent needs neither exploration nor advice
DECIDED = 0.5  # policy/prob_max above which a policy has left the nearly uniform one it starts as
EXPECTED = 10.0  # times the limit on influence: where beta^2 / 2, the KL of advice of variance 1, should show
CONSTANT_GATES = ("none", "fixed", "follow", "hint")  # beta says nothing about the agent
BUG = ("a bug in the provider", "none: mend the provider's code; LORE_DEBUG=1 shows the traceback")
"""Cause and knob of an adviser's failures bug_NAME."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Alert:
    """Something that goes wrong. value and limit: the numbers compared; None for one that is not finite."""

    env_step: int
    level: str  # WARNING | ERROR
    name: str  # of the rule
    value: float | None
    limit: float | None
    text: str
    cause: str
    knob: str

    def line(self, verbose: bool = False) -> str:
        """Write the alert as text for the terminal, such as "[WARNING] Low entropy detected: 0.25 < 0.5".

        Args:
            verbose: Whether to add two lines with the likely cause and the knob.
        """
        line = f"[{self.level}] {self.text}"
        return f"{line}\n  likely cause: {self.cause}\n  knob: {self.knob}" if verbose else line


@dataclass(frozen=True)
class Found:
    """A condition that is met. rows: how many consecutive rows must meet it before an alert is given. cause,
    knob: where they are not those of the rule."""

    text: str
    value: float | None = None
    limit: float | None = None
    rows: int = 1
    cause: str = ""
    knob: str = ""


@dataclass(frozen=True)
class Thresholds:
    """What rows are compared with.

    delta_target: limit on the KL in nats; None where nothing holds the KL to a limit. adaptive: whether the
    gate's beta depends on the agent's uncertainty.
    """

    health: HealthOptions
    delta_target: float | None = None
    adaptive: bool = True


Findings = dict[str, Found | None]
"""What a row says of a rule: occurrence -> Found, or None where all is well. What is not named stays open."""


@dataclass(frozen=True)
class Rule:
    """One line of the table in docs/metrics.md. find: (row, limits) -> findings, without a state."""

    name: str
    level: str
    when: str
    cause: str
    knob: str
    find: Callable[[Row, Thresholds], Findings]


class HealthMonitor:
    """Watches the rows of one run.

    An alert is given when its condition becomes true, or has been true for as many consecutive rows as the
    rule demands. The same alert is given again only after a row in which the condition was false. A row
    without the metrics of a rule changes nothing for that rule. counts: name -> alerts so far.
    """

    def __init__(self, limits: Thresholds) -> None:
        self.limits = limits
        self.counts: dict[str, int] = {}
        self._rows: dict[str, int] = {}  # occurrence -> consecutive rows in which its condition was true

    def check(self, env_step: int, row: Row) -> list[Alert]:
        """Compare the next row with every rule.

        Args:
            env_step: Environment steps so far, for the alerts.
            row: Metric -> value. Any metric may be absent; None stands for a number that was not finite.

        Returns:
            The alerts that this row gives rise to, in the order of RULES.
        """
        alerts = []
        for rule in RULES:
            for occurrence, found in rule.find(row, self.limits).items():
                key = f"{rule.name}/{occurrence}"
                self._rows[key] = self._rows.get(key, 0) + 1 if found else 0
                if found and self._rows[key] == found.rows:
                    advice = (found.cause or rule.cause, found.knob or rule.knob)
                    told = (found.value, found.limit, found.text, *advice)
                    alerts.append(Alert(env_step, rule.level, rule.name, *told))
                    self.counts[rule.name] = self.counts.get(rule.name, 0) + 1
        return alerts

    def state_dict(self) -> dict[str, Any]:
        """Return names and integers, from which a resumed run gives the alerts of the uninterrupted one."""
        return {"counts": dict(self.counts), "rows": dict(self._rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state.

        Args:
            state: What `state_dict` returned.
        """
        self.counts, self._rows = dict(state["counts"]), dict(state["rows"])


def monitor(cfg: Mapping[str, Any]) -> HealthMonitor | None:
    """Make the health monitor of a run.

    Args:
        cfg: The resolved config, as asdict(Config); the groups health and gate are read.

    Returns:
        The monitor; None for health.enabled=false.
    """
    health, gate = HealthOptions(**cfg["health"]), cfg["gate"]
    if not health.enabled:
        return None
    held = gate["kl"]["mode"] != "none"
    adaptive = gate["name"] not in CONSTANT_GATES
    return HealthMonitor(Thresholds(health, gate["kl"]["delta_target"] if held else None, adaptive))


def _number(row: Row, name: str) -> float | None:
    """A finite number, or None: absent, null or not finite."""
    value = row.get(name)
    return float(value) if value is not None and math.isfinite(value) else None


def _compared(value: float, sign: str, limit: float) -> str:
    """E.g. "0.25 < 0.5", with as many digits as show the difference."""
    digits = next((d for d in (4, 7) if f"{value:.{d}g}" != f"{limit:.{d}g}"), 17)
    return f"{value:.{digits}g} {sign} {limit:.{digits}g}"


def _above(words: str, value: float | None, limit: float | None, rows: int = 1) -> Findings:
    if value is None or limit is None:
        return {}
    times = f" for {rows} rows" if rows > 1 else ""
    text = f"{words} {_compared(value, '>', limit)}{times}"
    return {"": Found(text, value, limit, rows) if value > limit else None}


def _below(words: str, value: float | None, limit: float) -> Findings:
    if value is None:
        return {}
    return {"": Found(f"{words} {_compared(value, '<', limit)}", value, limit) if value < limit else None}


def _low_entropy(row: Row, limits: Thresholds) -> Findings:
    found = _below("Low entropy detected:", _number(row, "policy/entropy"), limits.health.entropy_min)
    success, before = _number(row, "success/windowed"), _number(row, "success/cumulative")
    # A policy that learns loses entropy some hundred steps before the window of 20 episodes shows why.
    rising = success is not None and before is not None and 0.0 < success >= before
    taught = bool(_number(row, "teach/weight"))  # a taught policy is meant to be as decided as advice
    excused = taught or rising or (success is not None and success >= SOLVED)
    return {} if excused and any(found.values()) else found


def _llm_failure(row: Row, limits: Thresholds) -> Findings:
    findings: Findings = {}
    for name, count in row.items():
        if name.startswith("llm/failure/") and count:
            kind, n = name.removeprefix("llm/failure/"), int(count)
            text = f"LLM request failed: {kind}" + (f", {n} times so far" if n > 1 else "")
            cause, knob = BUG if kind.startswith("bug_") else ("", "")
            findings[f"{kind}/{10 ** (len(str(n)) - 1)}"] = Found(text, float(n), cause=cause, knob=knob)
    return findings


def _beta_saturation(row: Row, limits: Thresholds) -> Findings:
    if not limits.adaptive or row.get("gradient_steps") == 0:  # an untrained agent is unsure of everything
        return {}
    saturation = _number(row, "uncertainty_gate/beta_saturation")
    return _above("Beta saturation:", saturation, limits.health.beta_saturation)


def _nonfinite_loss(row: Row, limits: Thresholds) -> Findings:
    losses = [name for name in row if name.startswith("loss/")]
    bad = [name for name in losses if _number(row, name) is None]
    return {"": Found(f"Non-finite loss: {', '.join(bad)}") if bad else None} if losses else {}


def _kl_above_target(row: Row, limits: Thresholds) -> Findings:
    kl = _number(row, "uncertainty_gate/avg_kl")
    return _above("KL above target:", kl, limits.delta_target, limits.health.kl_rows)


def _no_influence(row: Row, limits: Thresholds) -> Findings:
    limit = limits.health.influence_kl
    beta = _number(row, "uncertainty_gate/avg_beta") or 0.0
    open_ = beta**2 / 2 >= EXPECTED * limit
    if not (_number(row, "llm/prior_share") and open_ and (_number(row, "success/windowed") or 0.0) < SOLVED):
        return {}
    return _below("Prior without influence: KL", _number(row, "llm/influence_kl"), limit)


def _invalid_actions(row: Row, limits: Thresholds) -> Findings:
    decided = (_number(row, "policy/prob_max") or 0.0) > DECIDED
    ratio = _number(row, "minigrid/invalid_action_ratio") if decided else None
    return _above("Surge of invalid actions:", ratio, limits.health.invalid_actions)


def _grad_explosion(row: Row, limits: Thresholds) -> Findings:
    if "opt/grad_norm" in row and _number(row, "opt/grad_norm") is None:
        return {"": Found("Gradient explosion: the norm is not finite", None, limits.health.grad_norm)}
    return _above("Gradient explosion:", _number(row, "opt/grad_norm"), limits.health.grad_norm)


def _phase(name: str, words: str) -> Callable[[Row, Thresholds], Findings]:
    """Make the `find` of a rule about a phase of the trial that bars advice."""
    number = TRIAL_PHASES.index(name)

    def find(row: Row, limits: Thresholds) -> Findings:
        phase = _number(row, "trial/phase")
        if phase is None:
            return {}
        text = f"{words}: the trial has barred it for the rest of the run"
        return {"": Found(text, _number(row, "trial/harm_e")) if phase == number else None}

    return find


RULES = (
    Rule(
        "low_entropy",
        WARNING,
        "policy/entropy < health.entropy_min while success/windowed < 0.9 and not rising (it is 0, or below "
        "success/cumulative)",
        "the policy settles before it has found out how to succeed",
        "agent.entropy up; explore.temperature_end or explore.epsilon_end up",
        _low_entropy,
    ),
    Rule(
        "llm_failure",
        ERROR,
        "llm/failure/KIND reaches 1, 10, 100 and so on, each kind by itself",
        "the adviser's server, network, key or answers: docs/advisers.md says which for each kind",
        "llm.timeout_s or llm.api_retries up; llm.cooldown_steps up for rate_limited; llm.max_tokens up for "
        "truncated",
        _llm_failure,
    ),
    Rule(
        "beta_saturation",
        WARNING,
        "uncertainty_gate/beta_saturation > health.beta_saturation, with a gate that follows the uncertainty",
        "the agent stays unsure, so the gate stays open",
        "gate.beta_max down; gate.tau or gate.warmup_steps up",
        _beta_saturation,
    ),
    Rule(
        "nonfinite_loss",
        ERROR,
        "one of loss/* is null",
        "steps that are too large, or numbers that the compute type cannot hold",
        "agent.lr down; agent.warmup up; dtype=float32",
        _nonfinite_loss,
    ),
    Rule(
        "kl_above_target",
        WARNING,
        "uncertainty_gate/avg_kl > gate.kl.delta_target in health.kl_rows rows one after another, where "
        "gate.kl.mode is not none",
        "the penalty is too slow or too weak for advice this strong",
        "gate.kl.kl_lr or gate.kl.lambda_max up; gate.beta_max down; gate.kl.mode=project",
        _kl_above_target,
    ),
    Rule(
        "no_influence",
        WARNING,
        "llm/influence_kl < health.influence_kl while llm/prior_share > 0, uncertainty_gate/avg_beta^2 / 2 is"
        " at least 10 times that limit, and success/windowed < 0.9",
        "advice that weighs all actions alike, or that says what the policy does anyway",
        "gate.temperature=entropy; gate.entropy_share down; another adviser (llm=NAME)",
        _no_influence,
    ),
    Rule(
        "invalid_actions",
        WARNING,
        "minigrid/invalid_action_ratio > health.invalid_actions with policy/prob_max > 0.5",
        "the policy is stuck on actions that change nothing, such as walking into a wall",
        "env.actions=useful; explore.valid_noise=true with explore.epsilon_end up; agent.entropy up",
        _invalid_actions,
    ),
    Rule(
        "grad_explosion",
        WARNING,
        "opt/grad_norm > health.grad_norm, or null",
        "a loss on a scale of its own, or steps that are too large",
        "agent.lr or agent.agc down; agent.warmup up",
        _grad_explosion,
    ),
    Rule(
        "advice_harmful",
        WARNING,
        "trial/phase is 4",
        "episodes with advice earn less than those without: the adviser is wrong about this task",
        "another adviser (llm=NAME); lore-probe says how good one is before a run",
        _phase("harmful", "Harmful advice"),
    ),
    Rule(
        "advice_outgrown",
        WARNING,
        "trial/phase is 3",
        "the agent alone has become better than with advice, which had helped before",
        "none is needed; a better adviser (llm=NAME) may have more to teach",
        _phase("outgrown", "Advice is outgrown"),
    ),
)
"""Every alert there is, in the order of docs/metrics.md."""

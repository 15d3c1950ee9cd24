"""summary.json: what a run came to, in the keys other programs rely on."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lore.base.files import write_atomic

STATUSES = ("running", "finished", "failed", "interrupted")
Curve = Sequence[Sequence[float]]


def steps_to_90(curve: Curve, level: float = 0.9) -> int | None:
    """Find the first of two consecutive evaluations that are both at or above a level.

    Args:
        curve: [[env_step, success], ...] in order of env_step; success is a share in [0, 1].
        level: The level, a share in [0, 1].

    Returns:
        The environment step of the first of the two; None where there are no such two.
    """
    for (step, first), (_, second) in itertools.pairwise(curve):
        if first >= level and second >= level:
            return int(step)
    return None


def auc(curve: Curve) -> float | None:
    """Average success over the evaluations of a run.

    Args:
        curve: [[env_step, success], ...]; success is a share in [0, 1].

    Returns:
        The mean, in [0, 1]; None without any evaluation.
    """
    return math.fsum(success for _, success in curve) / len(curve) if curve else None


def make_summary(
    *,
    env_id: str,
    arm: str,
    seed: int,
    timeout: str,
    clock: bool,
    teach: str,
    env_steps: int,
    gradient_steps: int,
    wall_s: float,
    status: str,
    eval_curve: Curve,
    eval_success_greedy: float | None,
    eval_success_advised: float | None = None,
    adviser: Mapping[str, Any] | None = None,
    trial: Mapping[str, Any] | None = None,
    advice: Mapping[str, float] | None = None,
    alerts: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Make all keys of summary.json.

    Args:
        env_id: Id of the task.
        arm: Arm of a study that the run is, see `arm_name`.
        seed: Seed of the run.
        timeout: What the time limit of an episode is to the learner, option env.timeout.
        clock: Whether the agent sees the time that is left, option env.clock.
        teach: How advice enters learning; "none" without an adviser.
        env_steps: Environment steps made, all environments together.
        gradient_steps: Gradient steps made.
        wall_s: Seconds of training over all sessions of the run.
        status: One of STATUSES.
        eval_curve: [[env_step, success], ...], sampled policy, advice off. eval_success is the last success
            of it, None before the first evaluation.
        eval_success_greedy: Success of the greedy policy in the last evaluation; None where not measured.
        eval_success_advised: Success of the sampled policy with advice on; None without an adviser.
        adviser: Who advises: provider, model, dataset, corruption, corruption_kind; None without an adviser.
        trial: phase, trust, benefit_e, harm_e, advised_share, verdicts; None without a trial.
        advice: The latest llm/ metrics; None or empty without an adviser.
        alerts: Name of the alert -> how often it was given (`RunLogger.alerts`).

    Returns:
        Key -> value, for `write_json`.

    Raises:
        ValueError: The status is unknown.
    """
    if status not in STATUSES:
        raise ValueError(f"status {status!r} is not one of {', '.join(STATUSES)}")
    curve = [[int(step), float(success)] for step, success in eval_curve]
    advice = {name: value for name, value in (advice or {}).items() if math.isfinite(value)}
    return {
        "env_id": env_id,
        "arm": arm,
        "seed": seed,
        "timeout": timeout,
        "clock": clock,
        "teach": teach,
        "env_steps": env_steps,
        "gradient_steps": gradient_steps,
        "wall_s": wall_s,
        "status": status,
        "eval_success": curve[-1][1] if curve else None,
        "eval_success_greedy": eval_success_greedy,
        "eval_success_advised": eval_success_advised,
        "eval_curve": curve,
        "steps_to_90": steps_to_90(curve),
        "auc": auc(curve),
        "adviser": None
        if adviser is None
        else {**adviser, "corrupted_share": advice.get("llm/corrupted_share")},
        "trial": None if trial is None else dict(trial),
        "llm_calls_used": int(advice.get("llm/calls_used", 0)),
        "llm_cost_usd": advice.get("llm/cost_usd", 0.0),
        "cache_hit_rate": advice.get("llm/cache_hit_rate"),
        "influence": {
            "mean_kl": advice.get("llm/influence_kl", 0.0),
            "prior_share": advice.get("llm/prior_share", 0.0),
            "argmax_flip_share": advice.get("llm/argmax_flip_share", 0.0),
            "clear_change_share": advice.get("llm/clear_change_share"),
        },
        "alerts": dict(alerts or {}),
    }


def plain(value: Any) -> Any:
    """Convert a value to the types of JSON.

    Args:
        value: Any value, with tensors and arrays at any depth.

    Returns:
        The value with numbers and lists for tensors and arrays, and None for numbers that are not finite.
    """
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old file or the new one, never a part.

    Args:
        path: The file. Its folder exists.
        value: What to write, converted by `plain`.

    Raises:
        OSError: The disk refuses; the old file then stands.
        TypeError: JSON cannot hold a value; the old file then stands.
    """
    text = json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
    write_atomic(path, text)

"""What lore-probe's asks came to: accuracy and calibration with intervals, and their figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lore.base.errors import BadInput
from lore.llm.plans.executor import find_first_moves
from lore.llm.plans.language import parse
from lore.studies.labelled_situations import Situation, apply_rule, find_subgoal, score_actions

RESAMPLES = 2000
BINS = 10  # of the expected calibration error


@dataclass
class Row:
    """One ask and what came of it. A line of the raw data.

    Attributes:
        wording: Name of the wording.
        examples: Number of the set of examples.
        situation: Number of the situation.
        failure: Why there is no advice, else empty.
        action: Share of the advised actions (those with most weight) that are optimal.
        subgoal: Whether the plan leads to the subgoal first; None for weights, which lead nowhere.
        executable: Whether the plan gives an action here; None for weights.
        confidence: As answered.
        answer: Text of the answer.
        input_tokens: Tokens of the question.
        output_tokens: Tokens of the answer.
        cached_tokens: Tokens of the question that the provider had in its cache.
        cost_usd: What the ask cost.
        latency_s: Seconds from question to answer.
    """

    wording: str
    examples: int
    situation: int
    failure: str = ""
    action: float = 0.0
    subgoal: float | None = None
    executable: bool | None = None
    confidence: float | None = None
    answer: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0


def yardsticks(situations: Sequence[Situation]) -> dict[str, dict[str, list[float]]]:
    """Measure the accuracy of what needs no adviser.

    chance: guessing. majority: the answer that is right most often. one_plan: the plan, of those that are
    right somewhere here, that does best when it is given everywhere: the executor looks at the world, so one
    plan can be right in every situation of a task. rule: `labelled_situations.apply_rule`.

    Args:
        situations: All of one task, at least one.

    Returns:
        "action" and "subgoal" -> name of the yardstick -> [value, low, high], as `interval` gives it.
    """
    names = situations[0].env.action_names
    rules = [apply_rule(situation.state) for situation in situations]
    goals = Counter(situation.subgoal for situation in situations)
    hits = Counter(name for situation in situations for name in situation.optimal)
    best, goal = hits.most_common(1)[0][0], goals.most_common(1)[0][0]
    plans = [parse(text) for text in sorted({situation.plan for situation in situations})]
    led = {plan: [float(find_subgoal(plan, s) == s.subgoal) for s in situations] for plan in plans}
    one = max(plans, key=lambda plan: sum(led[plan]))
    action = {
        "chance": [len(s.optimal) / len(names) for s in situations],
        "majority": [float(best in s.optimal) for s in situations],
        "one_plan": [
            score_actions(find_first_moves(one, s.state, tuple(s.env.action_names)), s) for s in situations
        ],
        "rule": [float(act in s.optimal) for s, (_, act) in zip(situations, rules, strict=True)],
    }
    subgoal = {
        "chance": [1 / len(goals)] * len(situations),
        "majority": [float(goal == s.subgoal) for s in situations],
        "one_plan": led[one],
        "rule": [float(kind == s.subgoal) for s, (kind, _) in zip(situations, rules, strict=True)],
    }
    return {
        what: {name: interval(_mean, [[v] for v in values]) for name, values in table.items()}
        for what, table in (("action", action), ("subgoal", subgoal))
    }


def measure(rows: Sequence[Row]) -> dict[str, Any]:
    """Measure what the asks of one wording came to.

    An ask without advice counts as wrong and has no part in calibration.

    Args:
        rows: The asks, and what came of each.

    Returns:
        Values that JSON can hold. Every triple is [value, low, high], empty where nothing could be measured,
        as the subgoal of an adviser that gives weights alone.
    """
    result: dict[str, Any] = {
        "asks": len(rows),
        "failures": dict(Counter(row.failure for row in rows if row.failure)),
        "executable": interval(_mean, _clusters(rows, lambda row: row.executable)),
    }
    for what in ("action", "subgoal"):

        def right(row: Row, what: str = what) -> float | None:
            return 0.0 if row.failure else vars(row)[what]

        def forecast(row: Row, what: str = what) -> tuple[float, float] | None:
            hit = vars(row)[what]
            return None if row.failure or hit is None else (row.confidence or 0.0, hit)

        sets = sorted({row.examples for row in rows})
        hits = [[h for row in rows if row.examples == s and (h := right(row)) is not None] for s in sets]
        result[what] = {
            "accuracy": interval(_mean, _clusters(rows, right)),
            "by_set": [round(float(np.mean(of_set)), 4) for of_set in hits if of_set],
            "ece": interval(ece, _clusters(rows, forecast)),
            "brier": interval(brier, _clusters(rows, forecast)),
        }
    return result


def ece(pairs: np.ndarray) -> float:
    """Compute the expected calibration error over BINS bins of equal width.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.

    Args:
        pairs: Confidence and hit, both in [0, 1], (N, 2) with N at least 1.

    Returns:
        A number in [0, 1].
    """
    bins = np.minimum((pairs[:, 0] * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, pairs[:, 0] - pairs[:, 1], BINS)
    return float(np.abs(gaps).sum() / len(pairs))


def brier(pairs: np.ndarray) -> float:
    """Compute the Brier score: the mean squared difference of confidence and hit.

    Args:
        pairs: Confidence and hit, both in [0, 1], (N, 2) with N at least 1.

    Returns:
        A number in [0, 1].
    """
    return float(((pairs[:, 0] - pairs[:, 1]) ** 2).mean())


def interval(statistic: Callable[[np.ndarray], float], clusters: Sequence[Sequence[Any]]) -> list[float]:
    """Compute a statistic of all values, and its 95 % percentile bootstrap interval over clusters.

    Args:
        statistic: Values (N,) or (N, 2) of all clusters drawn, one after the other -> a number.
        clusters: The values, grouped by what is drawn together.

    Returns:
        [value, low, high]; empty where there is no value.
    """
    arrays = [np.array(values, float) for values in clusters if len(values)]
    if not arrays:
        return []
    rng = np.random.default_rng(0)
    draws = rng.integers(len(arrays), size=(RESAMPLES, len(arrays)))
    resampled = [statistic(np.concatenate([arrays[i] for i in draw])) for draw in draws]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return [round(float(v), 4) for v in (statistic(np.concatenate(arrays)), low, high)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _clusters(rows: Sequence[Row], value: Callable[[Row], Any]) -> list[list[Any]]:
    """The values that are not None, by situation."""
    found: dict[int, list[Any]] = {}
    for row in rows:
        if (v := value(row)) is not None:
            found.setdefault(row.situation, []).append(v)
    return list(found.values())


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        BadInput: matplotlib is not installed; the message names the option `out`.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise BadInput(
            "out", "the figure needs matplotlib: pip install 'lore[plot]', or leave out away"
        ) from error


def figure(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the accuracy of each wording with its interval; yardsticks are red lines, example sets gray ticks.

    Args:
        results: Label of an adviser -> its result, all of one task.
        path: File to write.

    Raises:
        BadInput: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    labels = [f"{label}, {name}" for label, result in results.items() for name in result["wordings"]]
    first = next(iter(results.values()))
    drawing = Figure(figsize=(9, 1.6 + 0.3 * len(labels)), layout="constrained")
    for panel, what in zip(drawing.subplots(1, 2, sharey=True), ("action", "subgoal"), strict=True):
        wordings = [wording[what] for result in results.values() for wording in result["wordings"].values()]
        for at, wording in enumerate(wordings):
            if wording["accuracy"]:
                value, low, high = wording["accuracy"]
                panel.plot([low, high], [at, at], color="tab:blue", lw=2)
                panel.plot(wording["by_set"], [at] * len(wording["by_set"]), "|", color="gray", ms=9)
                panel.plot(value, at, "o", color="tab:blue", ms=5)
        for (name, (value, *_)), style in zip(
            first["yardsticks"][what].items(), (":", "--", "-.", "-"), strict=True
        ):
            panel.axvline(value, color="tab:red", lw=1, ls=style, label=name)
        panel.set(xlim=(-0.02, 1.02), ylim=(len(labels) - 0.5, -0.5), xlabel=f"{what} accuracy")
        panel.set_yticks(range(len(labels)), labels)
    drawing.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    drawing.suptitle(first["env_id"])
    drawing.savefig(path, dpi=110)

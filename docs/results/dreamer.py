"""Table and figure of docs/results/dreamer.md, from the raw JSONL beside it.

python docs/results/dreamer.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
RUNS = HERE / "dreamer"
BIN = 500  # environment steps
RESAMPLES = 10_000


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_curve(episodes: list[dict], last: int) -> np.ndarray:
    """Share of the episodes that ended in each bin of BIN steps that succeeded; NaN where none ended."""
    bins: list[list[float]] = [[] for _ in range(last // BIN)]
    for episode in episodes:
        place = (episode["env_step"] - 1) // BIN
        if place < len(bins):
            bins[place].append(float(episode["success"]))
    return np.array([np.mean(b) if b else np.nan for b in bins])


def median_interval(steps: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % percentile-bootstrap interval over seeds; inf stands for "not within the run"."""
    draws = np.random.default_rng(0).choice(steps, (RESAMPLES, len(steps)))
    low, high = np.quantile(np.median(draws, 1), [0.025, 0.975], method="nearest")
    return float(np.median(steps)), float(low), float(high)


def load(folders: list[Path]) -> tuple[list[dict], list[float]]:
    """Summaries, and steps_to_90 with inf for "not within the run"."""
    summaries = [json.loads((f / "summary.json").read_text()) for f in folders]
    return summaries, [float(s["steps_to_90"] or np.inf) for s in summaries]


def main() -> None:
    folders = sorted(RUNS.glob("seed*"))
    summaries, steps = load(folders)
    last = max(s["env_steps"] for s in summaries)
    print("| seed | first success | steps_to_90 | evaluation at the end | AUC | minutes |")
    print("|---|---|---|---|---|---|")
    for folder, s in zip(folders, summaries, strict=True):
        first = next((e["env_step"] for e in rows(folder / "episodes.jsonl") if e["success"]), None)
        print(
            f"| {s['seed']} | {first} | {s['steps_to_90'] or 'none'} | {s['eval_success']:.2f} "
            f"| {s['auc']:.3f} | {s['wall_s'] / 60:.1f} |"
        )
    for dtype, values in (
        ("bfloat16", steps),
        ("float32", load(sorted((RUNS / "float32").glob("seed*")))[1]),
    ):
        median, low, high = median_interval(values)
        reached = f"{sum(np.isfinite(values))} of {len(values)} seeds"
        print(f"\n{dtype}: {values}\nmedian steps_to_90 {median:g} [{low:g}, {high:g}]; {reached}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    curves = [np.array(s["eval_curve"]) for s in summaries]
    for curve in curves:
        left.plot(curve[:, 0], curve[:, 1], color="tab:blue", alpha=0.3, linewidth=1)
    success = np.stack([c[:, 1] for c in curves])
    bold = {"color": "tab:blue", "linewidth": 2.5}
    left.plot(curves[0][:, 0], success.mean(0), label=f"mean of {len(curves)} seeds", **bold)
    left.axhline(0.088, color="grey", linestyle=":", label="uniform random policy")
    left.set(title="evaluation: 100 held-out episodes, sampled policy", ylabel="success")
    ours = np.stack([training_curve(rows(f / "episodes.jsonl"), last) for f in folders])
    x = np.arange(1, last // BIN + 1) * BIN
    right.plot(x, np.nanmean(ours, 0), label=f"this repository, mean of {len(folders)} seeds", **bold)
    official = sorted((RUNS / "official").glob("*.jsonl"))
    for i, path in enumerate(official):
        label = f"official JAX code, {len(official)} seeds" if i == 0 else None
        right.plot(x, training_curve(rows(path), last), color="tab:orange", linewidth=1.5, label=label)
    right.set(title=f"training episodes, in bins of {BIN} steps")
    for axis in (left, right):
        axis.set(xlabel="environment steps", ylim=(-0.02, 1.02))
        axis.legend(loc="lower right", frameon=False)
    figure.suptitle("MiniGrid-DoorKey-5x5, size 1m, no language model")
    figure.tight_layout()
    figure.savefig(HERE / "dreamer.png", dpi=110)


if __name__ == "__main__":
    main()

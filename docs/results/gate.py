"""Tables and figure of docs/results/gate.md, from the raw JSONL beside it.

python docs/results/gate.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from lore.training.evaluation import wilson_interval

HERE = Path(__file__).parent
STEPS = 2000  # environment steps that fixed2 ran for


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def fixed() -> None:
    """Training success under advice, and the evaluation without it, beside gate=none."""
    print(
        "| seed | episodes | solved | mean KL | likeliest action changed | asks | evaluation, LLM off, by 500 steps | with advice |"
    )
    print("|---|---|---|---|---|---|---|---|")
    solved = played = 0
    for folder in sorted((HERE / "gate" / "fixed2").glob("seed*")):
        s, episodes = summary(folder), rows(folder / "episodes.jsonl")
        last = [row for row in rows(folder / "metrics.jsonl") if "eval/success" not in row][-1]
        won = sum(e["success"] for e in episodes)
        solved, played = solved + won, played + len(episodes)
        curve = ", ".join(f"{value:.2f}" for _, value in s["eval_curve"])
        kl = np.mean(
            [
                r["uncertainty_gate/avg_kl"]
                for r in rows(folder / "metrics.jsonl")
                if "uncertainty_gate/avg_kl" in r
            ]
        )
        # runs of before the meter counted flips in summary.json: its row has them
        print(
            f"| {s['seed']} | {len(episodes)} | {won / len(episodes):.3f} | {kl:.2f} "
            f"| {last['llm/argmax_flip_share']:.2f} | {s['llm_calls_used']} | {curve} | {s['eval_success_advised']:.2f} |"
        )
    low, high = wilson_interval(solved, played)
    print(f"\n{solved} of {played} training episodes: {solved / played:.3f} [{low:.3f}, {high:.3f}]\n")


def letters() -> None:
    """One seed of every letter."""
    print(
        "| letter | training episodes solved | evaluation, LLM off | with advice | beta | mean KL | lambda | asks |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for folder in sorted((HERE / "gate" / "letters").glob("?")):
        s, episodes, metrics = (
            summary(folder),
            rows(folder / "episodes.jsonl"),
            rows(folder / "metrics.jsonl"),
        )
        beta = [r["uncertainty_gate/avg_beta"] for r in metrics if "uncertainty_gate/avg_beta" in r]
        rate = [r["uncertainty_gate/lambda_kl"] for r in metrics if "uncertainty_gate/lambda_kl" in r]
        between = f"{min(beta):.3f} to {max(beta):.3f}" if beta else ""
        advised = s["eval_success_advised"]
        print(
            f"| {folder.name} | {sum(e['success'] for e in episodes)} of {len(episodes)} "
            f"| {', '.join(f'{v:.2f}' for _, v in s['eval_curve'])} | {'' if advised is None else f'{advised:.2f}'} "
            f"| {between} | {s['influence']['mean_kl']:.4f} | {max(rate, default=0):.3f} | {s['llm_calls_used']} |"
        )


def figure() -> None:
    """Left: LLM off, beside gate=none on the same seeds. Right: the gate closing on an agent that learns."""
    pair, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    sources = {
        "gate=fixed gate.beta=2, scripted adviser": ("tab:orange", HERE / "gate" / "fixed2"),
        "gate=none": ("tab:blue", HERE / "dreamer" / "float32"),
    }
    for label, (color, folder) in sources.items():
        curves = [
            [v for step, v in summary(folder / f"seed{k}")["eval_curve"] if step <= STEPS] for k in range(5)
        ]
        x = np.arange(1, len(curves[0]) + 1) * 500
        for curve in curves:
            left.plot(x, curve, color=color, alpha=0.3, linewidth=1)
        left.plot(x, np.mean(curves, 0), color=color, linewidth=2.5, label=label)
    left.axhline(0.088, color="grey", linestyle=":", label="uniform random policy")
    left.set(
        title="evaluation, LLM off, seeds 0 to 4",
        ylabel="success",
        xlabel="environment steps",
        ylim=(-0.02, 1.02),
    )
    left.legend(frameon=False)
    metrics = rows(HERE / "gate" / "converged" / "seed1001" / "metrics.jsonl")
    for name, color in (
        ("u", "black"),
        ("entropy", "tab:blue"),
        ("value_var", "tab:green"),
        ("disagreement", "tab:red"),
    ):
        points = [
            (r["env_step"], r[f"uncertainty_gate/{name}"]) for r in metrics if f"uncertainty_gate/{name}" in r
        ]
        right.plot(*zip(*points, strict=True), color=color, linewidth=2.5 if name == "u" else 1, label=name)
    share = [
        (r["env_step"], r["uncertainty_gate/latch_share"])
        for r in metrics
        if "uncertainty_gate/latch_share" in r
    ]
    right.fill_between(
        *zip(*share, strict=True), color="grey", alpha=0.2, label="share of steps with the latch on"
    )
    right.set(title="gate=lore, one seed: u and its terms", xlabel="environment steps", ylim=(0, 2.02))
    right.legend(frameon=False, fontsize=8)
    pair.tight_layout()
    pair.savefig(HERE / "gate.png", dpi=110)


if __name__ == "__main__":
    fixed()
    letters()
    figure()

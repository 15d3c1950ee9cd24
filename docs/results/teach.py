"""Tables and figure of docs/results/teach.md, from the raw JSONL beside it.

python docs/results/teach.py             prints the tables, writes teach.png
python docs/results/teach.py add RUN...  copies the record of finished runs to where the tables look for it
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent / "teach"
RECORD = ("config.yaml", "provenance.json", "metrics.jsonl", "episodes.jsonl", "llm.jsonl", "summary.json")
TUNING = 1000  # seeds from here on are for tuning, the ones below for results
TASKS = {
    "MiniGrid-DoorKey-5x5-v0": "doorkey5",
    "MiniGrid-DoorKey-8x8-v0": "doorkey8",
    "BabyAI-UnlockPickup-v0": "babyai_unlockpickup",
}
COLORS = {"G_trusting-recorded": "tab:orange", "G-recorded": "tab:red", "A_time": "tab:blue", "A": "tab:grey"}


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def add(run: Path) -> None:
    """Copy a finished run to KIND/TASK/ARM[_NAME]/seedN; a tuning run keeps its folder's name."""
    s = summary(run)
    assert s["status"] == "finished", run
    kind = "tuning" if s["seed"] >= TUNING else "results"
    arm = run.name if kind == "tuning" else s["arm"]
    target = HERE / kind / TASKS.get(s["env_id"], s["env_id"]) / arm / f"seed{s['seed']}"
    target.mkdir(parents=True)
    for name in RECORD:
        if (run / name).exists():
            shutil.copyfile(run / name, target / name)
    print(target)


def holds(curve: list, level: float = 0.9) -> bool:
    """Whether two consecutive evaluations and the last one are at the level."""
    values = [value for _, value in curve]
    return values[-1] >= level and any(min(pair) >= level for pair in itertools.pairwise(values))


def table(kind: str) -> None:
    """A row for each run."""
    print(f"\n### {kind}\n")
    print("| task | arm | seed | steps | steps to 90 % | LLM off, last | held | asks | verdict | commit |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for folder in sorted((HERE / kind).glob("*/*/seed*")):
        s = summary(folder)
        commit = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["commit"] or "null"
        verdicts = (s.get("trial") or {}).get("verdicts") or []
        verdict = ", ".join(f"{word} {step}" for step, word in verdicts)
        curve = s["eval_curve"]
        print(
            f"| {folder.parents[1].name} | {folder.parent.name} | {s['seed']} | {s['env_steps']} | {s['steps_to_90'] or 'none'} "
            f"| {curve[-1][1]:.2f} | {'yes' if holds(curve) else 'no'} | {s['llm_calls_used']} | {verdict} | {commit[:7]} |"
        )


def curves(kind: str) -> None:
    """LLM off, at every evaluation."""
    for folder in sorted((HERE / kind).glob("*/*/seed*")):
        s = summary(folder)
        values = ", ".join(f"{value:.2f}" for _, value in s["eval_curve"])
        print(
            f"- {folder.parents[1].name}, {folder.parent.name}, seed {s['seed']}, from step {s['eval_curve'][0][0]} on: {values}"
        )


def figure() -> None:
    """Success with the LLM off, one panel a task; thin: seeds, thick: their mean."""
    tasks = [task for task in TASKS.values() if (HERE / "results" / task).exists()]
    if not tasks:
        return
    page, panels = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4), squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        for arm, color in COLORS.items():
            runs = [summary(f)["eval_curve"] for f in sorted((HERE / "results" / task / arm).glob("seed*"))]
            for curve in runs:
                panel.plot(*zip(*curve, strict=True), color=color, alpha=0.3, linewidth=1)
            if runs:
                n = min(map(len, runs))
                steps = [step for step, _ in runs[0][:n]]
                mean = np.mean([[v for _, v in curve[:n]] for curve in runs], 0)
                panel.plot(steps, mean, color=color, linewidth=2.5, label=f"{arm}, {len(runs)} seeds")
        panel.set(title=task, xlabel="environment steps", ylabel="success, LLM off", ylim=(-0.02, 1.02))
        panel.legend(frameon=False, fontsize=8)
    page.tight_layout()
    page.savefig(HERE.parent / "teach.png", dpi=110)


if __name__ == "__main__":
    if sys.argv[1:2] == ["add"]:
        for name in sys.argv[2:]:
            add(Path(name))
    else:
        for name in ("tuning", "results"):
            table(name)
            curves(name)
        figure()

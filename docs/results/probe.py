"""Tables and figures of docs/results/probe.md.

python docs/results/probe.py            # from the raw answers in docs/results/probe/
python docs/results/probe.py ask        # ask all advisers anew: about 10 minutes on one core
python docs/results/probe.py ask scripted-0.5 oracle    # or these
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lore.config.options import EnvOptions, LLMOptions
from lore.envs.make import make_env
from lore.llm.plans.language import parse
from lore.llm.providers import Request
from lore.llm.providers.local import BUNDLED, candidates
from lore.studies.labelled_situations import action_hit, collect, first_shares, subgoal_of
from lore.studies.probe import ProbeOptions, probe_adviser
from lore.studies.probe_report import figure, interval

HERE = Path(__file__).parent / "probe"
SITUATIONS, SETS = 32, 5
TASKS = {"doorkey8": "MiniGrid-DoorKey-8x8-v0", "babyai_unlockpickup": "BabyAI-UnlockPickup-v0"}
CONTROLS = ("oracle", "shuffled", "uniform", "adversarial", "none")
ADVISERS: dict[str, Any] = {
    **{f"scripted-{c}": LLMOptions("scripted", competence=c) for c in (1.0, 0.8, 0.5, 0.0)},
    **{name: SimpleNamespace(provider=name) for name in CONTROLS},
    "local-plan": LLMOptions("local", model=BUNDLED, timeout_s=60.0, scoring="plan"),
    "local-action": LLMOptions("local", model=BUNDLED, timeout_s=60.0, scoring="action"),
}


def ask(labels: list[str]) -> None:
    torch.set_num_threads(1)
    for label in labels:
        options = ADVISERS[label]
        for task, env_id in TASKS.items():
            sets = SETS if label.startswith("local") else 1  # the others read no words, so no examples
            out = HERE / task / label
            chosen = ProbeOptions(situations=SITUATIONS, example_sets=sets, out=str(out))
            probe_adviser(chosen, EnvOptions(id=env_id), options)
            (out / "situations.jsonl").replace(HERE / task / "situations.jsonl")  # the same for all
            (out / "probe.png").unlink()


def menu(env_id: str) -> None:
    """How right the plans are that `local` chooses from, whoever chooses."""
    found = collect(
        make_env(EnvOptions(id=env_id), "symbolic", remember=True), SITUATIONS, 0, "probe/situations"
    )
    hits: dict[str, list[tuple[float, float]]] = {}
    for s in found:
        request = Request("", "", s.state, "", "", tuple(s.env.action_names), 1)
        plans = [parse(text) for text in candidates("plan", request)]
        scores = [(action_hit(first_shares(p, s), s), float(subgoal_of(p, s) == s.subgoal)) for p in plans]
        last = max(i for i, plan in enumerate(plans) if len(plan.body) == 1 and str(plan) != "explore")
        chosen = {"longest": scores[0], "last step alone": scores[last], "best": max(scores, key=sum)}
        chosen["any, drawn evenly"] = tuple(sum(pair) / len(pair) for pair in zip(*scores, strict=True))
        for name, pair in chosen.items():
            hits.setdefault(name, []).append(pair)
    print("\n| choice | action | subgoal |\n|---|---|---|")
    for name, pairs in hits.items():
        cells = [
            interval(lambda v: float(v.mean()), [[v] for v in values]) for values in zip(*pairs, strict=True)
        ]
        print(f"| {name} | {cell(cells[0])} | {cell(cells[1])} |")


def result(task: str, label: str) -> dict[str, Any]:
    return json.loads((HERE / task / label / "result.jsonl").read_text(encoding="utf-8"))


def cell(triple: list[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*triple) if triple else "-"


def table(task: str) -> None:
    results = {label: result(task, label) for label in ADVISERS}
    print(f"\n### {task}\n")
    print("| adviser | wording | action | ECE | Brier | subgoal | ECE | Brier | executable |")
    print("|---|---|---|---|---|---|---|---|---|")
    yardsticks = next(iter(results.values()))["yardsticks"]
    for name in ("chance", "majority", "one_plan", "rule"):
        print(
            f"| *{name}* | | {cell(yardsticks['action'][name])} | | "
            f"| {cell(yardsticks['subgoal'][name])} | | | |"
        )
    for label, one in results.items():
        same = not label.startswith("local")
        for wording, m in list(one["wordings"].items())[: 1 if same else 2]:
            cells = [cell(m[what][n]) for what in ("action", "subgoal") for n in ("accuracy", "ece", "brier")]
            print(f"| {label} | {'' if same else wording} | {' | '.join(cells)} | {cell(m['executable'])} |")
    print(
        "\n| adviser | wording | action by set of examples | subgoal by set of examples |\n|---|---|---|---|"
    )
    for label in ("local-plan", "local-action"):
        for wording, m in results[label]["wordings"].items():
            sets = [" ".join(f"{v:.2f}" for v in m[what]["by_set"]) or "-" for what in ("action", "subgoal")]
            print(f"| {label} | {wording} | {sets[0]} | {sets[1]} |")
    for label in ("local-plan", "local-action"):
        one = results[label]
        print(f"\n{label}: " + ", ".join(f"{k} {one[k]}" for k in COSTS))
    figure(results, HERE / f"{task}.png")


COSTS = ("calls", "input_tokens", "cached_tokens", "output_tokens", "cost_usd", "latency_s", "wall_s")

if __name__ == "__main__":
    if sys.argv[1:2] == ["ask"]:
        ask(sys.argv[2:] or list(ADVISERS))
    for name in TASKS:
        table(name)
        menu(TASKS[name])

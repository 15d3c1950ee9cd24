"""How the time of a gradient step grows: measures, then draws docs/results/speed.png.

python docs/results/speed.py            # the figure, from speed.jsonl beside this file
python docs/results/speed.py measure    # speed.jsonl first: about ten minutes on one idle core
python docs/results/speed.py letters    # arms A and E in turn: a gradient step, acting, an environment step
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
DATA = HERE / "speed.jsonl"
BASE = {
    "agent.batch_size": 8,
    "agent.seq_len": 32,
    "agent.horizon": 15,
    "size": "1m",
    "replay.capacity": 10_000,
}
SWEEPS = {
    "batch": ("agent.batch_size", [1, 2, 4, 8, 16, 32, 64]),
    "horizon": ("agent.horizon", [1, 5, 10, 15, 30, 60]),
    "size": ("size", ["500k", "1m", "12m", "25m"]),
}
ENVS = [1, 2, 4, 8, 16, 32, 64]
REPEATS = 7


def measure(overrides: list[str]) -> dict:
    """A gradient step, in a process of its own."""
    code = (
        "import json, sys; from lore.config.compose import compose; from lore.studies.benchmark import measure;"
        f"print(json.dumps(measure(compose(sys.argv[1:]), {REPEATS})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *overrides], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def acting(envs: int, steps: int = 2000) -> float:
    """Seconds an environment step, network and MiniGrid together, side by side in one process."""
    import torch

    from lore.base.rng import generator
    from lore.config.compose import compose
    from lore.envs import make_vec
    from lore.training.acting import GuidedPolicy
    from lore.training.build import build_advised_gate, build_agent

    torch.set_num_threads(1)
    cfg = compose([f"run.envs={envs}", f"run.prefill={64 * envs}"])  # room for a sequence
    vec = make_vec(cfg.env, cfg.obs, envs, cfg.seed, split="train")
    agent = build_agent(cfg, vec.obs_spec, vec.num_actions, build_advised_gate(cfg))
    policy = GuidedPolicy(agent, vec.obs_spec, generator(0, "act"))
    carry, obs = agent.initial(envs), vec.reset()
    started = time.perf_counter()
    for _ in range(steps // envs):
        carry, decision = policy(carry, obs)
        obs = vec.step(decision.action.numpy())
    return (time.perf_counter() - started) / (steps // envs * envs)


def letters(rounds: int = 14) -> dict:
    """Milliseconds of this thread: a gradient step and acting, each [least, lower decile, median]."""
    import tempfile
    from dataclasses import asdict

    import torch

    from lore.base.allocator import keep_freed_memory
    from lore.config.compose import compose
    from lore.metrics.logger import RunLogger
    from lore.training.trainer import Trainer

    keep_freed_memory()
    torch.set_num_threads(1)

    def make(arm: str) -> Trainer:
        folder = Path(tempfile.mkdtemp())
        cfg = compose([f"+ablation={arm}", "run.steps=100000", "run.eval_every=0", "run.save_every=1000000"])
        return Trainer(cfg, folder, RunLogger(folder, cfg.logger, asdict(cfg), arm=arm))

    def learn(trainer: Trainer) -> None:
        batch = trainer.replay.sample(trainer.cfg.agent.batch_size, trainer.cfg.agent.seq_len, 0.0)
        _, latent = trainer.learner.update(batch)
        trainer.replay.refresh(batch.index, latent)

    def milliseconds(work, *args) -> float:
        began = time.thread_time()
        work(*args)
        return 1e3 * (time.thread_time() - began)

    trainers = {arm: make(arm) for arm in "AE"}
    for trainer in trainers.values():
        while trainer.env_step < 300:
            trainer.act()
        for _ in range(3):
            learn(trainer)
    trainers["E"].learner.guide.gate.calibrated = 10**6  # after the updates that measure the norms
    steps, acts = {arm: [] for arm in trainers}, {arm: [] for arm in trainers}
    for _ in range(rounds):
        for arm, trainer in trainers.items():
            steps[arm].append(milliseconds(learn, trainer))
        for arm, trainer in trainers.items():
            trainer.act()  # the caches are of another arm
            acts[arm] += [milliseconds(trainer.act) for _ in range(7)]
    share = trainers["A"].cfg.agent.train_ratio / (8 * 32)  # gradient steps an environment step

    def three(values: list[float]) -> np.ndarray:
        return np.quantile(values, [0.0, 0.1, 0.5])

    whole = {arm: three(acts[arm]) + share * three(steps[arm]) for arm in trainers}
    rows = {f"gradient step {arm}": three(steps[arm]) for arm in trainers}
    rows |= {f"acting {arm}": three(acts[arm]) for arm in trainers} | {"E over A": whole["E"] / whole["A"]}
    return {name: values.round(3).tolist() for name, values in rows.items()}


def measure_all() -> None:
    with open(DATA, "w", encoding="utf-8") as file:
        for dtype in ("bfloat16", "float32"):
            for axis, (key, values) in SWEEPS.items():
                for value in values:
                    settings = BASE | {"dtype": dtype, key: value}
                    row = measure([f"{k}={v}" for k, v in settings.items()])
                    print(json.dumps({"axis": axis, "value": value} | row), file=file, flush=True)
        for envs in ENVS:
            print(json.dumps({"axis": "envs", "value": envs, "step_s": acting(envs)}), file=file, flush=True)


def draw() -> None:
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6))
    for axis, name in zip(axes, [*SWEEPS, "envs"], strict=True):
        here = [r for r in rows if r["axis"] == name]
        if name == "envs":
            axis.plot([r["value"] for r in here], [1e3 * r["step_s"] for r in here], "o-", color="tab:green")
            axis.set(title="acting: ms an environment step", xlabel="environments side by side")
        for dtype, color in (("bfloat16", "tab:blue"), ("float32", "tab:orange")):
            mine = [r for r in here if r.get("dtype") == dtype]
            x = [r["params"] / 1e6 if name == "size" else r["value"] for r in mine]
            axis.plot(x, [1e3 * r["median_s"] for r in mine], "o-", color=color, label=dtype)
        if name != "envs":
            axis.set(
                title=f"ms a gradient step against {name}",
                xlabel="million weights" if name == "size" else name,
            )
            axis.legend(frameon=False)
        axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.suptitle("8 x 32, horizon 15, size 1m, one core; one setting varied at a time")
    figure.tight_layout()
    figure.savefig(HERE / "speed.png", dpi=110)
    for name in SWEEPS:
        for dtype in ("bfloat16", "float32"):
            mine = [r for r in rows if r["axis"] == name and r["dtype"] == dtype]
            print(name, dtype, [round(1e3 * r["median_s"], 1) for r in mine])
    envs = [1e3 * r["step_s"] for r in rows if r["axis"] == "envs"]
    print("envs", [float(f"{x:.3g}") for x in np.array(envs)])


if __name__ == "__main__":
    if "measure" in sys.argv[1:]:
        measure_all()
    if "letters" in sys.argv[1:]:
        print(json.dumps(letters()))
    else:
        draw()

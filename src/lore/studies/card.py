"""What a graphics card makes of this code: its tests, a gradient step by size, many seeds at once, one run.

Every part is a process with a time limit and one row or more in rows.jsonl, so that a part that fails costs
no other part its result.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import lore
from lore.config.compose import compose
from lore.studies.benchmark import busy_share, measure

ROWS = "rows.jsonl"
TRAIN = "import sys; from lore.cli.train import main; sys.exit(main())"
BENCH = "import sys; from lore.studies.card import print_bench; print_bench(sys.argv[1:])"
QUIET = ["logger=quiet", "run.eval_every=0"]


@dataclass
class Plan:
    """What is tried, and for how long at most.

    Attributes:
        device: cuda or cpu.
        overrides: Options of every part, KEY=VALUE.
        sizes: Sizes of the networks whose gradient step is timed.
        seeds: Numbers of runs side by side.
        seed_steps: Environment steps of each of these runs.
        run_steps: Environment steps of the run that is alone.
        seconds: Time limit of all parts together.
        tests: Files of tests.
    """

    device: str
    overrides: list[str]
    sizes: list[str]
    seeds: list[int]
    seed_steps: int
    run_steps: int
    seconds: float
    tests: list[str] = field(default_factory=lambda: ["tests/test_cuda.py"])


CARD = Plan("cuda", [], ["1m", "12m", "50m"], [3, 10], 600, 2000, 460.0)
REHEARSAL = Plan(
    "cpu",
    ["agent.batch_size=2", "agent.seq_len=8", "agent.horizon=3", "replay.capacity=1000", "run.prefill=32"],
    ["tiny"],
    [1, 2],
    48,
    64,
    900.0,
)
"""The same parts on a processor and in tiny sizes: that the script works is known before a card is there."""


def describe(device: str) -> dict[str, Any]:
    """Tell the card, and what it is driven by: the part of a row that is the same in all.

    Args:
        device: cuda or cpu.

    Returns:
        Values that JSON can hold: card (its name, or "cpu"), memory_gb in GiB (None on a CPU), and the
        versions and the commit.
    """
    on_card = device == "cuda"
    return {
        "card": torch.cuda.get_device_name() if on_card else "cpu",
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 2**30) if on_card else None,
        "torch": torch.__version__,
        "version": lore.__version__,
        "commit": _commit(),
    }


def try_card(plan: Plan, out: Path) -> bool:
    """Run all parts and append their rows to out/rows.jsonl.

    Args:
        plan: CARD or REHEARSAL.
        out: folder for the rows and the parts' logs; made if it is not there.

    Returns:
        Whether every part did what it should.
    """
    out.mkdir(parents=True, exist_ok=True)
    ends, about, good = time.monotonic() + plan.seconds, describe(plan.device), True
    parts: list[Callable[[Plan, Path, float], Iterator[dict[str, Any]]]] = [_tests, _bench, _seeds, _run]
    for part in parts:
        for row in part(plan, out, ends):
            with open(out / ROWS, "a", encoding="utf-8") as file:
                file.write(json.dumps({**about, **row}) + "\n")
            print(json.dumps(row), file=sys.stderr)
            good = good and row["ok"]
    return good


def print_bench(overrides: list[str]) -> None:
    """Print one JSON line: the time of a gradient step, and the share of it in which the device works.

    Args:
        overrides: Options as on the command line, KEY=VALUE.
    """
    cfg = compose(overrides)
    row = measure(cfg)
    print(json.dumps({**row, "busy_share": round(busy_share(cfg), 3)}))


def _tests(plan: Plan, out: Path, ends: float) -> Iterator[dict[str, Any]]:
    """The tests that need a card; without one they are skipped, and the others of their file run."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plan.tests]
    status, seconds, text = _process(command, out / "tests.log", ends)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", text)}
    yield {"part": "tests", "ok": status == 0, "seconds": seconds, **counts}


def _bench(plan: Plan, out: Path, ends: float) -> Iterator[dict[str, Any]]:
    """A gradient step of 16 x 64 (a rehearsal's own shape) of DreamerV3 alone, for each size."""
    for size in plan.sizes:
        overrides = ["obs=raw147", "agent.batch_size=16", "agent.seq_len=64", "gate=none", "llm=none"]
        overrides += [*plan.overrides, f"size={size}", f"device={plan.device}"]
        command = [sys.executable, "-c", BENCH, *overrides]
        status, seconds, text = _process(command, out / f"bench-{size}.log", ends)
        row = _last_object(text) if status == 0 else {}
        yield {"part": "bench", "ok": bool(row), "seconds": seconds, **row, "size_name": size}


def _seeds(plan: Plan, out: Path, ends: float) -> Iterator[dict[str, Any]]:
    """Runs side by side, each a process: how the rate of all together grows with their number."""
    for count in plan.seeds:
        started = time.monotonic()
        folders = [out / f"seeds-{count}-{seed}" for seed in range(count)]
        commands = [_train(plan, path, plan.seed_steps, seed) for seed, path in enumerate(folders)]
        logs = [path.with_suffix(".log") for path in folders]
        statuses = _side_by_side(commands, logs, ends)
        seconds = time.monotonic() - started
        done = statuses.count(0)
        yield {
            "part": "seeds",
            "ok": done == count,
            "seconds": round(seconds, 1),
            "processes": count,
            "finished": done,
            "env_steps_per_second": round(done * plan.seed_steps / seconds, 2),
        }


def _run(plan: Plan, out: Path, ends: float) -> Iterator[dict[str, Any]]:
    """One run of the default configuration, as long as is said."""
    folder = out / "run"
    command = _train(plan, folder, plan.run_steps, 0)
    status, seconds, _ = _process(command, out / "run.log", ends)
    row: dict[str, Any] = {}
    if status == 0:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        row = {k: summary[k] for k in ("env_steps", "gradient_steps", "wall_s")}
    yield {"part": "run", "ok": status == 0, "seconds": seconds, **row}


def _train(plan: Plan, folder: Path, steps: int, seed: int) -> list[str]:
    settings = [f"run.dir={folder}", f"run.steps={steps}", f"seed={seed}", f"device={plan.device}"]
    if plan.device == "cpu":
        settings += ["size=tiny"]
    return [sys.executable, "-c", TRAIN, *plan.overrides, *QUIET, *settings]


def _process(command: list[str], log: Path, ends: float) -> tuple[int, float, str]:
    """Exit status (-1: no time was left), seconds, and what was written."""
    started = time.monotonic()
    (status,) = _side_by_side([command], [log], ends)
    return status, round(time.monotonic() - started, 1), log.read_text(encoding="utf-8", errors="replace")


def _side_by_side(commands: list[list[str]], logs: list[Path], ends: float) -> list[int]:
    """Exit statuses; what still runs at `ends` is killed, and has status -1."""
    jobs = []
    for command, log in zip(commands, logs, strict=True):
        with open(log, "wb") as file:
            env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            jobs.append(
                subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=_root(), env=env)
            )
    statuses = []
    try:
        for job in jobs:
            try:
                statuses.append(job.wait(timeout=max(0.0, ends - time.monotonic())))
            except subprocess.TimeoutExpired:
                job.kill()
                job.wait()
                statuses.append(-1)
    finally:  # interrupted: none of them is left behind
        for job in jobs:
            if job.poll() is None:
                job.kill()
    return statuses


def _last_object(text: str) -> dict[str, Any]:
    """The JSON object of the last line that begins with one."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    row = json.loads(lines[-1]) if lines else {}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _root() -> Path:
    return Path(lore.__file__).resolve().parents[2]


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=_root(), capture_output=True, text=True
        )
    except FileNotFoundError:  # no git here
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"

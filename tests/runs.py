"""Tiny runs for the tests of training, checkpoints and resume; as a program, a run that can kill itself.

    python tests/runs.py DIE OVERRIDE...     lore-train with a kill -9 inside it; DIE "" lives on

DIE is POINT:NUMBER, the NUMBERth time that POINT is reached: "write" (half of a checkpoint file is written),
"rename" (just before a piece of the replay or a checkpoint gets its name), "prune" (just before an old
checkpoint or piece goes), "row" (half of a JSONL row is written).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
TINY = [
    "+preset=debug",
    "env.id=MiniGrid-Empty-Random-5x5-v0",
    "env.actions=useful",
    "env.max_steps=18",
    "logger=quiet",
    "llm.cache=null",
    "run.steps=120",
    "run.prefill=30",
    "run.eval_every=40",
    "run.eval_episodes=4",
    "run.save_every=30",
    "run.log_every=10",
    "agent.batch_size=2",
    "agent.seq_len=8",
    "agent.train_ratio=4",
    "agent.horizon=3",
    "agent.bins=15",
    "agent.lr=0.01",
    "replay.capacity=72",
]

DEAD = ["llm=anthropic", "llm.base_url=http://127.0.0.1:1"]
"""An adviser behind a port where nobody listens; the environment variable ANTHROPIC_API_KEY must be set."""


def run(folder: Path, *overrides: str, stop_at: int | None = None) -> Path:
    """A run of TINY and `overrides` in `folder`, in this process; stop_at: Ctrl-C after so many ticks."""
    from lore.config.compose import compose
    from lore.training.trainer import train

    folder.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    cfg = compose([*TINY, *overrides])
    if stop_at is None:
        assert train(cfg, folder) == "finished"
        return folder
    with interrupt_at(stop_at):
        assert train(cfg, folder) == "interrupted"
    return folder


class interrupt_at:
    """Within it, the `tick`th tick of training from now on ends with Ctrl-C."""

    def __init__(self, tick: int) -> None:
        self.left = tick

    def __enter__(self) -> None:
        from lore.training.trainer import Trainer

        self.real = Trainer.tick

        def tick(trainer: Trainer) -> None:
            self.real(trainer)
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)

        Trainer.tick = tick  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        from lore.training.trainer import Trainer

        Trainer.tick = self.real  # type: ignore[method-assign]


def rows(folder: Path, name: str = "metrics.jsonl", leave_out: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Rows of a JSONL file without wall-clock fields and those that start with one of `leave_out`."""
    without = ("time/", *leave_out)
    parsed = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(without)} for row in parsed]


def training_rows(folder: Path, leave_out: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl that are no evaluation."""
    return [row for row in rows(folder, leave_out=leave_out) if "eval/success" not in row]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*"))


def state(folder: Path) -> dict[str, Any]:
    """The latest state without what the wall clock touches (with it, the length of metrics.jsonl)."""
    from lore.training.checkpoint import load_state

    stored = load_state(folder)
    del stored["progress"]["wall_s"], stored["logger"]["offsets"]["metrics.jsonl"]
    if "adviser" in stored:
        del stored["adviser"]["asker"]["latency_s"], stored["adviser"]["asker"]["journal"]
    return stored


def replay(folder: Path) -> dict[str, torch.Tensor]:
    """The rows and latents that a resumed run would start with, oldest tick first."""
    latest = checkpoints(folder)[-1]
    latents = torch.load(latest / "replay.pt", weights_only=True)
    total = latents.pop("total")
    pieces = [
        torch.load(latest.parent / "rows" / f"{a:09d}-{b:09d}.pt", weights_only=True)
        for a, b in json.loads((latest / "segments.json").read_text())
    ]
    held = len(latents["deter"])
    static = {key: torch.cat([piece[key] for piece in pieces])[-held:] for key in pieces[0]}
    order = torch.arange(total - held, total) % held
    return static | {key: value[order] for key, value in latents.items()}


def difference(a: Any, b: Any, path: str = "") -> str:
    """Where two stored values differ, bit for bit; empty where they do not."""
    if type(a) is not type(b):
        return f"{path}: {a!r} and {b!r}"
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{path}: keys {sorted(a.keys() ^ b.keys())}"
        return next((d for k in a if (d := difference(a[k], b[k], f"{path}/{k}"))), "")
    if isinstance(a, list):
        if len(a) != len(b):
            return f"{path}: {len(a)} and {len(b)} entries"
        return next((d for i, x in enumerate(a) if (d := difference(x, b[i], f"{path}/{i}"))), "")
    if isinstance(a, torch.Tensor):
        return "" if a.dtype == b.dtype and torch.equal(a, b) else f"{path}: tensors"
    return "" if a == b else f"{path}: {a!r} and {b!r}"


def assert_same_run(a: Path, b: Path) -> None:
    """Two run folders hold one run: rows, summary, final state and replay, but for the wall clock."""
    assert rows(a) == rows(b)
    assert (a / "episodes.jsonl").read_bytes() == (b / "episodes.jsonl").read_bytes()
    assert summary(a) | {"wall_s": 0} == summary(b) | {"wall_s": 0}
    assert difference(state(a), state(b)) == ""
    if checkpoints(a)[-1].joinpath("replay.pt").exists():
        assert difference(replay(a), replay(b)) == ""


def start(folder: Path, *overrides: str, die: str = "", resume: bool = False) -> subprocess.Popen[str]:
    """lore-train as a process of its own: a new run of TINY, or the rest of one."""
    arguments = [f"resume={folder}"] if resume else [*TINY, *overrides, f"run.dir={folder}"]
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), die, *arguments],
        cwd=folder.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, number: int, die: Callable[[], None] = _die) -> None:
    """Call `die` the `number`th time that `point` is reached in this process."""
    import shutil

    from lore.base import jsonl
    from lore.training import checkpoint

    left = [number]

    def due() -> bool:
        left[0] -= 1
        return left[0] == 0

    if point == "write":
        real_write = checkpoint._write

        def write(path: Path, value: Any) -> None:
            real_write(path, value)
            if due():
                os.truncate(path, path.stat().st_size // 2)
                die()

        checkpoint._write = write
    elif point == "row":
        real_row = jsonl.JsonlFile._write

        def write_row(file: jsonl.JsonlFile, line: bytes) -> None:
            if file.path.name != "llm.jsonl" and due():
                file._file.write(line[: len(line) // 2])
                die()
            real_row(file, line)

        jsonl.JsonlFile._write = write_row  # type: ignore[method-assign]
    else:
        where: dict[str, list[tuple[Any, str]]] = {
            "rename": [(os, "rename")],
            "prune": [(shutil, "rmtree"), (Path, "unlink")],
        }
        for owner, name in where[point]:
            _before(owner, name, lambda path: "checkpoints" in str(path) and due(), die)


def _before(owner: Any, name: str, due: Callable[[Any], bool], die: Callable[[], None]) -> None:
    real = getattr(owner, name)

    def call(path: Any, *args: Any, **kwargs: Any) -> Any:
        if due(path):
            die()
        return real(path, *args, **kwargs)

    setattr(owner, name, call)


def main(die: str, arguments: list[str]) -> int:
    if die:
        point, _, number = die.partition(":")
        arm(point, int(number))
    from lore.cli import train

    return train.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

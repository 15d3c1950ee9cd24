"""Checkpoints: everything that has state, written so that a kill at any moment loses nothing that counted.

    checkpoints/step-000000500/   state.pt, replay.pt (latents), segments.json
    checkpoints/rows/             replay rows in pieces that never change, shared by the checkpoints

A checkpoint is written beside its final name, synced and renamed; the two latest are kept. Rows are
appended: a piece holds what came since the checkpoint before. Training waits for the copy in memory only;
a thread does the writing.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lore.base.files import sync_folder
from lore.dreamer.replay import ReplayBuffer

KEEP = 2


class Unreadable(ValueError):
    """A file of a checkpoint is missing or damaged."""


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run_dir: Path, replay: ReplayBuffer | None):
        self.dir, self.replay = run_dir / "checkpoints", replay
        self._segments: list[list[int]] = []  # [start, stop) ticks of the replay, oldest first
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def save(self, env_step: int, state: dict[str, Any]) -> Future[None]:
        """Copy the replay; write it and `state` in the background. The result comes when both are durable.

        state: tensors, numbers, strings, lists and dicts of these, which nobody changes afterwards. Waits for
        the save before this one, and raises what it raised.
        """
        self.wait()
        rows = latents = None
        if self.replay is not None:
            start = self._drop_overwritten(self.replay)
            if start < self.replay.total:
                rows = (start, self.replay.total, self.replay.rows(start, self.replay.total))
                self._segments.append([start, self.replay.total])
            latents = self.replay.state_dict()
        self._pending = self._writer.submit(self._save, env_step, state, list(self._segments), rows, latents)
        return self._pending

    def wait(self) -> None:
        """Until the save under way is durable; raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _save(
        self,
        env_step: int,
        state: dict[str, Any],
        segments: list[list[int]],
        rows: tuple[int, int, dict[str, torch.Tensor]] | None,
        latents: dict[str, Any] | None,
    ) -> None:
        final = self.dir / f"step-{env_step:09d}"
        partial = self.dir / f".partial-{env_step:09d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if rows is not None:
            start, stop, values = rows
            self._write_rows(self._rows(start, stop), values)
        if latents is not None:
            _write(partial / "replay.pt", latents)
        _write(partial / "segments.json", segments)
        _write(partial / "state.pt", state)
        sync_folder(partial)
        if final.exists():  # made when a stop cut this step short; the one before it still stands
            os.rename(final, self.dir / f".partial-{env_step:09d}-replaced")
        os.rename(partial, final)
        sync_folder(self.dir)
        shutil.rmtree(self.dir / f".partial-{env_step:09d}-replaced", ignore_errors=True)
        self._prune()

    def load(self) -> dict[str, Any] | None:
        """Restore the replay and return the latest state; None before the first checkpoint.

        Raises ValueError, naming the file and what to do, where the checkpoint cannot be read.
        """
        self.wait()
        for leftover in self.dir.glob(".partial-*"):
            shutil.rmtree(leftover)
        found = sorted(self.dir.glob("step-*"))
        if not found:
            return None
        try:
            return self._load(found[-1])
        except Unreadable as error:
            raise Unreadable(f"{error}; delete {found[-1]} to go on from the checkpoint before") from error

    def _load(self, folder: Path) -> dict[str, Any]:
        self._segments = _read(folder / "segments.json")
        if self.replay is not None:
            for start, stop in self._segments:
                self.replay.load_rows(start, _read(self._rows(start, stop)))
            self.replay.load_state_dict(_read(folder / "replay.pt"))
        return _read(folder / "state.pt")

    def _rows(self, start: int, stop: int) -> Path:
        return self.dir / "rows" / f"{start:09d}-{stop:09d}.pt"

    def _drop_overwritten(self, replay: ReplayBuffer) -> int:
        """Forget pieces that the ring has left behind. Returns the first tick that is in no piece."""
        oldest = replay.total - replay.filled
        start = max(oldest, self._segments[-1][1] if self._segments else 0)
        self._segments = [s for s in self._segments if s[1] > oldest]
        return start

    @staticmethod
    def _write_rows(path: Path, values: dict[str, torch.Tensor]) -> None:
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        _write(partial, values)
        os.rename(partial, path)
        sync_folder(path.parent)

    def _prune(self) -> None:
        found = sorted(self.dir.glob("step-*"))
        for old in found[:-KEEP]:
            shutil.rmtree(old)
        needed = {self._rows(*segment) for kept in found[-KEEP:] for segment in _read(kept / "segments.json")}
        for path in (self.dir / "rows").glob("*"):
            if path not in needed:
                path.unlink()


def load_state(run_dir: Path, name: str = "latest") -> dict[str, Any]:
    """The state of one checkpoint, without its replay. name: "latest" or a folder in checkpoints/.

    Raises FileNotFoundError, listing what is there, where it does not exist.
    """
    found = sorted((run_dir / "checkpoints").glob("step-*"))
    chosen = [p for p in found if p.name == name] if name != "latest" else found[-1:]
    if not chosen:
        there = ", ".join(p.name for p in found) or "none"
        raise FileNotFoundError(f"no checkpoint {name!r} in {run_dir}; there: {there}")
    return _read(chosen[0] / "state.pt")


def _write(path: Path, value: Any) -> None:
    with open(path, "wb") as file:
        if path.suffix == ".json":
            file.write(json.dumps(value).encode())
        else:
            torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(path.read_bytes())
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a damaged file; the cause is kept
        raise Unreadable(f"cannot read {path} ({type(error).__name__})") from error

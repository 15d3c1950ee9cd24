"""Checkpoints: everything that has state, written so that a kill at any moment loses nothing that counted.

    checkpoints/step-000000500/   state.pt, replay.pt (latents), segments.json, manifest.json
    checkpoints/rows/             replay rows in pieces that never change, shared by the checkpoints

A checkpoint is written beside its final name, synced and renamed; the two latest are kept. Rows are
appended: a piece holds what came since the checkpoint before. Training waits for the copy in memory only;
a thread does the writing, and computes the digests that `lore.training.manifest` verifies.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lore.base.errors import BadInput
from lore.base.files import Unreadable, read_json, regular, set_aside, sync_folder
from lore.dreamer.replay import ReplayBuffer
from lore.training import manifest as sealing
from lore.training.manifest import Digest, Manifest, piece_name

KEEP = 2
LEFTOVER = re.compile(r"\.partial-\d{9,}(-replaced)?")
HALF_PIECE = re.compile(r"\d{9,}-\d{9,}\.partial")
ELSEWHERE = ("device", "llm.base_url", "llm.key_variable")  # may differ where a run is only looked at
SEALED = "sealed"  # in a state: the checkpoint has a manifest
Segment = tuple[int, int]


class Checkpoints:
    """The checkpoints of one run folder, for the one process that owns it."""

    def __init__(
        self,
        run_dir: Path,
        replay: ReplayBuffer | None,
        config: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = print,
    ):
        """
        Args:
            run_dir: The run folder.
            replay: Saved and restored with the state; None: there is none.
            config: The options of the run, as asdict(Config). A checkpoint of others is refused.
            say: Takes a line for the user.
        """
        self.run_dir, self.dir, self.replay = run_dir, run_dir / "checkpoints", replay
        self.config, self.say = dict(config or {}), say
        self.loaded: Path | None = None  # the state that `load` returned
        self._pieces: dict[Segment, Digest | None] = {}  # [start, stop) ticks of the replay, oldest first
        self._record = sealing.Record(run_dir)
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def save(self, env_step: int, state: dict[str, Any]) -> Future[None]:
        """Copy the replay, then write the copy and `state` in the background.

        Waits for the save before this one, and raises what that save raised.

        Args:
            env_step: Environment steps of the run, which name the checkpoint.
            state: Tensors, numbers, strings, lists and dicts of these, which nobody changes afterwards.

        Returns:
            A future that is done when replay and state are durable.
        """
        self.wait()
        rows = latents = None
        if self.replay is not None:
            start, stop = self._drop_overwritten(self.replay), self.replay.total
            if start < stop:
                rows = self.replay.rows(start, stop)
                self._pieces[start, stop] = None  # until the thread has written it
            latents = self.replay.state_dict()
        self._pending = self._writer.submit(self._save, env_step, state, rows, latents, self._record.sizes())
        return self._pending

    def wait(self) -> None:
        """Wait until the save under way is durable; raise what the save raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _save(
        self,
        env_step: int,
        state: dict[str, Any],
        rows: dict[str, torch.Tensor] | None,
        latents: dict[str, Any] | None,
        sizes: dict[str, int],
    ) -> None:
        """Write a checkpoint, in the thread; `save` waits for the end before it touches `_pieces` again."""
        final = self.dir / sealing.folder_name(env_step)
        partial = self.dir / f".partial-{env_step:09d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if rows is not None:
            self._write_rows(list(self._pieces)[-1], rows)
        files = {"state.pt": state | {SEALED: True}, "segments.json": [list(s) for s in self._pieces]}
        if latents is not None:
            files["replay.pt"] = latents
        for name, value in files.items():
            _write(partial / name, value)
        digests = {name: sealing.digest_file(partial / name) for name in files}
        digests |= {f"rows/{piece_name(*s)}": self._digest(s) for s in self._pieces}
        sealing.write(partial, Manifest(env_step, digests, self._record.digests(sizes), self.config))
        sync_folder(partial)
        self._put_in_place(partial, final)
        self._prune()

    def load(self) -> dict[str, Any] | None:
        """Restore the replay and return the latest state that is whole.

        A damaged checkpoint is renamed, which is said, and the one before it is used.

        Returns:
            Name of a part -> its state; None before the first checkpoint.

        Raises:
            BadInput: There is none to go on from without a loss, or `config` is not what it was made under.
        """
        self.wait()
        self._clean_up()
        damaged: dict[Path, Unreadable] = {}
        while (point := sealing.resume_point(self.run_dir, damaged)) is not None:
            folder, manifest = point
            if self.config:
                sealing.check_config(folder, manifest, self.config, {"run.steps"})
            try:
                state = self._load(folder, manifest)
            except Unreadable as error:
                damaged[folder] = error
                continue
            self.loaded = folder / "state.pt"
            for path, why in damaged.items():
                aside = set_aside(path)
                self.say(f"{why}; going on from {folder.name}, the damaged one is kept as {aside.name}")
            if manifest is None:
                self.say(f"{folder} is of a version without checksums: used as it is, unverified")
            return state
        return None

    def _load(self, folder: Path, manifest: Manifest | None) -> dict[str, Any]:
        state = _read_state(folder, manifest)
        self._pieces = {}
        if self.replay is not None:
            for segment in _read_segments(folder):
                name = f"rows/{piece_name(*segment)}"
                path = sealing.locate(folder, name)
                values = _read(path)
                with not_fitting("resume", path):
                    self.replay.load_rows(segment[0], values)
                self._pieces[segment] = manifest.files.get(name) if manifest else None
            values = _read(folder / "replay.pt")
            with not_fitting("resume", folder / "replay.pt"):
                self.replay.load_state_dict(values)
            held = range(self.replay.total - self.replay.filled, self.replay.total)
            if held and (
                not self._pieces or held[0] < min(self._pieces)[0] or max(self._pieces)[1] != held.stop
            ):
                raise Unreadable(
                    f"{folder / 'segments.json'}: steps {held.start} to {held.stop} are not all in it"
                )
        return state

    def _drop_overwritten(self, replay: ReplayBuffer) -> int:
        """Forget pieces that the ring has left behind. Returns the first tick that is in no piece."""
        oldest = replay.total - replay.filled
        start = max(oldest, *(stop for _, stop in self._pieces), 0)
        self._pieces = {segment: d for segment, d in self._pieces.items() if segment[1] > oldest}
        return start

    def _write_rows(self, segment: Segment, values: dict[str, torch.Tensor]) -> None:
        path = self.dir / "rows" / piece_name(*segment)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        _write(partial, values)
        os.rename(partial, path)
        sync_folder(path.parent)

    def _digest(self, segment: Segment) -> Digest:
        """Digest of a piece: it is read once, after it was written, or found in an unverified checkpoint."""
        known = self._pieces[segment] or sealing.digest_file(self.dir / "rows" / piece_name(*segment))
        self._pieces[segment] = known
        return known

    def _put_in_place(self, partial: Path, final: Path) -> None:
        """Give a written checkpoint its name. An older one of the same name stands until that moment."""
        replaced = partial.with_name(f"{partial.name}-replaced")
        if final in sealing.checkpoints(self.run_dir):
            os.rename(final, replaced)
        elif final.exists():
            self.say(f"{final} is none of this run's; it is kept as {set_aside(final, 'foreign').name}")
        os.rename(partial, final)
        sync_folder(self.dir)
        shutil.rmtree(replaced, ignore_errors=True)

    def _clean_up(self) -> None:
        """Remove what a killed save left; a checkpoint that was to be replaced gets its name back."""
        for path in self.dir.glob(".partial-*"):
            match = LEFTOVER.fullmatch(path.name)
            if match is None:
                continue
            final = self.dir / path.name.removesuffix("-replaced").replace(".partial", "step")
            if match[1] and not final.exists():
                os.rename(path, final)
            else:
                shutil.rmtree(path)

    def _prune(self) -> None:
        """Remove what we wrote and no longer need: older checkpoints, and pieces that no kept one has."""
        found = sealing.checkpoints(self.run_dir)
        for old in found[:-KEEP]:
            shutil.rmtree(old)
        try:
            needed = {piece_name(*s) for kept in found[-KEEP:] for s in _read_segments(kept)}
        except Unreadable:  # the older one was damaged meanwhile: which pieces it needs is unknown
            return
        for path in (self.dir / "rows").glob("*"):
            ours = sealing.PIECE.fullmatch(path.name) or HALF_PIECE.fullmatch(path.name)
            if ours and path.name not in needed and path.is_file():
                path.unlink()


def load_state(
    run_dir: Path,
    name: str = "latest",
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Read the state of one checkpoint, without its replay.

    Args:
        run_dir: The run folder.
        name: "latest" or a folder in checkpoints/.
        config: The options of the run, as asdict(Config), to be compared, but for ELSEWHERE; None: they
            are not.
        say: Takes a line for the user.

    Returns:
        Name of a part -> its state.

    Raises:
        FileNotFoundError: It does not exist; those that do are listed.
        Unreadable: It is damaged.
        BadInput: `config` is not what it was made under.
    """
    found = sealing.checkpoints(run_dir)
    chosen = [p for p in found if p.name == name] if name != "latest" else found[-1:]
    if not chosen:
        there = ", ".join(p.name for p in found) or "none"
        raise FileNotFoundError(f"no checkpoint {name!r} in {run_dir}; there: {there}")
    folder = chosen[0]
    try:
        manifest = sealing.verify(folder, only=("state.pt",))
        state = _read_state(folder, manifest)
    except Unreadable as error:
        others = [p.name for p in found if p != folder]
        way = f"use checkpoint={others[-1]}, or " if others else ""
        raise Unreadable(f"{error}; {way}put back a copy of it") from error
    if manifest is None:
        say(f"{folder} is of a version without checksums: used as it is, unverified")
    elif config is not None:
        sealing.check_config(folder, manifest, config, ELSEWHERE)
    return state


def _read_state(folder: Path, manifest: Manifest | None) -> dict[str, Any]:
    state = _read(folder / "state.pt")
    if not isinstance(state, dict):
        raise Unreadable(f"{folder / 'state.pt'}: holds no state but {type(state).__name__}")
    if state.pop(SEALED, False) and manifest is None:
        raise Unreadable(f"{folder / sealing.NAME}: is missing")
    return state


def _read_segments(folder: Path) -> list[Segment]:
    """The pieces of a checkpoint, oldest first: each begins where the one before ends."""
    path = folder / "segments.json"
    found: list[Segment] = []
    for entry in read_json(path, list):
        whole = isinstance(entry, list) and len(entry) == 2 and all(type(tick) is int for tick in entry)
        if not whole or not 0 <= entry[0] < entry[1] or (found and entry[0] != found[-1][1]):
            raise Unreadable(f"{path}: {entry!r:.40} is no piece that goes on from the one before")
        found.append((entry[0], entry[1]))
    return found


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
        with open(path, "rb", opener=regular) as file:
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a damaged file; the cause is kept
        raise Unreadable(f"{path}: cannot be read ({type(error).__name__})") from error


@contextmanager
def not_fitting(key: str, name: object) -> Iterator[None]:
    """Within it, a stored state that its part cannot take is refused by name; the cause is kept.

    Args:
        key: The option that names the run, for the error.
        name: The file, for the error.

    Raises:
        BadInput: A key is missing, or a value has another type or shape.
    """
    try:
        yield
    except BadInput:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        why = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise BadInput(
            key, f"{name}: holds no state of this run ({why}); put back a copy of this checkpoint"
        ) from error

"""Checkpoints by themselves: what is written, kept and pruned, and that no crash leaves half of one."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import runs

from lore.base.errors import BadInput
from lore.base.rng import generator
from lore.base.types import Latent, ObsSpec
from lore.config.compose import compose
from lore.dreamer.replay import ReplayBuffer, columns
from lore.training import checkpoint
from lore.training.build import build_replay
from lore.training.checkpoint import Checkpoints, load_state

SPEC = {
    "view": ObsSpec((3,), classes=5),
    "image": ObsSpec((2, 2, 3)),
    "vector": ObsSpec((4,), dtype="float32"),
}


def buffer(ticks: int = 20, envs: int = 2, dtype: torch.dtype = torch.float32) -> ReplayBuffer:
    return ReplayBuffer(ticks * envs, envs, columns(SPEC, 6), 8, 3, generator(0, "replay"), dtype)


def fill(replay: ReplayBuffer, ticks: int) -> None:
    """Random rows and, as training does, new latents everywhere; what comes depends on `total` alone."""
    for _ in range(ticks):
        rng = generator(replay.total, "row")
        row = {
            key: torch.rand(store.shape[1:], generator=rng).mul(5).to(store.dtype)
            for key, store in replay.static.items()
        }
        n = replay.num_envs
        replay.add(row, Latent(torch.zeros(n, 8), torch.zeros(n, 3)))
    rng = generator(replay.total, "latents")
    for store in replay.latents.values():
        store.copy_(torch.rand(store.shape, generator=rng).mul(5))


def contents(replay: ReplayBuffer) -> dict[str, Any]:
    """All that is held, oldest tick first."""
    order = torch.arange(replay.total - replay.filled, replay.total) % replay.ticks
    stores = replay.static | replay.latents
    return {"total": replay.total} | {key: store[order].clone() for key, store in stores.items()}


def restored(folder: Path, like: ReplayBuffer) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a new process finds: contents of the replay, and the state."""
    fresh = buffer(like.ticks, like.num_envs, like.latents["deter"].dtype)
    state = Checkpoints(folder, fresh).load()
    return contents(fresh), state


def pieces(folder: Path) -> dict[str, tuple[int, int]]:
    """Files of replay rows: name -> what changes when one is written again."""
    found = (folder / "checkpoints" / "rows").iterdir()
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def spans(folder: Path) -> list[list[int]]:
    return json.loads((runs.checkpoints(folder)[-1] / "segments.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_saved_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    replay = buffer(dtype=dtype)
    saver = Checkpoints(tmp_path, replay)
    for step, ticks in enumerate((0, 3, 1, 0, 4)):
        fill(replay, ticks)
        state = {"weights": torch.randn(5).to(dtype), "curve": [[1, 0.5]], "none": None, "n": replay.total}
        saver.save(step, state).result()
        found, loaded = restored(tmp_path, replay)
        assert runs.difference(found, contents(replay)) == ""
        assert runs.difference(loaded, state) == ""


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path: Path) -> None:
    replay = buffer()
    assert Checkpoints(tmp_path, replay).load() is None
    assert replay.total == 0


def test_a_piece_once_written_is_never_written_again(tmp_path: Path) -> None:
    replay = buffer()
    saver = Checkpoints(tmp_path, replay)
    before: dict[str, tuple[int, int]] = {}
    for step in range(1, 5):
        fill(replay, 4)
        saver.save(step, {}).result()
        now = pieces(tmp_path)
        assert len(now) == step
        assert {name: now[name] for name in before} == before
        before = now


def test_a_resumed_run_appends_to_the_pieces_it_found(tmp_path: Path) -> None:
    replay = buffer()
    fill(replay, 7)
    Checkpoints(tmp_path, replay).save(1, {}).result()
    before = pieces(tmp_path)
    resumed = buffer()
    saver = Checkpoints(tmp_path, resumed)
    saver.load()
    fill(resumed, 2)
    saver.save(2, {}).result()
    assert spans(tmp_path) == [[0, 7], [7, 9]]
    assert pieces(tmp_path).items() > before.items()


def test_the_two_latest_are_kept(tmp_path: Path) -> None:
    replay = buffer()
    saver = Checkpoints(tmp_path, replay)
    for step in (0, 5, 12, 100):
        fill(replay, 1)
        saver.save(step, {"step": step}).result()
    assert [path.name for path in runs.checkpoints(tmp_path)] == ["step-000000012", "step-000000100"]
    assert load_state(tmp_path)["step"] == 100
    assert load_state(tmp_path, "step-000000012")["step"] == 12


def test_pieces_go_when_the_ring_has_left_them_behind(tmp_path: Path) -> None:
    """20 ticks, 6 a save: only what one of the two kept checkpoints holds is on the disk."""
    replay = buffer()
    saver = Checkpoints(tmp_path, replay)
    for step in range(1, 9):
        fill(replay, 6)
        saver.save(step, {}).result()
        oldest = max(0, replay.total - 6 - replay.ticks)  # of the checkpoint before
        on_disk = sorted([int(n[:9]), int(n[10:19])] for n in pieces(tmp_path))
        assert on_disk == [[a, a + 6] for a in range(0, replay.total, 6) if a + 6 > oldest]


@pytest.mark.parametrize("ticks", [6, 20, 33])
def test_after_wrap_around_the_ring_comes_back_as_it_was(ticks: int, tmp_path: Path) -> None:
    """Less than the ring, all of it, and more than it between two saves; resumed after each."""
    replay = buffer()
    for step in range(1, 8):
        saver = Checkpoints(tmp_path, replay)
        saver.load()
        fill(replay, ticks)
        saver.save(step, {}).result()
        found, _ = restored(tmp_path, replay)
        assert runs.difference(found, contents(replay)) == ""
    assert replay.total > 2 * replay.ticks


def test_the_empty_part_of_the_ring_is_not_written(tmp_path: Path) -> None:
    replay = ReplayBuffer(100_000, 1, columns(SPEC, 6), 512, 32, generator(0, "replay"))
    Checkpoints(tmp_path, replay).save(0, {}).result()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 50_000


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name", ["state.pt", "replay.pt", "segments.json", "manifest.json", "../rows/000000004-000000008.pt"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    name: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay = buffer()
    saver = Checkpoints(tmp_path, replay)
    fill(replay, 4)
    saver.save(1, {"step": 1}).result()
    before = contents(replay)
    fill(replay, 4)
    saver.save(2, {"step": 2}).result()
    latest = runs.checkpoints(tmp_path)[-1]
    DAMAGE[damage]((latest / name).resolve())
    found, state = restored(tmp_path, replay)
    assert state == {"step": 1}
    assert runs.difference(found, before) == ""
    (line,) = capsys.readouterr().out.splitlines()
    assert Path(name).name in line and "going on from step-000000001" in line
    assert [p.name for p in runs.checkpoints(tmp_path)] == ["step-000000001"]
    assert (tmp_path / "checkpoints" / "damaged-step-000000002").is_dir()


def test_where_no_checkpoint_is_whole_all_are_named_and_nothing_changes(tmp_path: Path) -> None:
    replay = buffer()
    saver = Checkpoints(tmp_path, replay)
    for step in (1, 2):
        fill(replay, 4)
        saver.save(step, {}).result()
    for folder in runs.checkpoints(tmp_path):
        (folder / "state.pt").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match=r"step-000000002/state\.pt.*step-000000001/state\.pt") as error:
        restored(tmp_path, replay)
    assert "delete" not in str(error.value) and "copy" in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_what_we_wrote_is_ours(tmp_path: Path) -> None:
    """Copies and folders of the user's, in names like ours: never loaded, deleted or in the way."""
    replay = buffer()
    saver = Checkpoints(tmp_path, replay)
    fill(replay, 4)
    saver.save(1, {"step": 1}).result()
    folder = tmp_path / "checkpoints"
    ours = folder / "step-000000001"
    copies = [
        "step-best",
        "step-60-good",
        "step-2",
        "step-0000000002",
        "step-000000099",
        "step-000000001.bak",
    ]
    for name in copies:
        shutil.copytree(ours, folder / name)
    (folder / "step-000000003").write_text("a file")
    (folder / ".partial-mine").mkdir()
    (folder / "rows" / "mine").mkdir()
    (folder / "rows" / "000000000-000000004 (copy).pt").write_text("")
    (folder / "rows" / "000000007-000000009.pt").mkdir()
    theirs = {path for path in folder.rglob("*") if ours not in path.parents}
    assert restored(tmp_path, replay)[1] == {"step": 1}
    saver = Checkpoints(tmp_path, replay)
    saver.load()
    for step in (4, 5, 6):
        fill(replay, 1)
        saver.save(step, {"step": step}).result()
    theirs -= {ours}
    assert all(path.exists() for path in theirs)
    assert restored(tmp_path, replay)[1] == {"step": 6}
    assert not ours.exists()


def test_a_checkpoint_without_a_manifest_is_used_and_said_to_be_unverified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As versions before manifests wrote them; a lost manifest is not taken for one of these."""
    replay = buffer()
    fill(replay, 4)
    saver = Checkpoints(tmp_path, replay)
    saver.save(1, {"step": 1}).result()
    (folder,) = runs.checkpoints(tmp_path)
    (folder / "manifest.json").unlink()
    with pytest.raises(BadInput, match=r"manifest\.json"):
        restored(tmp_path, replay)
    torch.save({"step": 1}, folder / "state.pt")
    found, state = restored(tmp_path, replay)
    assert state == {"step": 1} == load_state(tmp_path)
    assert runs.difference(found, contents(replay)) == ""
    assert "unverified" in capsys.readouterr().out
    saver = Checkpoints(tmp_path, replay)
    saver.load()
    saver.save(2, {"step": 2}).result()
    files = json.loads((runs.checkpoints(tmp_path)[-1] / "manifest.json").read_text())["files"]
    assert "rows/000000000-000000004.pt" in files


def test_leftovers_of_a_killed_save_are_cleaned_up(tmp_path: Path) -> None:
    replay = buffer()
    saver = Checkpoints(tmp_path, replay)
    fill(replay, 4)
    saver.save(1, {}).result()
    folder = tmp_path / "checkpoints"
    (folder / ".partial-000000002").mkdir()
    (folder / ".partial-000000002" / "state.pt").write_bytes(b"half")
    (folder / "rows" / "000000004-000000009.pt").write_bytes(b"without a checkpoint")
    (folder / "rows" / "000000004-000000008.partial").write_bytes(b"half")
    saver = Checkpoints(tmp_path, replay)
    saver.load()
    assert not list(folder.glob(".partial*"))
    fill(replay, 4)
    saver.save(3, {}).result()
    assert sorted(pieces(tmp_path)) == ["000000000-000000004.pt", "000000004-000000008.pt"]


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    Checkpoints(tmp_path, None).save(7, {}).result()
    with pytest.raises(FileNotFoundError, match=r"step-000000009.*there: step-000000007"):
        load_state(tmp_path, "step-000000009")


class Killed(BaseException):
    """Stands for kill -9: nothing in lore catches it."""


CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}  # audit events
_hooks: list[Callable[[str], None]] = []  # called with each of these before it happens; empty: none is


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _hooks and event in CHANGES:
        _hooks[-1](f"{event} {args[0]}")


@contextmanager
def dying(moment: int) -> Iterator[list[str]]:
    """Die at the `moment`th change of the disk, half-written files among them; the moments so far."""
    passed: list[str] = []

    def at(what: str) -> None:
        passed.append(what)
        if len(passed) == moment:
            raise Killed(what)

    real = checkpoint._write

    def write(path: Path, value: Any) -> None:
        real(path, value)
        _hooks.clear()
        whole = path.read_bytes()
        for part in (b"", whole[: len(whole) // 2], whole):
            path.write_bytes(part)
            at(f"{len(part)} bytes of {path.name}")
        _hooks.append(at)

    _hooks.append(at)
    checkpoint._write = write
    try:
        yield passed
    finally:
        checkpoint._write = real
        _hooks.clear()


def test_a_save_that_dies_at_any_moment_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every moment of a save that appends, wraps around and prunes; then the run goes on and saves again."""
    sys.addaudithook(_audit)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # against power failure, which this is not about
    replay = buffer()
    saver = Checkpoints(tmp_path / "before", replay)
    for step in (1, 2, 3, 4):
        fill(replay, 7)
        saver.save(step, {"step": step}).result()
    old = contents(replay)
    fill(replay, 7)
    new = contents(replay)
    moment, outcomes = 0, set()
    while True:
        moment += 1
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "before", folder)
        saver = Checkpoints(folder, replay)
        saver.load()
        fill(replay, 7)
        try:
            with dying(moment) as passed:
                saver.save(5, {"step": 5}).result()
            break
        except Killed:
            pass
        resumed = buffer()
        saver = Checkpoints(folder, resumed)
        state = saver.load()
        assert state in ({"step": 4}, {"step": 5}), passed[-1]
        expected = old if state == {"step": 4} else new
        assert runs.difference(contents(resumed), expected) == "", passed[-1]
        outcomes.add(state["step"])
        for step in (6, 7):
            fill(resumed, 7)
            saver.save(step, {"step": step}).result()
        found, _ = restored(folder, resumed)
        assert runs.difference(found, contents(resumed)) == "", passed[-1]
        assert len(runs.checkpoints(folder)) == 2
        assert len(pieces(folder)) == 3 + 1, passed[-1]  # of 20 ticks, and one that the older one needs
        assert not list((folder / "checkpoints").glob(".*"))
        shutil.rmtree(folder)
    assert outcomes == {4, 5}
    assert moment > 30


def own_time() -> float:
    """Seconds on the wall clock without those in which this thread was ready and had no core (Linux)."""
    queued = Path("/proc/thread-self/schedstat")
    waited = int(queued.read_text().split()[1]) / 1e9 if queued.exists() else 0.0
    return time.perf_counter() - waited


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_save_at_100_000_steps_stalls_training_less_than_a_second(dtype: str, tmp_path: Path) -> None:
    """Size 1m, symbolic observations, 500 new steps a save; training goes on while the thread writes.

    The stall is the longest time between two small operations, without that in which there was no core.
    """
    cfg = compose([f"dtype={dtype}"])
    replay = build_replay(cfg, {"symbolic": ObsSpec((7, 7, 3), classes=11)}, 7, generator(0, "replay"))
    replay.total = 99_500
    saver = Checkpoints(tmp_path, replay)
    for store in replay.latents.values():
        store.fill_(1)  # all of it is in memory, as it is in training
    state = {"master": torch.randn(3, 700_000)}  # weights and both moments
    saver.save(99_500, state).result()
    stalls, written = [], []
    for _ in range(3):
        replay.total += 500
        last = started = own_time()
        pending = saver.save(replay.total, state)
        longest = 0.0
        while not pending.done():
            torch.ones(1000).sum()
            longest, last = max(longest, own_time() - last), own_time()
        pending.result()
        stalls.append(longest)
        written.append(own_time() - started)
    print(f"\n{dtype}: stalls {stalls} s, durable after {written} s")
    assert len(replay) == 100_000
    assert max(stalls) < 1


def test_an_error_of_the_writing_thread_is_raised(tmp_path: Path) -> None:
    saver = Checkpoints(tmp_path, buffer())
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    saver.save(1, {})
    with pytest.raises(OSError, match="checkpoints"):
        saver.save(2, {})
    saver.save(3, {})
    with pytest.raises(OSError, match="checkpoints"):
        saver.wait()

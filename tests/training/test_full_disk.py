"""A disk that fills up at any write: exit status 1 and a remedy, nothing half-written, and an exact rest."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import runs

from lore.base.errors import out_of_space
from lore.cli import train as cli
from lore.cli.guard import DONE, FAILED
from lore.metrics import logger

OPTIONS = ["env.id=MiniGrid-DoorKey-5x5-v0", "env.actions=all", "llm.cooldown_steps=3", "run.steps=80"]


class Full:
    """A disk that is full from the `number`th write on: an fsync, or a row of a JSONL file.

    Every durable write of a run ends with an fsync (checkpoints, summary, config, journal), so the drawn
    numbers fall on all kinds of them. Half of the row or of the bytes before the fsync are on the disk.
    """

    def __init__(self, patch: pytest.MonkeyPatch, number: int = 10**9) -> None:
        self.left, self.writes = number, 0
        self.fsync, self.row = os.fsync, logger.JsonlFile._write
        patch.setattr(os, "fsync", self._fsync)
        full = self

        def write_row(file: logger.JsonlFile, line: bytes) -> None:
            if full.due():
                os.write(file._file.fileno(), line[: len(line) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            full.row(file, line)

        patch.setattr(logger.JsonlFile, "_write", write_row)

    def due(self) -> bool:
        self.writes += 1
        self.left -= 1
        return self.left < 0

    def _fsync(self, handle: int) -> None:
        if self.due():
            if not os.path.isdir(f"/proc/self/fd/{handle}"):
                os.ftruncate(handle, os.fstat(handle).st_size // 2) if _is_new(handle) else None
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.fsync(handle)


def _is_new(handle: int) -> bool:
    """A file that is not in its place yet; a record keeps what it has."""
    return not os.readlink(f"/proc/self/fd/{handle}").endswith(".jsonl")


def start(folder: Path) -> int:
    return cli.main([*runs.TINY, *OPTIONS, f"run.dir={folder}"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An uninterrupted run, and how many writes it makes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        disk = Full(patch)
        assert start(folder) == DONE
    return folder, disk.writes


def test_a_full_disk_at_any_write_costs_one_line_and_nothing_else(
    whole: tuple[Path, int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up at eight writes, first to last; resume meets it still full, then free."""
    folder, writes = whole
    assert writes > 60
    seen = set()
    for k in range(8):
        run = tmp_path / f"run {k}"
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            Full(patch, k * (writes - 1) // 7)
            assert start(run) == FAILED
            error = capfd.readouterr().err
            last = error.splitlines()[-1]
            assert (
                "No space left on device" in last and "make room, then" in last and "Traceback" not in error
            )
            if not (run / "config.yaml").exists():
                assert "start it again" in last
                seen.add("start")
                continue
            assert last.endswith(f"lore-train resume={shlex.quote(str(run))}")
            assert cli.main([f"resume={run}"]) == FAILED
            error = capfd.readouterr().err
            assert "make room, then" in error.splitlines()[-1] and "Traceback" not in error
        seen.add("resume")
        assert cli.main([f"resume={run}"]) == DONE, capfd.readouterr().err
        runs.assert_same_run(folder, run)
    assert seen == {"start", "resume"}


def test_the_status_is_failed_where_there_is_room_for_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that does not fit leaves room for a summary, if not for much."""
    from lore.training import checkpoint

    run = tmp_path / "run"
    real: Callable[..., None] = checkpoint._write

    def write(path: Path, value: Any) -> None:
        if path.name == "replay.pt" and "30" in str(path):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        real(path, value)

    monkeypatch.setattr(checkpoint, "_write", write)
    assert start(run) == FAILED
    assert runs.summary(run)["status"] == "failed"
    assert "Disk quota exceeded" in capfd.readouterr().err.splitlines()[-1]
    assert "Disk quota exceeded" in (run / "error.txt").read_text()


def test_a_row_of_which_the_disk_takes_a_part_is_a_full_disk(tmp_path: Path) -> None:
    file = logger.JsonlFile(tmp_path / "rows.jsonl")
    file.append({"a": 1})

    class Short:
        fileno, close = file._file.fileno, file._file.close

        def write(self, line: bytes) -> int:
            return os.write(self.fileno(), line[:3])

    before, file._file = file.size, Short()  # type: ignore[assignment]
    with pytest.raises(OSError) as caught:
        file.append({"a": 2})
    assert out_of_space(caught.value) == os.strerror(errno.ENOSPC)
    assert file.size == before

"""What all tests share: how many of them run side by side, and runs that several of them read."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run side by side, a core each
# As in an activated environment: messages then suggest commands by their bare names.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from tests import runs


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto` is one worker for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file in `folder`, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """finished_run(*overrides): the folder of a finished run of runs.TINY, trained once for all tests.

    It is for reading: a test that changes something copies the folder first. A check at the end holds that.
    """
    made: dict[Path, dict[str, str]] = {}

    @cache
    def folder(*overrides: str) -> Path:
        path = runs.run(tmp_path_factory.mktemp("finished"), *overrides)
        made[path] = contents(path)
        return path

    yield folder
    changed = [str(path) for path, before in made.items() if contents(path) != before]
    assert not changed, f"a test changed a run that others read: {changed}"

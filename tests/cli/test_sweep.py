"""A parallel sweep: its jobs save and end with the process that started them, whatever ends that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import runs

from lore.cli import train as cli
from lore.cli.guard import DONE, INTERRUPTED
from lore.cli.sweep import is_parallel

LONG = [*runs.TINY, "run.steps=100000", "run.save_every=50000", "run.eval_every=0", "agent=random"]


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """A sweep of three jobs, two at a time, in a session of its own: as from a terminal of its own."""
    command = [sys.executable, "-c", "import sys; from lore.cli.train import main; sys.exit(main())"]
    folders = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=job${hydra.job.num}"]
    sweep = ["-m", "hydra/launcher=parallel", "hydra.launcher.n_jobs=2", "seed=0,1,2"]
    return subprocess.Popen(
        [*command, *sweep, *overrides, *folders],
        env=os.environ | {"PYTHONPATH": str(runs.ROOT / "src"), "OMP_NUM_THREADS": "1"},
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(true: Callable[[], object], what: str, seconds: float = 120.0) -> float:
    """Seconds until it was true."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, what
        time.sleep(0.02)
    return time.monotonic() - began


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def alive(group: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_jobs_end_with_their_parent_and_are_saved(number: int, tmp_path: Path) -> None:
    """A signal to the parent alone. What was saved goes on, and equals a run that was not interrupted."""
    sweep = tmp_path / "sweep"
    parent = start(sweep, *LONG)
    first = [sweep / "job0", sweep / "job1"]
    try:
        wait_until(lambda: all(steps(run) > 3 for run in first) or parent.poll() is not None, "no rows")
        parent.send_signal(number)
        wait_until(lambda: not alive(parent.pid) or parent.poll() is not None, "parent", 30)
        seconds = wait_until(lambda: not alive(parent.pid), "a job trains on", 30)
        output = parent.communicate(timeout=30)[0]
    finally:
        for pid in alive(parent.pid):
            os.kill(pid, signal.SIGKILL)
    assert [runs.summary(run)["status"] for run in first] == ["interrupted"] * 2, output
    assert all("lore-train resume=" in (run / "output.txt").read_text() for run in first)
    if number == signal.SIGTERM:
        assert parent.returncode == INTERRUPTED, output
        assert "SIGTERM: the jobs that run are saved" in output and "job0 interrupted" in output
        assert "Error executing job" not in output and not (sweep / "job2").exists()
        last = output.splitlines()[-1]
        assert all(last.count(f"lore-train resume={run}") == 1 for run in first), output
        assert "1 job never started: seed=2; the same command" in last, output
        assert seconds < 5
    at = runs.summary(first[0])["env_steps"]
    assert cli.main([f"resume={first[0]}", f"run.steps={at + 20}"]) == DONE
    runs.run(tmp_path / "whole", *LONG[len(runs.TINY) :], f"run.steps={at + 20}")
    runs.assert_same_run(tmp_path / "whole", first[0])


def test_only_jobs_side_by_side_need_a_leader() -> None:
    assert is_parallel(["-m", "hydra/launcher=parallel"]) and not is_parallel(["-m", "hydra/launcher=basic"])

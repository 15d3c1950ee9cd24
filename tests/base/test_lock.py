"""The owner of a folder: one process at a time, named to the second, and gone when it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lore.base import lock
from lore.base.errors import BadInput
from lore.base.lock import hold

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
OWNER = """
import sys, time
from pathlib import Path
from lore.base.lock import hold
with hold(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def owner(folder: Path) -> subprocess.Popen[str]:
    """A process that owns the folder until it is stopped."""
    child = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], env=ENV, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "mine\n"
    return child


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_another_process_is_named_and_takes_the_lock_along_when_it_ends(
    end: signal.Signals, tmp_path: Path
) -> None:
    child = owner(tmp_path)
    try:
        with pytest.raises(BadInput, match=rf"in use by process {child.pid} on .+ since 20") as error:
            hold(tmp_path, "resume").__enter__()
        assert error.value.key == "resume" and "\n" not in str(error.value)
    finally:
        child.send_signal(end)
        child.wait()
    (tmp_path / "a run's file").touch()
    with hold(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_of_many_processes_one_owns_the_folder(tmp_path: Path) -> None:
    code = OWNER.replace("time.sleep(60)", "sys.stdin.read()")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            env=ENV,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    until = time.monotonic() + 60
    while sum(child.poll() is None for child in children) > 1 and time.monotonic() < until:
        time.sleep(0.05)
    (first,) = [child for child in children if child.poll() is None]
    for child in children:
        output, error = child.communicate("")
        assert output == ("mine\n" if child is first else "")
        assert child is first or f"process {first.pid} " in error


def test_the_process_itself_may_enter_again_and_an_unused_folder_is_left_empty(tmp_path: Path) -> None:
    with hold(tmp_path):
        with hold(tmp_path):
            assert os.listdir(tmp_path) == [".lock"]
        assert (tmp_path / ".lock").exists()
    assert os.listdir(tmp_path) == []


def test_an_owner_that_removes_the_file_never_leaves_two_owners(tmp_path: Path) -> None:
    """Owners come and go while others try: never are there two at a time."""
    inside, most, failed = [0], [0], [0]

    def work() -> None:
        for _ in range(200):
            try:
                handle = lock._acquire(tmp_path, "run.dir", print)
            except BadInput:
                failed[0] += 1
                continue
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0)
            inside[0] -= 1
            (tmp_path / ".lock").unlink()
            os.close(handle)

    threads = [threading.Thread(target=work) for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock.time, "sleep", lambda seconds: None)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most[0] == 1


@pytest.mark.parametrize("kind", sorted(lock.NO_LOCKS))
def test_a_file_system_without_locks_gets_one_for_this_machine_and_that_is_said(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, said = fcntl.flock, []
    folder, temporary = tmp_path / "run", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()

    def flock(handle: int, how: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").startswith(str(folder)):
            raise OSError(kind, os.strerror(kind))
        real(handle, how)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    monkeypatch.setattr(lock.tempfile, "gettempdir", lambda: str(temporary))
    with hold(folder, say=said.append):
        monkeypatch.setattr(lock, "_held", set())
        with pytest.raises(BadInput, match="in use by process"):
            hold(folder, say=said.append).__enter__()
    assert len(said) == 1 and "without locks" in said[0]


@pytest.mark.parametrize("kind", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_refused(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*_: object) -> int:
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(lock.os, "open", no)
    with pytest.raises(BadInput, match="cannot write to"):
        hold(tmp_path).__enter__()


def test_a_full_disk_costs_the_note_and_not_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock.os, "pwrite", full)
    with hold(tmp_path):
        monkeypatch.setattr(lock, "_held", set())
        with pytest.raises(BadInput, match="in use by another process"):
            hold(tmp_path).__enter__()

"""What is optional is optional: a run goes on without a home folder, locks, folder syncs or a cache."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
from pathlib import Path

import pytest
from tests import runs

from lore.base import files
from lore.base.errors import BadInput
from lore.config.options import LLMOptions
from lore.training import run_folder
from lore.training.build_adviser import open_cache

OPTIONS = ["env.id=MiniGrid-DoorKey-5x5-v0", "env.actions=all", f"llm.cache={LLMOptions.cache}"]


def no_home(patch: pytest.MonkeyPatch, home: Path) -> None:
    """As a user without an entry in the list of users, as in many containers."""
    import pwd

    def unknown(key: object) -> None:
        raise KeyError(key)

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        patch.delenv(name, raising=False)
    patch.setattr(pwd, "getpwuid", unknown)


def no_folder_there(patch: pytest.MonkeyPatch, home: Path) -> None:
    """HOME names what cannot be made, as / of a read-only container or a mistyped path."""
    home.rmdir()
    home.write_text("a file")


def full_or_read_only(patch: pytest.MonkeyPatch, home: Path) -> None:
    real = Path.mkdir

    def mkdir(path: Path, *args: object, **kwargs: object) -> None:
        if home in path.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(path, *args, **kwargs)  # type: ignore[arg-type]

    patch.setattr(Path, "mkdir", mkdir)


def locks_refused(number: int):
    def refuse(patch: pytest.MonkeyPatch, home: Path) -> None:
        def flock(handle: int, operation: int) -> None:
            raise OSError(number, os.strerror(number))

        patch.setattr(fcntl, "flock", flock)

    return refuse


def folders_not_synced(patch: pytest.MonkeyPatch, home: Path) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(handle)

    patch.setattr(os, "fsync", fsync)
    files._say_unsynced.cache_clear()


CASES = {
    "no home": (no_home, "llm.cache: '~/.cache/lore/answers.sqlite': no such home folder"),
    "home is a file": (no_folder_there, "going on without a cache of answers"),
    "read-only home": (full_or_read_only, "going on without a cache of answers"),
    "ENOLCK": (locks_refused(errno.ENOLCK), "going on without a cache of answers"),
    "EINVAL": (locks_refused(errno.EINVAL), "going on without a cache of answers"),
    "folders": (folders_not_synced, "this file system cannot sync folders"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.run(tmp_path_factory.mktemp("whole"), *OPTIONS, "llm.cache=null")


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_says_once_what_it_lacks_and_has_the_same_numbers(
    case: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    prepare, says = CASES[case]
    prepare(monkeypatch, home)
    runs.run(tmp_path / "run", *OPTIONS)
    assert capfd.readouterr().err.count(says) == 1
    ours = ("llm/cache_hit_rate",)
    assert runs.rows(tmp_path / "run", leave_out=ours) == runs.rows(whole, leave_out=ours)


def test_a_cache_that_was_asked_for_is_refused_where_it_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"^llm\.cache: "):
        open_cache(str(tmp_path / "file" / "answers.sqlite"), print)
    with pytest.raises(BadInput, match=r"^llm\.cache: .* no such home folder"):
        open_cache("~nobody-by-this-name/answers.sqlite", print)
    assert open_cache(None, print) is None


def test_another_error_of_a_folder_sync_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        files.sync_folder(tmp_path)


@pytest.mark.skipif(not (runs.ROOT / ".git").exists(), reason="no git checkout")
def test_a_run_of_a_checkout_names_its_commit() -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=runs.ROOT, capture_output=True, text=True, check=True
    )
    found = run_folder.provenance(["lore-train"])
    assert found["commit"] == head.stdout.strip() and found["dirty"] in (True, False)

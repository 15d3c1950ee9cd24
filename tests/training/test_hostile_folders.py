"""Run folders that somebody else made or moved about: each file is named, nobody waits, nothing is lost."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import runs

from lore.base.lock import NAME as LOCK
from lore.cli.eval import main as evaluate
from lore.cli.guard import BAD_INPUT, DONE
from lore.cli.train import main
from lore.training import manifest

MADE_AGAIN = ("provenance.json", "summary.json")  # set aside, and written anew
IN_RUN = ("config.yaml", "metrics.jsonl", "episodes.jsonl", "llm.jsonl", *MADE_AGAIN)
IN_CHECKPOINT = ("state.pt", "replay.pt", "segments.json", "manifest.json")  # the checkpoint before is used
PARTS = (
    "agent",
    "gate",
    "adviser",
    "advice_meter",
    "envs",
    "collector",
    "skills",
    "metrics",
    "progress",
    "rng",
)
WRONG: tuple[Any, ...] = (None, {}, [1], "text", {"a": 1}, "gone")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, as lore-train leaves it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert command([*runs.TINY, "run.steps=60", "run.eval_episodes=1", f"run.dir={folder}"])[0] == DONE
    return folder


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Within it, whoever waits for longer than a minute ends the tests."""
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)


def command(arguments: list[str], run: Any = main) -> tuple[int, str]:
    """Exit status of a command in this process, and all that it said."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out), nobody_waits():
        status = run(arguments)
    assert "Traceback" not in out.getvalue()
    return status, out.getvalue()


@pytest.mark.parametrize("name", [*IN_RUN, *IN_CHECKPOINT, "rows"])
def test_a_pipe_in_the_place_of_a_file_is_named_and_nobody_waits_for_it(name: str, copy: Path) -> None:
    latest = manifest.checkpoints(copy)[-1]
    path = {"rows": sorted((latest.parent / "rows").iterdir())[-1]}.get(name, latest / name)
    path = copy / name if name in IN_RUN else path
    path.unlink()
    os.mkfifo(path)
    status, told = command([f"resume={copy}"])
    assert path.name in told
    if name in MADE_AGAIN:
        assert status == DONE and path.is_file() and (copy / f"damaged-{name}").is_fifo()
    else:
        assert status == (BAD_INPUT if name in IN_RUN else DONE), told


@pytest.mark.parametrize("name", MADE_AGAIN)
def test_a_folder_in_the_place_of_a_file_that_is_replaced_is_kept_aside(name: str, copy: Path) -> None:
    (copy / name).unlink()
    (copy / name / "mine").mkdir(parents=True)
    status, told = command([f"resume={copy}"])
    assert status == DONE and f"damaged-{name}" in told
    assert (copy / f"damaged-{name}" / "mine").is_dir() and (copy / name).is_file()


def seal(checkpoint: Path) -> None:
    """Make a manifest vouch for the files as they are now."""
    whole = manifest.read(checkpoint)
    assert whole is not None
    files = {name: manifest.digest_file(manifest.locate(checkpoint, name)) for name in whole.files}
    manifest.write(checkpoint, dataclasses.replace(whole, files=files))


@pytest.mark.parametrize("part", PARTS)
def test_a_state_of_another_shape_is_named_and_costs_no_row(part: str, copy: Path) -> None:
    """Its checksums fit: another version of the code, or somebody, wrote it."""
    checkpoint = manifest.checkpoints(copy)[-1]
    rows = {name: (copy / name).read_bytes() for name in manifest.RECORD}
    whole = torch.load(checkpoint / "state.pt", weights_only=True)
    for wrong in random.Random(part).sample(WRONG, 2):
        if part == "rng" and wrong == {}:
            continue  # a stream that is not stored starts anew
        state = whole | {part: wrong}
        if wrong == "gone":
            del state[part]
        torch.save(state, checkpoint / "state.pt")
        seal(checkpoint)
        status, told = command([f"resume={copy}"])
        assert status == BAD_INPUT and "put back a copy" in told, (wrong, told)
        assert f"resume: {checkpoint / 'state.pt'}: " in told, (wrong, told)
        assert rows == {name: (copy / name).read_bytes() for name in manifest.RECORD}
        if part in ("agent", "envs", "progress"):
            status, told = command([f"run={copy}", "episodes=1"], evaluate)
            assert status == BAD_INPUT and f"checkpoint: {copy}" in told, (wrong, told)


@pytest.mark.parametrize("value", [{"total": 5}, [5], {}, None])
@pytest.mark.parametrize("name", ["replay.pt", "rows"])
def test_a_replay_of_another_shape_is_named(name: str, value: Any, copy: Path) -> None:
    checkpoint = manifest.checkpoints(copy)[-1]
    path = checkpoint / name if name != "rows" else sorted((copy / "checkpoints" / "rows").iterdir())[-1]
    torch.save(value, path)
    seal(checkpoint)
    status, told = command([f"resume={copy}"])
    assert status == BAD_INPUT and f"{path}: " in told, told


def test_a_replay_of_which_pieces_are_missing_is_not_gone_on_from(copy: Path) -> None:
    *_, before, checkpoint = manifest.checkpoints(copy)
    (checkpoint / "segments.json").write_text("[]")
    seal(checkpoint)
    status, told = command([f"resume={copy}"])
    assert status == DONE and "segments.json" in told and f"going on from {before.name}" in told


@pytest.mark.parametrize("option", ["llm.cache", "llm.ledger"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "a long name"])
def test_a_run_that_is_refused_before_its_first_row_leaves_the_name_free(
    option: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / ("x" * 300 if kind == "a long name" else kind)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        place = os.getcwd()
        os.chdir(tmp_path)  # a socket has at most 100 characters of path
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(kind)
        os.chdir(place)
    run = tmp_path / "run"
    limit = ["llm.ledger_limit=3"] if option == "llm.ledger" else []
    status, told = command([*runs.TINY, f"{option}={path}", *limit, f"run.dir={run}"])
    assert status == BAD_INPUT and f"{option}: " in told and str(path) in told
    assert not run.exists() or {p.name for p in run.iterdir()} <= {LOCK}

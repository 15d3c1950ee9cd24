"""A command does not notice its terminal: closed, full, gone, or in another alphabet."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests import runs

from lore.base.streams import lost_output, protect_streams

KINDS = ("shown", "closed", "full", "broken pipe", "terminal that went away")
PROGRAM = """
import logging, os, sys, warnings
from lore.base.streams import lost_output, protect_streams
protect_streams()
protect_streams()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    for _ in range(3):
        print("\\u2581 \\u00e9 \\udcff", flush=True)
        print("x" * 100_000)
        print("\\u2581 \\u00e9 \\udcff", file=sys.stderr)
        sys.stdout.flush()
        logging.warning("caf\\u00e9")
        warnings.warn("\\u2581")
    sys.stdout.buffer.write(b"bytes")
    print("not flushed")
    file.write(",".join(sorted(lost_output())))
"""


def descriptor(kind: str) -> int:
    """A descriptor to write to that is of this kind ("closed" comes later)."""
    if kind == "full":
        return os.open("/dev/full", os.O_WRONLY)
    if kind == "broken pipe":
        reader, writer = os.pipe()
        os.close(reader)
        return writer
    if kind == "terminal that went away":
        keyboard, screen = os.openpty()
        os.close(keyboard)
        return screen
    return os.open(os.devnull, os.O_WRONLY)


def call(
    command: list[str], out: str, err: str, encoding: str, tmp_path: Path, nothing_read: bool = False
) -> int:
    """Exit status of a command with these streams."""
    ends = [descriptor(out), descriptor(err)]
    closed = [number for number, kind in ((1, out), (2, err)) if kind == "closed"]
    shell = " ".join(['exec "$@"', *(f"{number}>&-" for number in closed), "<&-" if nothing_read else ""])
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(runs.ROOT / "src"), "TERM": "xterm"}
    try:
        done = subprocess.run(
            ["sh", "-c", shell, "sh", *command],
            stdout=ends[0],
            stderr=ends[1],
            env=env | {"OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
        )
    finally:
        for end in ends:
            os.close(end)
    return done.returncode


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_no_stream_of_any_kind_raises(tmp_path: Path) -> None:
    """Every pair of kinds, each in one of four alphabets: exit status 0, and what was lost is known."""
    encodings = itertools.cycle(["utf-8", "ascii", "latin-1", "cp1252"])
    for out, err in itertools.product(KINDS, KINDS):
        encoding, told = next(encodings), tmp_path / "told"
        command = [sys.executable, "-c", PROGRAM, str(told)]
        status = call(command, out, err, encoding, tmp_path, nothing_read=out == "closed")
        assert status == 0, (out, err, encoding)
        lost = [name for name, kind in (("stderr", err), ("stdout", out)) if kind != "shown"]
        assert told.read_text() == ",".join(lost), (out, err, encoding)


def test_a_stream_of_somebody_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    before = lost_output()
    protect_streams()
    assert sys.stdout is mine and lost_output() == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.run(tmp_path_factory.mktemp("whole"), "env.id=MiniGrid-DoorKey-5x5-v0", "env.actions=all")


@pytest.mark.parametrize(
    ("out", "err", "encoding"),
    [
        ("broken pipe", "shown", "latin-1"),
        ("closed", "closed", "utf-8"),
        ("full", "terminal that went away", "ascii"),
        ("shown", "full", "ascii"),
    ],
)
def test_training_goes_on_to_the_end(out: str, err: str, encoding: str, whole: Path, tmp_path: Path) -> None:
    """Every file is there and every number is that of a run that was shown; the record says what was not."""
    folder = tmp_path / "r▁é"
    script = Path(sys.executable).with_name("lore-train")
    options = [*runs.TINY, "env.id=MiniGrid-DoorKey-5x5-v0", "env.actions=all", "logger.terminal=auto"]
    command = [sys.executable, str(script), *options, f"run.dir='{folder}'"]
    assert call(command, out, err, encoding, tmp_path) == 0
    assert runs.summary(folder)["status"] == "finished"
    runs.assert_same_run(whole, folder)
    lost = json.loads((folder / "provenance.json").read_text())["output_lost"]
    assert set(lost) == {name for name, kind in (("stderr", err), ("stdout", out)) if kind != "shown"}

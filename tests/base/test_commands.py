"""The commands that messages suggest run where they are shown."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from lore.base.commands import command_line


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("folder", ["env/bin", "an env/bin"])
def test_a_command_off_the_path_is_named_by_the_interpreters_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = executable(tmp_path / folder / "lore-eval")
    monkeypatch.setattr(sys, "executable", str(beside.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    line = command_line("lore-eval", "run=a b", "video=true")
    assert shlex.split(line) == [f"{folder}/lore-eval", "run=a b", "video=true"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert shlex.split(command_line("lore-eval"))[0] == str(beside)
    monkeypatch.setenv("PATH", str(beside.parent))
    assert command_line("lore-eval", "run=a b") == "lore-eval run='a b'"

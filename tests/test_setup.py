"""scripts/setup.sh: an installation is never silent for long, and one that fails says why."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
# A stand-in for python3: it checks out, makes an environment of itself, and its pip takes a while.
case "$2" in
venv) sleep SECONDS; mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/lore-train" ;;
pip)
  echo "Collecting torch"; sleep SECONDS
  echo "  Downloading torch-2.whl (800 MB)"; sleep SECONDS
  echo "Installing collected packages: torch"; sleep SECONDS
  exit STATUS ;;
esac
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs bash")


def install(root: Path, seconds: float, status: int = 0) -> subprocess.CompletedProcess[str]:
    root.mkdir(exist_ok=True)
    (root / "pyproject.toml").write_text("")
    (root / "constraints.txt").write_text("")
    python = root / "python"
    python.write_text(PYTHON.replace("SECONDS", str(seconds)).replace("STATUS", str(status)))
    python.chmod(0o755)
    setup = shlex.quote(f"{ROOT}/scripts/setup.sh")
    script = (
        f"set -euo pipefail; root={shlex.quote(str(root))}; source {setup}; pause=1; ensure_venv; echo on"
    )
    return subprocess.run(
        ["bash", "-c", script],
        env={"PATH": "/usr/bin:/bin", "LORE_PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_installation_says_what_it_does_all_along(tmp_path: Path) -> None:
    done = install(tmp_path / "a_b", 2.2)
    assert done.stdout == "on\n", done.stderr
    lines = done.stderr.splitlines()
    assert "first use" in lines[0]
    assert any("making the environment, 1 s so far" in line for line in lines)
    for step in ("Collecting torch", "Downloading torch-2.whl (800 MB)", "Installing collected packages"):
        assert any("installing, " in line and f"s so far: {step}" in line for line in lines), lines
    assert not list((tmp_path / "a_b").glob(".venv.log"))


def test_an_installation_that_fails_shows_what_pip_said_and_is_tried_again(tmp_path: Path) -> None:
    done = install(tmp_path / "r", 0, status=1)
    assert done.returncode == 1 and not done.stdout
    assert "Installing collected packages: torch" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("lore: the installation failed")
    again = install(tmp_path / "r", 0)
    assert again.returncode == 0 and "first use" in again.stderr
    once_more = install(tmp_path / "r", 0)
    assert once_more.stdout == "on\n" and not once_more.stderr


def test_whoever_waits_for_another_installation_is_told(tmp_path: Path) -> None:
    root = tmp_path / "r"
    root.mkdir()
    holder = subprocess.Popen(
        ["bash", "-c", f"exec 9>{root}/.venv.lock; flock 9; echo held; exec sleep 3"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    done = install(root, 0)
    holder.wait()
    assert done.returncode == 0 and done.stderr.count("waiting for another start") >= 2

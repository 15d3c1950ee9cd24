"""The run folder before and after training: claimed once, config and provenance in it, failure noted."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lore.base.errors import BadInput
from lore.base.files import write_atomic
from lore.config.options import Config

PACKAGES = ("lore", "torch", "numpy", "gymnasium", "minigrid", "hydra-core", "omegaconf", "wandb")


def claim(run_dir: Path) -> None:
    """Make the folder ours. Raises BadInput where it holds a run already or cannot be written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").touch(exist_ok=False)
    except FileExistsError:
        raise BadInput(
            "run.dir",
            f"{str(run_dir)!r} holds a run; go on with resume=RUN_DIR or name another folder",
        ) from None
    except OSError as error:
        raise BadInput("run.dir", f"cannot write to {str(run_dir)!r}: {error.strerror}") from error


def discard_empty(run_dir: Path) -> None:
    """Remove the folder of a refused run, and its parents below the working folder, while empty."""
    here = Path.cwd()
    while here in run_dir.parents:
        try:
            run_dir.rmdir()
        except OSError:  # not empty, or gone: nothing of ours to remove
            return
        run_dir = run_dir.parent


def write_start(run_dir: Path, config_yaml: str, cfg: Config, command: Sequence[str]) -> None:
    """Write config.yaml and provenance.json of a new run."""
    write_atomic(run_dir / "config.yaml", config_yaml)
    record = {"seed": cfg.seed, **provenance(command), "resumed": []}
    write_atomic(run_dir / "provenance.json", json.dumps(record, indent=2) + "\n")


def write_resume(run_dir: Path, config_yaml: str, command: Sequence[str]) -> None:
    """Note a continued run: its length in config.yaml, one more entry of `resumed` in provenance.json."""
    write_atomic(run_dir / "config.yaml", config_yaml)
    path = run_dir / "provenance.json"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    record.setdefault("resumed", []).append(provenance(command))
    write_atomic(path, json.dumps(record, indent=2) + "\n")


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """Where numbers come from: command, commit, versions, machine, time (UTC, ISO 8601)."""
    return {
        "command": shlex.join(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **_checkout(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {"system": platform.platform(), "cpu": _cpu(), "cores": os.cpu_count()},
    }


def write_failure(run_dir: Path, cfg: Config, error: BaseException) -> Path:
    """Set summary.json to `failed` and return the file with the traceback."""
    trace = run_dir / "error.txt"
    write_atomic(trace, "".join(traceback.format_exception(error)))
    path = run_dir / "summary.json"
    summary = {"env_id": cfg.env.id, "seed": cfg.seed, "env_steps": 0}
    if path.exists():
        summary = json.loads(path.read_text(encoding="utf-8"))
    write_atomic(path, json.dumps({**summary, "status": "failed"}, indent=2) + "\n")
    return trace


def failed(sweep: Path) -> list[str]:
    """Names of the run folders in a sweep's folder whose summary says that they failed."""
    summaries = sorted(sweep.glob("*/summary.json"))
    return [
        p.parent.name for p in summaries if json.loads(p.read_text(encoding="utf-8"))["status"] == "failed"
    ]


def _checkout() -> dict[str, Any]:
    """Commit of the source this runs from, or nulls outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # git missing, refusing the folder, or no commit yet
        return {"commit": None, "dirty": None}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

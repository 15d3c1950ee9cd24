"""The run folder before and after training: claimed once, config and provenance in it, failure noted."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lore.base.errors import BadInput, out_of_space
from lore.base.files import write_atomic
from lore.base.secrets import mask
from lore.config.options import Config

PACKAGES = ("lore", "torch", "numpy", "gymnasium", "minigrid", "hydra-core", "omegaconf", "wandb")


def claim(run_dir: Path) -> None:
    """Make the folder ours.

    Raises:
        BadInput: It holds a run already, or cannot be written.
        OSError: The disk is full.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").touch(exist_ok=False)
    except FileExistsError:
        raise BadInput(
            "run.dir",
            f"{str(run_dir)!r} holds a run; go on with resume=RUN_DIR or name another folder",
        ) from None
    except OSError as error:
        if out_of_space(error):  # not the user's mistake
            raise
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
        "command": mask(shlex.join(command)),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **_checkout(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {"system": platform.platform(), "cpu": _cpu(), "cores": os.cpu_count()},
    }


def write_failure(run_dir: Path, cfg: Config, error: BaseException) -> Path | None:
    """Note a failure: status `failed` in summary.json, the traceback in error.txt.

    What failed may be the disk: neither file is needed to go on, and each is written where it can be.

    Returns:
        The file with the traceback; None where it could not be written.
    """
    trace = run_dir / "error.txt"
    known = {"env_id": cfg.env.id, "seed": cfg.seed, "env_steps": 0}
    with suppress(OSError):
        _write_status(run_dir, "failed", known)
    try:
        write_atomic(trace, mask("".join(traceback.format_exception(error))))
    except OSError:  # the failure itself is told on stderr
        return None
    return trace


def write_interrupted(run_dir: Path) -> None:
    """Set a summary.json that says `running` to `interrupted`, where it can be written: nothing runs on."""
    summary = _summary(run_dir)
    if summary.get("status") == "running":
        with suppress(OSError):
            _write_status(run_dir, "interrupted", summary)


def write_lost_output(run_dir: Path, lost: Mapping[str, str]) -> None:
    """Note in provenance.json that output could not be shown: stream -> why; nothing where all was."""
    if lost:
        path = run_dir / "provenance.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        with suppress(OSError):
            write_atomic(path, json.dumps({**record, "output_lost": dict(lost)}, indent=2) + "\n")


def release_unused(run_dir: Path) -> bool:
    """Give a claimed folder back in which nothing could be written. Returns whether that was so."""
    config = run_dir / "config.yaml"
    if config.exists() and config.stat().st_size:
        return False
    for name in ("config.yaml", "summary.json", "error.txt"):
        (run_dir / name).unlink(missing_ok=True)
    discard_empty(run_dir)
    return True


def _write_status(run_dir: Path, status: str, known: Mapping[str, Any]) -> None:
    summary = {**(_summary(run_dir) or known), "status": status}
    write_atomic(run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")


def _summary(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return summary


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

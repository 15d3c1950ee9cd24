"""The run folder before and after training: claimed once, config and provenance in it, failure noted."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lore
from lore.base.commands import command_line
from lore.base.errors import BadInput, out_of_space
from lore.base.files import Unreadable, read_json, set_aside, write_atomic
from lore.base.lock import hold
from lore.base.machine import allotted_cores
from lore.base.secrets import mask
from lore.config.options import Config
from lore.training import manifest

CONFIG, PROVENANCE, SUMMARY = "config.yaml", "provenance.json", "summary.json"

PACKAGES = ("lore", "torch", "numpy", "gymnasium", "minigrid", "hydra-core", "omegaconf", "wandb")


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Own the folder of a new run while the block runs, and make it where there is none.

    A folder that an earlier command claimed and never used (an empty config.yaml, no rows) is taken again.

    Args:
        run_dir: The folder.

    Raises:
        BadInput: The folder holds a run, another process owns it, or it cannot be written.
        OSError: The disk is full.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if out_of_space(error):  # not the user's mistake
            raise
        raise BadInput("run.dir", f"cannot write to {str(run_dir)!r}: {error.strerror}") from error
    with hold(run_dir, "run.dir"):
        config = run_dir / CONFIG
        if config.exists() and (not config.is_file() or config.stat().st_size):
            way = f"go on with {command_line('lore-train', f'resume={run_dir}')} or name another folder"
            raise BadInput("run.dir", f"{str(run_dir)!r} holds a run; {way}")
        used = ", ".join(_used(run_dir))
        if used:
            holds = f"holds {used} of a run whose {CONFIG} is missing or empty"
            raise BadInput("run.dir", f"{str(run_dir)!r} {holds}; put it back, or name another folder")
        yield


@contextmanager
def take_up(run_dir: Path) -> Iterator[None]:
    """Own the folder of a run that goes on while the block runs.

    Args:
        run_dir: The run folder.

    Raises:
        BadInput: It is no run folder, or another process owns it.
    """
    if not (run_dir / CONFIG).exists() and not manifest.checkpoints(run_dir):
        raise BadInput("resume", f"{str(run_dir)!r} is not a run folder: it has no {CONFIG}")
    with hold(run_dir, "resume"):
        yield


def check_length(run_dir: Path, steps: int) -> None:
    """Refuse a length that the run has passed already.

    Args:
        run_dir: The run folder.
        steps: Environment steps of the run, as the command line gives them.

    Raises:
        BadInput: The latest checkpoint was made at a later step.
    """
    done = max((int(folder.name.rpartition("-")[2]) for folder in manifest.checkpoints(run_dir)), default=0)
    if steps < done:
        raise BadInput("run.steps", f"is {steps}, but {done} are done; give more, as in run.steps={2 * done}")


def check_resume(run_dir: Path, cfg: Config, given: Sequence[str]) -> None:
    """Compare the folder with what its latest whole checkpoint says of it, without a change to either.

    Args:
        run_dir: The run folder.
        cfg: The options to go on with.
        given: Keys that the command line sets; the others have to be those of the checkpoint.

    Raises:
        BadInput: Going on would lose rows, or lead to other numbers.
    """
    point = manifest.resume_point(run_dir, {})
    if point is not None:
        manifest.check_config(*point, asdict(cfg), given)


def discard_empty(run_dir: Path) -> None:
    """Remove the folder of a refused run, and its parents below the working folder, while they are empty.

    Args:
        run_dir: The folder; nothing is removed outside of the working folder.
    """
    here = Path.cwd()
    while here in run_dir.parents:
        try:
            run_dir.rmdir()
        except OSError:  # not empty, or gone: nothing of ours to remove
            return
        run_dir = run_dir.parent


def latest(outputs: Path, key: str = "resume") -> Path:
    """Find the run folder that was worked on last.

    Args:
        outputs: Folder that is searched; run folders are outputs/DATE/NAME.
        key: Key that asked for it, for messages.

    Raises:
        BadInput: There is none.
    """
    times = {path.parent: path.stat().st_mtime for path in outputs.glob(f"*/*/{CONFIG}")}
    for run_dir in times:
        saved = manifest.checkpoints(run_dir)
        times[run_dir] = max([times[run_dir], *(path.stat().st_mtime for path in saved)])
    if not times:
        raise BadInput(key, f"latest: there is no run in {str(outputs)!r}; name a run folder")
    return max(times, key=lambda run_dir: (times[run_dir], run_dir.name))


def write_start(run_dir: Path, config_yaml: str, cfg: Config, command: Sequence[str]) -> None:
    """Write provenance.json and config.yaml of a new run; with the second, the folder holds a run.

    Args:
        run_dir: The run folder.
        config_yaml: The options of the run as YAML.
        cfg: The same options; the seed is noted with the provenance.
        command: Program and arguments that started the run.
    """
    record = {"seed": cfg.seed, **provenance(command), "resumed": []}
    write_atomic(run_dir / PROVENANCE, json.dumps(record, indent=2) + "\n")
    write_atomic(run_dir / CONFIG, config_yaml)


def write_resume(run_dir: Path, config_yaml: str, cfg: Config, command: Sequence[str]) -> None:
    """Note a continued run: its length in config.yaml, one more entry of `resumed` in provenance.json.

    Args:
        run_dir: The run folder.
        config_yaml: The options that the run goes on with as YAML.
        cfg: The same options; the manifests of the checkpoints take over run.steps.
        command: Program and arguments that continue the run.
    """
    manifest.write_steps(run_dir, cfg.run.steps)
    write_atomic(run_dir / CONFIG, config_yaml)
    path = run_dir / PROVENANCE
    record = _read_or_set_aside(path, {"resumed": list}) if path.exists() else {}
    _summary(run_dir)  # what cannot be replaced at the end is set aside now
    record.setdefault("resumed", []).append(provenance(command))
    write_atomic(path, json.dumps(record, indent=2) + "\n")


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """Tell where numbers come from: command, commit, versions, machine, time (UTC, ISO 8601).

    Args:
        command: Program and arguments; secrets in them are masked.

    Returns:
        Values that JSON can hold.
    """
    return {
        "command": mask(shlex.join(command)),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **_checkout(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {"system": platform.platform(), "cpu": _cpu(), **_cores()},
    }


def write_failure(run_dir: Path, cfg: Config, error: BaseException) -> Path | None:
    """Note a failure: status `failed` in summary.json, the traceback in error.txt.

    What failed may be the disk: neither file is needed to go on, and each is written where it can be.

    Args:
        run_dir: The run folder.
        cfg: The options of the run, for a summary where none was written yet.
        error: What was raised; secrets in its traceback are masked.

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
    """Set a summary.json that says `running` to `interrupted`, where it can be written: nothing runs on.

    Args:
        run_dir: The run folder.
    """
    with suppress(OSError):
        summary = _summary(run_dir)
        if summary.get("status") == "running":
            _write_status(run_dir, "interrupted", summary)


def write_lost_output(run_dir: Path, lost: Mapping[str, str]) -> None:
    """Note in provenance.json that output could not be shown, where it can be written.

    Args:
        run_dir: The run folder.
        lost: Name of a stream -> why it failed; empty where all was shown, and nothing is noted.
    """
    if lost:
        path = run_dir / PROVENANCE
        with suppress(OSError):
            record = _read_or_set_aside(path, {}) if path.exists() else {}
            write_atomic(path, json.dumps({**record, "output_lost": dict(lost)}, indent=2) + "\n")


def release_unused(run_dir: Path) -> bool:
    """Give a claimed folder back if nothing could be written in it.

    Args:
        run_dir: The folder, which this process owns.

    Returns:
        Whether nothing had been written, so that the folder was given back.
    """
    config = run_dir / CONFIG
    if config.exists() and config.stat().st_size:
        return False
    return withdraw(run_dir)


def withdraw(run_dir: Path) -> bool:
    """Remove what a new run wrote before its first row, checkpoint or ask. Returns whether that was all.

    A run that is refused then leaves nothing: the same folder can be named again, with better options.
    """
    kept = [name for name in manifest.RECORD if (run_dir / name).exists() and (run_dir / name).stat().st_size]
    if kept or _used(run_dir):
        return False
    for name in (CONFIG, PROVENANCE, SUMMARY, "error.txt", *manifest.RECORD):
        (run_dir / name).unlink(missing_ok=True)
    discard_empty(run_dir)
    return True


def _used(run_dir: Path) -> list[str]:
    """Names of what a run leaves only once it has begun: rows and checkpoints."""
    return [*manifest.rows(run_dir), *(path.name for path in manifest.checkpoints(run_dir))]


def _write_status(run_dir: Path, status: str, known: Mapping[str, Any]) -> None:
    summary = {**(_summary(run_dir) or known), "status": status}
    write_atomic(run_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")


def _summary(run_dir: Path) -> dict[str, Any]:
    path = run_dir / SUMMARY
    return _read_or_set_aside(path, {}) if path.exists() else {}


def failed(sweep: Path) -> list[str]:
    """Name the run folders of a sweep whose summary says that they failed, or cannot be read.

    Args:
        sweep: The sweep's folder, which holds the run folders.
    """
    return [path.parent.name for path in sorted(sweep.glob(f"*/{SUMMARY}")) if _failed(path)]


def _failed(path: Path) -> bool:
    try:
        return read_json(path).get("status") == "failed"
    except Unreadable:
        return True


def _read_or_set_aside(path: Path, types: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object of ours. A damaged one is kept under another name, which is said, and is then empty.

    types: of the entries that are read, where they are there.
    """
    try:
        value = read_json(path)
        for name, kind in types.items():
            if not isinstance(value.get(name, kind()), kind):
                raise Unreadable(f"{path}: {name} is no {kind.__name__}")
        return value
    except Unreadable as error:
        print(f"{error}; it is kept as {set_aside(path).name}, and a new one begins", flush=True)
        return {}


def _checkout() -> dict[str, Any]:
    """Commit of the source this runs from, or nulls outside a git checkout."""
    root = Path(lore.__file__).resolve().parents[2]
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


def _cores() -> dict[str, int | None]:
    """Cores of the machine, and how many of them this process may use."""
    return {"cores": os.cpu_count(), "allotted_cores": allotted_cores()}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

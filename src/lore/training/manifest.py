"""What a checkpoint says of its run: digests of its files and of the record so far, and the configuration.

    checkpoints/step-000000500/manifest.json

    files    state.pt, replay.pt, segments.json and the pieces of the replay: size and SHA-256 of each
    record   metrics.jsonl and the other JSONL files: size at that moment, and SHA-256 up to it
    config   the options the checkpoint was made under
    sha256   of the rest, so that the manifest vouches for itself

Nothing here imports torch: a run that cannot go on is refused at once, before anything is written.
A checkpoint of an older version has no manifest; it is used, and said to be unverified.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lore.base.errors import BadInput
from lore.base.files import Unreadable, read_json, regular, write_atomic
from lore.config.options import Config

NAME = "manifest.json"
RECORD = ("metrics.jsonl", "episodes.jsonl", "alerts.jsonl", "llm.jsonl")
ROWS = ("metrics.jsonl", "episodes.jsonl")  # files that a run starts without, and would start again
OWN = re.compile(r"step-(\d{9,})")
PIECE = re.compile(r"(\d{9,})-(\d{9,})\.pt")
HERE = {"run.dir", "resume"}  # options that say where a run is, not what it computes


class Digest(NamedTuple):
    """Size and SHA-256 of the beginning of a file, or of all of it.

    Attributes:
        bytes: How many bytes are digested.
        sha256: The digest, in hexadecimal digits.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of its run; see the head of this module.

    Attributes:
        env_step: Environment steps of the run when the checkpoint was made.
        files: Path of a file, from the folder of the checkpoint, or rows/NAME for a piece -> its digest.
        record: Name of a JSONL file of the run -> digest of what it held then.
        config: The options that the checkpoint was made under, as asdict(Config).
    """

    env_step: int
    files: Mapping[str, Digest]
    record: Mapping[str, Digest]
    config: Mapping[str, Any]


class Record:
    """Running digests of a run's JSONL files: each byte is read once while the run goes on."""

    def __init__(self, run_dir: Path) -> None:
        """Start with nothing read.

        Args:
            run_dir: The run folder.
        """
        self.run_dir = run_dir
        self._read = {name: (0, hashlib.sha256()) for name in RECORD}

    def sizes(self) -> dict[str, int]:
        """Measure how long the files are now, name -> bytes; those that do not exist are left out."""
        paths = {name: self.run_dir / name for name in RECORD}
        return {name: path.stat().st_size for name, path in paths.items() if path.is_file()}

    def digests(self, sizes: Mapping[str, int]) -> dict[str, Digest]:
        """Digest the beginning of each file. Sizes never shrink from call to call.

        Args:
            sizes: Name of a file -> how many of its bytes are digested: what `sizes` gave.

        Returns:
            Name of a file -> digest of that many bytes.

        Raises:
            Unreadable: A file has become shorter than its size.
        """
        found = {}
        for name, size in sizes.items():
            start, digest = self._read[name]
            _update(digest, self.run_dir / name, start, size)
            self._read[name] = size, digest
            found[name] = Digest(size, digest.hexdigest())
        return found


def digest_file(path: Path) -> Digest:
    """Compute the size and the SHA-256 of a file.

    Args:
        path: The file.

    Raises:
        Unreadable: The file is missing or cannot be read.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            digest = hashlib.file_digest(file, "sha256")
            return Digest(file.tell(), digest.hexdigest())
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a checkpoint, durably.

    Args:
        folder: Folder of the checkpoint.
        manifest: What is written.
    """
    body = {
        "env_step": manifest.env_step,
        "files": {name: digest._asdict() for name, digest in manifest.files.items()},
        "record": {name: digest._asdict() for name, digest in manifest.record.items()},
        "config": dict(manifest.config),
    }
    write_atomic(folder / NAME, json.dumps({**body, "sha256": _seal(body)}, indent=1) + "\n")


def read(folder: Path) -> Manifest | None:
    """Read the manifest of a checkpoint.

    Args:
        folder: Folder of the checkpoint.

    Returns:
        The manifest; None where a version before manifests made the checkpoint.

    Raises:
        Unreadable: The manifest is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    body = read_json(path)
    if body.pop("sha256", None) != _seal(body):
        raise Unreadable(f"{path}: differs from its checksum")
    try:
        files, record = (
            {name: Digest(**value) for name, value in body[part].items()} for part in ("files", "record")
        )
        return Manifest(body["env_step"], files, record, body["config"])
    except (KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{path}: no manifest that this version knows ({error})") from error


def checkpoints(run_dir: Path) -> list[Path]:
    """List the folders of a run's checkpoints, oldest first: those that we wrote. Others are not looked at.

    A folder that was copied to another step's name is not ours either: its manifest tells its step.

    Args:
        run_dir: The run folder.
    """
    numbered = []
    for path in (run_dir / "checkpoints").glob("step-*"):
        match = OWN.fullmatch(path.name)
        if match and path.is_dir() and path.name == folder_name(int(match[1])) and not _renamed(path):
            numbered.append((int(match[1]), path))
    return [path for _, path in sorted(numbered)]


def folder_name(env_step: int) -> str:
    """Name the folder of a checkpoint.

    Args:
        env_step: Environment steps of the run when the checkpoint is made.
    """
    return f"step-{env_step:09d}"


def piece_name(start: int, stop: int) -> str:
    """Name the file that holds the replay rows of ticks [start, stop).

    Args:
        start: First tick; a tick is one step of every environment, counted from the start of the run.
        stop: The tick after the last.
    """
    return f"{start:09d}-{stop:09d}.pt"


def locate(folder: Path, name: str) -> Path:
    """Return the path of a file that a manifest names.

    Args:
        folder: Folder of the checkpoint that the manifest is of.
        name: Name of a file of the checkpoint, or rows/NAME for a piece of the replay.
    """
    return folder.parent / name if name.startswith("rows/") else folder / name


def verify(folder: Path, only: Iterable[str] = ()) -> Manifest | None:
    """Compare the files of a checkpoint with its manifest.

    Args:
        folder: Folder of the checkpoint.
        only: Names of files to look at; empty for all.

    Returns:
        The manifest; None where the checkpoint has none.

    Raises:
        Unreadable: A file is missing or differs; the message names it.
    """
    manifest = read(folder)
    if manifest is None:
        return None
    for name in only or manifest.files:
        path = locate(folder, name)
        if name not in manifest.files:
            raise Unreadable(f"{folder / NAME}: does not name {name}")
        if digest_file(path) != manifest.files[name]:
            raise Unreadable(f"{path}: differs from its checksum")
    return manifest


def resume_point(run_dir: Path, damaged: dict[Path, Unreadable]) -> tuple[Path, Manifest | None] | None:
    """Find the latest checkpoint that is whole.

    Args:
        run_dir: The run folder.
        damaged: Checkpoints that are known to be damaged; those found here are added.

    Returns:
        Folder and manifest of the checkpoint; None in a folder where nothing was recorded yet.

    Raises:
        BadInput: Nothing can go on from here without a loss: there are rows and no whole checkpoint, or the
            record is not the one that the checkpoint was made with.
    """
    for folder in reversed(checkpoints(run_dir)):
        if folder in damaged:
            continue
        try:
            manifest = verify(folder)
        except Unreadable as error:
            damaged[folder] = error
            continue
        if manifest is not None:
            _check_record(run_dir, folder, manifest)
        return folder, manifest
    if damaged:
        reasons = "; ".join(str(error) for error in damaged.values())
        raise BadInput(
            "resume",
            f"no checkpoint of {str(run_dir)!r} is whole ({reasons}); put back a copy of these files, or "
            "start a new run in another folder: the rows stay as they are",
        )
    found = rows(run_dir)
    if found:
        raise BadInput(
            "resume",
            f"{str(run_dir)!r} has rows ({', '.join(found)}) and no checkpoint to go on from, and starting "
            "again would erase them; put its checkpoints/ back, or start a new run in another folder",
        )
    return None


def rows(run_dir: Path) -> list[str]:
    """Name the files with rows that a run has; a new run begins without any.

    Args:
        run_dir: The run folder.
    """
    return [name for name in ROWS if (run_dir / name).is_file() and (run_dir / name).stat().st_size]


def check_config(
    folder: Path, manifest: Manifest | None, config: Mapping[str, Any], free: Iterable[str]
) -> None:
    """Refuse options that differ from those that the checkpoint was made under.

    Args:
        folder: Folder of the checkpoint.
        manifest: The checkpoint's; None: nothing is known.
        config: The options to go on with, as asdict(Config).
        free: Dotted keys that may differ.

    Raises:
        BadInput: Naming the first key that differs.
    """
    if manifest is None:
        return
    then = dict(_flat(_merged(dataclasses.asdict(Config()), manifest.config)))  # newer options: their default
    now = dict(_flat(json.loads(json.dumps(config))))
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key) and key not in {*HERE, *free}:
            raise BadInput(
                key,
                f"{folder.name} was made under {then.get(key)!r}, not {now.get(key)!r}; put that value back "
                "in config.yaml, or start a new run with the other one",
            )


def write_steps(run_dir: Path, steps: int) -> None:
    """Let the checkpoints of a run go on under another run.steps: their manifests vouch for it.

    Args:
        run_dir: The run folder.
        steps: The new value of run.steps.
    """
    for folder in checkpoints(run_dir):
        try:
            manifest = read(folder)
        except Unreadable:  # nobody goes on from it
            continue
        if manifest is not None and dict(_flat(manifest.config)).get("run.steps", steps) != steps:
            config = _merged(manifest.config, {"run": {"steps": steps}})
            write(folder, dataclasses.replace(manifest, config=config))


def _check_record(run_dir: Path, folder: Path, manifest: Manifest) -> None:
    older = [path.name for path in checkpoints(run_dir) if path.name < folder.name]
    way = f", or move {folder.name} out of checkpoints/ to go on from {older[-1]}" if older else ""
    for name, stored in manifest.record.items():
        digest = hashlib.sha256()
        try:
            _update(digest, run_dir / name, 0, stored.bytes)
        except Unreadable as error:
            raise BadInput("resume", f"{error}: rows were lost; put back a copy of {name}{way}") from error
        if digest.hexdigest() != stored.sha256:
            raise BadInput(
                "resume",
                f"{run_dir / name}: the first {stored.bytes} bytes are not those that {folder.name} was made "
                f"with; put back a copy of {name}{way}",
            )


def _update(digest: Any, path: Path, start: int, stop: int) -> None:
    """Feed bytes [start, stop) of a file to a digest."""
    try:
        with open(path, "rb", opener=regular) as file:
            file.seek(start)
            while start < stop:
                block = file.read(min(1 << 20, stop - start))
                if not block:
                    raise Unreadable(f"{path} has {start} bytes, fewer than {stop}")
                digest.update(block)
                start += len(block)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def _renamed(folder: Path) -> bool:
    """Say whether the manifest in a folder is of another step than the folder's name says."""
    try:
        manifest = read(folder)
    except Unreadable:
        return False
    return manifest is not None and folder_name(manifest.env_step) != folder.name


def _seal(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Copy `values`; what `over` holds replaces them or is added, group by group."""
    both = {
        k
        for k in values.keys() & over.keys()
        if isinstance(values[k], Mapping) and isinstance(over[k], Mapping)
    }
    return {**values, **over, **{key: _merged(values[key], over[key]) for key in both}}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every option, groups opened."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value

"""One JSON object a line, made to survive kill -9."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lore.metrics.summary import plain


class JsonlFile:
    """Appends rows to a file. Each row is one unbuffered write: another process sees it at once.

    A process killed in the middle of a write leaves a torn last line. `truncate` drops it, with all rows
    since the checkpoint that is resumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row.

        Raises OSError when the disk takes only a part of it, TypeError for what JSON cannot hold.
        """
        line = (json.dumps(plain(row), allow_nan=False) + "\n").encode()
        written = self._file.write(line)
        if written != len(line):
            raise OSError(
                f"{self.path}: only {written} of {len(line)} bytes of a row were written (disk full?)"
            )

    def sync(self) -> int:
        """Put all rows on the disk; the length in bytes, for a checkpoint to refer to."""
        os.fsync(self._file.fileno())
        return self.size

    def check(self, offset: int) -> None:
        """Raise ValueError, naming the file, where `offset` is not the end of one of its rows."""
        if self.size < offset:
            raise ValueError(
                f"{self.path} has {self.size} bytes, fewer than the {offset} the checkpoint refers to: "
                "rows were lost, so this run cannot be continued without a gap"
            )
        with self.path.open("rb") as file:
            file.seek(max(offset - 1, 0))
            if offset and file.read(1) != b"\n":
                raise ValueError(
                    f"{self.path}: byte {offset} of the checkpoint is not the end of a row: not its file"
                )

    def truncate(self, offset: int) -> None:
        """Drop everything behind byte `offset`; see `check` for what it raises."""
        self.check(offset)
        os.ftruncate(self._file.fileno(), offset)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

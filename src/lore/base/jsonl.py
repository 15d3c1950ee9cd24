"""One JSON object a line, made to survive kill -9 and a full disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lore.base.files import regular, sync_folder


class JsonlFile:
    """Appends rows to a file. Each row is one unbuffered write: another process sees it at once.

    A process killed in the middle of a write leaves a torn last line, which `drop_torn` or `truncate`
    removes. A write that fails leaves no trace.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file, and put its name on the disk.

        Args:
            path: The file. Its folder exists.

        Raises:
            OSError: The file cannot be opened or created.
        """
        self.path = path
        self._file = open(path, "ab", buffering=0, opener=regular)  # noqa: SIM115  (`close` closes it)
        sync_folder(path.parent)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def append(self, row: Mapping[str, Any], durable: bool = False) -> int:
        """Write one row.

        Args:
            row: What JSON can hold, all numbers finite.
            durable: Whether the row must be on the disk, safe from a power failure, before this returns.

        Returns:
            The length of the row in bytes.

        Raises:
            OSError: The disk refuses the row, or a part of it.
            TypeError: JSON cannot hold a value of the row.
            ValueError: A number is not finite.
        """
        line = (json.dumps(dict(row), allow_nan=False) + "\n").encode()
        before = self.size
        try:
            self._write(line)
            if durable:
                os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), before)
            raise
        return len(line)

    def sync(self) -> int:
        """Put all rows on the disk, and return the length in bytes, for a checkpoint to refer to."""
        os.fsync(self._file.fileno())
        return self.size

    def check(self, offset: int) -> None:
        """Check that a row of the file ends at an offset.

        Args:
            offset: Length in bytes that a checkpoint refers to.

        Raises:
            ValueError: The file is shorter, or no row ends there; the file is named.
        """
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
        """Drop everything behind an offset.

        Args:
            offset: Bytes to keep.

        Raises:
            ValueError: As `check`.
        """
        self.check(offset)
        os.ftruncate(self._file.fileno(), offset)

    def drop_torn(self) -> None:
        """Drop a last line without a line end: nobody was told that it was written."""
        os.ftruncate(self._file.fileno(), self.path.read_bytes().rfind(b"\n") + 1)

    def rows_after(self, offset: int) -> list[bytes]:
        """Read the whole rows behind an offset.

        Args:
            offset: Where to start, in bytes.

        Returns:
            The lines, without their ends.

        Raises:
            ValueError: As `check`.
        """
        self.check(offset)
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read().split(b"\n")[:-1]

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        written = self._file.write(line)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))  # a part of it

"""Every ask of a run (llm.jsonl): on the disk before its answer is used, served from there on resume."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lore.base.jsonl import JsonlFile


class Journal:
    """Records in order, one JSON object a line, and a position: after the last record that was used.

    A journal that is opened on an existing file stands at the start: a run that died before its first
    checkpoint begins again and is served from the beginning. `load_state_dict` moves the position to where a
    checkpoint stood. A run takes what lies after the position, and appends when nothing is left there.

    A write that a crash cut short has no newline: that piece is dropped. Nothing was done with it, as its
    append never returned.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Args:
            path: The file, llm.jsonl of a run folder.

        Raises:
            OSError: The file cannot be written.
        """
        self.path = path
        self._file = JsonlFile(path)
        self._file.drop_torn()
        self.load_state_dict({"offset": 0})

    def peek(self) -> dict[str, Any] | None:
        """Return the next record to be served, or None where nothing is left.

        Raises:
            ValueError: The line is damaged; the message names its first byte.
        """
        if not self._left:
            return None
        try:
            record = json.loads(self._left[0])
            if not isinstance(record, dict):
                raise ValueError(f"{record!r:.40} is no object")
            return record
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
            raise ValueError(f"{self.path}: no record at byte {self._offset} ({error})") from error

    def take(self) -> dict[str, Any] | None:
        """Do as `peek`, and step over the record."""
        record = self.peek()
        if record is not None:
            self._offset += len(self._left.popleft()) + 1
        return record

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record: it is on the disk when this returns, and counts as used.

        Args:
            record: JSON values.

        Raises:
            RuntimeError: There are records to take.
            TypeError: JSON cannot hold a value.
            ValueError: JSON cannot hold a value.
            OSError: The disk refuses. None of these errors leaves a trace in the file.
        """
        if self._left:
            raise RuntimeError(f"{self.path}: {len(self._left)} records were not taken yet")
        self._offset += self._file.append(record, durable=True)

    def state_dict(self) -> dict[str, int]:
        """Return the position, in bytes: what lies after it is served to a run that resumes from here."""
        return {"offset": self._offset}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Move to where `state` was taken.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: No record of this file ends there.
        """
        self._left = deque(self._file.rows_after(state["offset"]))
        self._offset = state["offset"]

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

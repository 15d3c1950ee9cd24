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

    Opened on a file that exists, it stands at the start: a run that died before its first checkpoint begins
    again and is served from the beginning. `load_state_dict` moves it to where a checkpoint stood. A run
    takes what lies after the position, and appends when nothing is left there.

    A write that a crash cut short has no newline: that piece is dropped. Nothing was done with it, as its
    append never returned.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates the file. Raises OSError where it cannot be written."""
        self.path = path
        self._file = JsonlFile(path)
        self._file.drop_torn()
        self.load_state_dict({"offset": 0})

    def peek(self) -> dict[str, Any] | None:
        """The next record to be served, or None. Raises ValueError, naming the byte, where it is damaged."""
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
        """As `peek`, and step over it."""
        record = self.peek()
        if record is not None:
            self._offset += len(self._left.popleft()) + 1
        return record

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record: it is on the disk when this returns, and counts as used.

        Raises RuntimeError while there are records to take, TypeError or ValueError for what JSON cannot
        hold, OSError when the disk refuses. None of these leaves a trace in the file.
        """
        if self._left:
            raise RuntimeError(f"{self.path}: {len(self._left)} records were not taken yet")
        self._offset += self._file.append(record, durable=True)

    def state_dict(self) -> dict[str, int]:
        """The position, in bytes: what lies after it is served to a run that resumes from here."""
        return {"offset": self._offset}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Move to the position of `state_dict`. Raises ValueError where no record of this file ends there."""
        self._left = deque(self._file.rows_after(state["offset"]))
        self._offset = state["offset"]

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

"""What was asked for and cannot be had."""

from __future__ import annotations


class BadInput(ValueError):
    """What was asked for cannot be run: exit status 2 and one line `key: what is wrong; what is right`."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key

"""One line of llm.jsonl: what was asked, and what came of it; checked whenever it is read."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lore.llm.asking.sender import LONGEST_TEXT

LONGEST_WORD = 100_000  # characters of any other text: keys and identities have some hundred
_KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list[str]": (list,),
}


@dataclass(frozen=True)
class AskRecord:
    """A question that counted, and its outcome.

    Attributes:
        env_step: Environment step of the question.
        arrived: Environment step of the outcome.
        turn: How often the asker had looked for arrivals by then.
        env: Number of the environment.
        trigger: Name of the trigger that fired.
        key: What a policy is filed under.
        plan_key: What a plan is filed under.
        provider: Identity of the adviser.
        prompt_version: Version of the words in which it was asked.
        answer_version: Version of how its answer is read.
        cached: Whether the cache answered.
        sent: Attempts that went out.
        refused: Whether the sweep's ledger refused.
        failures: Kinds of failure of the attempts; first, where it was met, bad_cache_entry.
        text: The answer; None where there is none.
        actions: Names of the actions, in the order of the answer's weights.
        usd: Dollars; None where they are not known.
        tokens: Tokens in and out together; None where they are not known.
        latency_s: Seconds of the attempts together.
        ask: Number of the ask in the run, from 1; 0 in older files.
        pause_until: The server asked to be left alone until this time, in seconds since 1970; 0 where it did
            not.
    """

    env_step: int
    arrived: int
    turn: int
    env: int
    trigger: str
    key: str
    plan_key: str
    provider: str
    prompt_version: str
    answer_version: str
    cached: bool
    sent: int
    refused: bool
    failures: list[str]
    text: str | None
    actions: list[str]
    usd: float | None
    tokens: int | None
    latency_s: float
    ask: int = 0
    pause_until: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values, with a checksum; pause_until only where there is one."""
        values = dataclasses.asdict(self)
        if not self.pause_until:
            del values["pause_until"]
        return values | {"crc": _checksum(values)}


def read_record(values: Mapping[str, Any]) -> AskRecord:
    """Check a line of the journal; lines of older runs have no checksum.

    Args:
        values: The line, as JSON reads it.

    Returns:
        The record.

    Raises:
        ValueError: A field is missing, unknown, of a wrong type or size, or does not fit the others.
    """
    given = dict(values)
    crc = given.pop("crc", None)
    fields = {field.name: field for field in dataclasses.fields(AskRecord)}
    for name in given.keys() - fields.keys():
        raise ValueError(f"unknown field {name!r:.40}")
    for name, field in fields.items():
        if name in given:
            _check(name, given[name], str(field.type))
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"no field {name!r}")
    if "crc" in values and crc != _checksum(given):
        raise ValueError("it differs from its checksum")
    record = AskRecord(**given)
    if record.text is None and not record.refused and not record.failures:
        raise ValueError("neither an answer nor a failure")
    if record.cached and record.text is None:
        raise ValueError("answered by the cache, without an answer")
    return record


def _check(name: str, value: Any, kind: str) -> None:
    optional = kind.endswith(" | None")
    kind = kind.removesuffix(" | None")
    if value is None and optional:
        return
    fits = isinstance(value, _KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{name!r} is not of type {kind}")
    if kind in ("int", "float") and not 0 <= value < math.inf:
        raise ValueError(f"{name!r} must be at least 0")
    if kind == "list[str]" and not all(isinstance(part, str) for part in value):
        raise ValueError(f"{name!r} must hold texts")
    words = [value] if kind == "str" else value if kind == "list[str]" else []
    limit = LONGEST_TEXT if name == "text" else LONGEST_WORD
    if sum(map(len, words)) > limit:
        raise ValueError(f"{name!r} has more than {limit} characters")


def _checksum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(dict(values)).encode()):08x}"

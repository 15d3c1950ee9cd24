"""Answers of a real model, asked once and kept in files: their format, read and checked.

    prompts.jsonl   a header (task, actions, system text, versions), then one distinct prompt a line
    answers.jsonl   one answer a line, under the id of its prompt, in the order of the prompts
    card.md         what it is, for people; nothing is read from it

A data set is a folder of these three, written once and never changed: its hash is part of who answers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lore.llm.answer import ANSWER_VERSION, Answer, BadAnswer, clean, parse_answer
from lore.llm.prompt import PROMPT_VERSION, write_system

FORMAT = 1  # raise it when a line below changes
LARGEST_LINE = 1 << 20  # bytes
LARGEST_FILE = 256 << 20  # bytes
LARGEST_NUMBER = 2**53  # of what JSON carries exactly
LONGEST_WORD = 10_000  # characters of keys, names and the like
TEXTS = ("text", "prompt", "system")  # fields that may have several lines
PROMPTS, ANSWERS, CARD = "prompts.jsonl", "answers.jsonl", "card.md"
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "list[str]": (list,),
    "dict[str, int]": (dict,),
    "dict[str, Any]": (dict,),
}
T = TypeVar("T")


@dataclass(frozen=True)
class Header:
    """First line of prompts.jsonl.

    plan_keys: steps of the exploration at each plan key, also where no prompt of it was written. made: how
    the exploration went, for the card.
    """

    format: int
    env_id: str
    actions: list[str]
    system: str
    prompt_version: str
    answer_version: str
    plan_keys: dict[str, int]
    made: dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One prompt. visits: steps that met it; entered: those at which its plan key was new, where one asks."""

    id: str
    prompt: str
    key: str
    plan_key: str
    visits: int
    entered: int


@dataclass(frozen=True)
class RecordedAnswer:
    """One answer, with what it took then: tokens, dollars, seconds, the model's word for why it ended."""

    id: str
    text: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0
    stop: str = ""


@dataclass(frozen=True)
class DataSet:
    """A data set in memory: prompts and answers by id. digest: sha256 of both files, 64 hex digits."""

    header: Header
    prompts: dict[str, Prompt]
    answers: dict[str, RecordedAnswer]
    digest: str

    @property
    def model(self) -> str:
        return next(iter(self.answers.values())).model

    def parsed(self, name: str) -> Answer | BadAnswer | None:
        """What the answer of a prompt says, or why it is unusable; None where there is none."""
        if name not in self.answers:
            return None
        try:
            return parse_answer(self.answers[name].text, tuple(self.header.actions))
        except BadAnswer as error:
            return error


class BadLine(ValueError):
    """A line that is not what it should be. kind: too_large, not_json, wrong_type, bad_text, unknown_field,
    missing_field, wrong_id, unknown_id, unknown_plan_key, duplicate, other_model, wrong_format, no_header,
    no_answer. file: its name, where that is known."""

    def __init__(self, number: int, kind: str, message: str, file: str = "") -> None:
        super().__init__(f"{file}{', ' if file else ''}line {number}: {kind}: {message}")
        self.number, self.kind, self.message = number, kind, message


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within it, a BadLine gets the name of this file."""
    try:
        yield
    except BadLine as error:
        raise BadLine(error.number, error.kind, error.message, path.name) from None


def prompt_id(system: str, prompt: str, actions: tuple[str, ...]) -> str:
    """The content of a question, and the version of its words, as 64 hex digits."""
    parts = json.dumps([PROMPT_VERSION, list(actions), system, prompt])
    return hashlib.sha256(parts.encode()).hexdigest()


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read a file line by line; empty lines are passed over.

    Args:
        path: the file.

    Yields:
        Number of the line, from 1, and the line.

    Raises:
        OSError: the file cannot be read.
        BadLine: a line has more than LARGEST_LINE bytes, or the file more than LARGEST_FILE.
    """
    size = number = 0
    with path.open("rb") as file:
        while line := file.readline(LARGEST_LINE + 2):
            number += 1
            size += len(line)
            if len(line.rstrip(b"\r\n")) > LARGEST_LINE:
                raise BadLine(number, "too_large", f"it has more than {LARGEST_LINE} bytes", path.name)
            if size > LARGEST_FILE:
                raise BadLine(number, "too_large", f"the file has more than {LARGEST_FILE} bytes", path.name)
            if line.strip():
                yield number, line.rstrip(b"\n")


def read_line(cls: type[T], number: int, line: bytes) -> T:
    """A line as one of the records above. Raises BadLine, and nothing else, for any bytes."""
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadLine(number, "not_json", clean(str(error), 200)) from None
    if not isinstance(fields, dict):
        raise BadLine(number, "wrong_type", "a JSON object is needed")
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in sorted(fields.keys() - known.keys()):
        raise BadLine(number, "unknown_field", f"{name!r:.40}; the fields are {', '.join(known)}")
    for name, field in known.items():
        if name in fields:
            _check(number, name, fields[name], str(field.type))
        elif field.default is dataclasses.MISSING:
            raise BadLine(number, "missing_field", name)
    return cls(**fields)


def _check(number: int, name: str, value: Any, kind: str) -> None:
    fits = isinstance(value, _TYPES[kind]) and not isinstance(value, bool)
    if kind in ("int", "float"):
        fits = fits and 0 <= value <= LARGEST_NUMBER
    if kind == "list[str]":
        fits = fits and all(isinstance(item, str) for item in value)
    if kind == "dict[str, int]":
        fits = (
            fits
            and bool(value)
            and all(type(count) is int and 0 < count <= LARGEST_NUMBER for count in value.values())
        )
    if not fits:
        span = f" from 0 to {LARGEST_NUMBER}" if kind in ("int", "float") else ""
        raise BadLine(number, "wrong_type", f"{name} must be {kind}{span}")
    _check_words(number, name, value)


def _check_words(number: int, name: str, value: Any) -> None:
    """Every text is Unicode, and all but TEXTS one line of printable characters: cards and keys hold it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadLine(number, "bad_text", f"{name} holds half of a character (a lone surrogate)") from None
    if name in TEXTS:
        return
    words = value if isinstance(value, list | dict) else [value]
    for word in words:
        if isinstance(word, str) and not (word.isprintable() and len(word) <= LONGEST_WORD):
            raise BadLine(
                number, "bad_text", f"{name} must be one line of at most {LONGEST_WORD} printable characters"
            )
    if name in ("id", "model", "env_id") and not value.strip():
        raise BadLine(number, "bad_text", f"{name} is empty")


def read_prompts(path: Path) -> tuple[Header, dict[str, Prompt]]:
    """Header and prompts by id, in order. Raises OSError, or BadLine, also where id and text disagree."""
    with naming(path):
        return _read_prompts(path)


def _read_prompts(path: Path) -> tuple[Header, dict[str, Prompt]]:
    header: Header | None = None
    prompts: dict[str, Prompt] = {}
    for number, line in lines(path):
        if header is None:
            header = read_line(Header, number, line)
            _check_header(number, header)
            continue
        prompt = read_line(Prompt, number, line)
        if prompt.id != prompt_id(header.system, prompt.prompt, tuple(header.actions)):
            raise BadLine(number, "wrong_id", "its id does not belong to its text")
        if prompt.plan_key not in header.plan_keys:
            raise BadLine(number, "unknown_plan_key", "the header has not counted it")
        if prompt.id in prompts:
            raise BadLine(number, "duplicate", "this prompt was there before")
        prompts[prompt.id] = prompt
    if header is None:
        raise BadLine(1, "no_header", "the file is empty")
    return header, prompts


def _check_header(number: int, header: Header) -> None:
    """Answers to other words, or in another form, are of no use here."""
    now = {"format": FORMAT, "prompt_version": PROMPT_VERSION, "answer_version": ANSWER_VERSION}
    for name, value in now.items():
        if getattr(header, name) != value:
            stored = getattr(header, name)
            raise BadLine(number, "wrong_format", f"{name} {stored!r}, this program has {value!r}")
    if header.system != write_system(tuple(header.actions)):
        raise BadLine(number, "wrong_format", "its system text is not the one that this program sends")


def check_answer(
    number: int, answer: RecordedAnswer, prompts: Mapping[str, Prompt], before: Mapping[str, RecordedAnswer]
) -> None:
    """Raise BadLine for an answer to nothing, a second answer, or one of another model."""
    if answer.id not in prompts:
        raise BadLine(number, "unknown_id", f"no prompt has the id {answer.id!r:.66}")
    if answer.id in before:
        raise BadLine(number, "duplicate", "this prompt was answered before")
    first = next(iter(before.values()), answer)
    if answer.model != first.model:
        raise BadLine(number, "other_model", f"{answer.model!r:.80} after {first.model!r:.80}")


def load(folder: Path) -> DataSet:
    """A whole data set. Raises OSError where a file is missing, BadLine where one is damaged."""
    header, prompts = read_prompts(folder / PROMPTS)
    answers: dict[str, RecordedAnswer] = {}
    with naming(folder / ANSWERS):
        for number, line in lines(folder / ANSWERS):
            answer = read_line(RecordedAnswer, number, line)
            check_answer(number, answer, prompts, answers)
            answers[answer.id] = answer
        if not answers:
            raise BadLine(1, "no_answer", "the file is empty")
    content = (folder / PROMPTS).read_bytes() + (folder / ANSWERS).read_bytes()
    return DataSet(header, prompts, answers, hashlib.sha256(content).hexdigest())

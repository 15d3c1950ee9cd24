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
from lore.llm.prompt import PROMPT_VERSION, WORDINGS

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

    Attributes:
        format: Version of the files.
        env_id: The task.
        actions: Names of the actions, in the order of an answer's weights.
        system: The instructions.
        prompt_version: Version of the prompts' words.
        answer_version: Version of how an answer is read.
        plan_keys: Steps of the exploration at each plan key, also where no prompt of it was written.
        made: How the exploration went, for the card.
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
    """A data set in memory.

    Attributes:
        header: First line of prompts.jsonl.
        prompts: Prompts by id, in the order of the file.
        answers: Answers by the prompt's id.
        digest: sha256 of both files, 64 hex digits.
    """

    header: Header
    prompts: dict[str, Prompt]
    answers: dict[str, RecordedAnswer]
    digest: str

    @property
    def model(self) -> str:
        """Name of the model that answered, the same for all answers."""
        return next(iter(self.answers.values())).model

    def parsed(self, name: str) -> Answer | BadAnswer | None:
        """Return what the answer to a prompt says.

        Args:
            name: The prompt's id.

        Returns:
            The answer, or why it is unusable; None where there is none.
        """
        if name not in self.answers:
            return None
        try:
            return parse_answer(self.answers[name].text, tuple(self.header.actions))
        except BadAnswer as error:
            return error


class BadLine(ValueError):
    """A line that is not what it should be.

    Attributes:
        number: Number of the line, from 1.
        kind: too_large, not_json, wrong_type, bad_text, unknown_field, missing_field, wrong_id, unknown_id,
            unknown_plan_key, duplicate, other_model, wrong_format, no_header or no_answer.
        message: What is wrong.
    """

    def __init__(self, number: int, kind: str, message: str, file: str = "") -> None:
        """Describe the line.

        Args:
            number: Number of the line, from 1.
            kind: See above.
            message: What is wrong.
            file: Name of the file, where it is known.
        """
        super().__init__(f"{file}{', ' if file else ''}line {number}: {kind}: {message}")
        self.number, self.kind, self.message = number, kind, message


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give every BadLine that is raised within the `with` block the name of a file.

    Args:
        path: The file.
    """
    try:
        yield
    except BadLine as error:
        raise BadLine(error.number, error.kind, error.message, path.name) from None


def prompt_id(system: str, prompt: str, actions: tuple[str, ...], version: str = PROMPT_VERSION) -> str:
    """Name the content of a question, and the version of its words.

    Args:
        system: The instructions.
        prompt: The state in words.
        actions: Names, in the order of an answer's weights.
        version: Version of the words.

    Returns:
        64 hex digits.
    """
    parts = json.dumps([version, list(actions), system, prompt])
    return hashlib.sha256(parts.encode()).hexdigest()


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read a file line by line; empty lines are passed over.

    Args:
        path: The file.

    Yields:
        Number of the line, from 1, and the line.

    Raises:
        OSError: The file cannot be read.
        BadLine: A line has more than LARGEST_LINE bytes, or the file more than LARGEST_FILE.
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
    """Read a line as a record.

    Args:
        cls: Header, Prompt or RecordedAnswer.
        number: Number of the line, from 1, for the error.
        line: Any bytes.

    Raises:
        BadLine: The line is no such record. No bytes raise anything else.
    """
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
    """Refuse text that cards and keys cannot hold.

    Every text is Unicode, and all but TEXTS are one line of printable characters.
    """
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
    """Read prompts.jsonl.

    Args:
        path: The file.

    Returns:
        Header, and prompts by id in the order of the file.

    Raises:
        OSError: The file cannot be read.
        BadLine: A line is damaged, or its id does not belong to its text.
    """
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
        if prompt.id != prompt_id(header.system, prompt.prompt, tuple(header.actions), header.prompt_version):
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
    """Refuse a data set of unknown words or another form: its answers are of no use here."""
    readable = {"format": (FORMAT,), "prompt_version": tuple(WORDINGS), "answer_version": (ANSWER_VERSION,)}
    for name, values in readable.items():
        stored = getattr(header, name)
        if stored not in values:
            known = " or ".join(repr(value) for value in values)
            raise BadLine(number, "wrong_format", f"{name} {stored!r}, this program reads {known}")
    if header.system != WORDINGS[header.prompt_version].system(tuple(header.actions)):
        raise BadLine(number, "wrong_format", "its system text is not the one that this program sends")


def check_answer(
    number: int, answer: RecordedAnswer, prompts: Mapping[str, Prompt], before: Mapping[str, RecordedAnswer]
) -> None:
    """Refuse an answer that does not belong after the answers before.

    Args:
        number: Number of the line, from 1, for the error.
        answer: The answer.
        prompts: Prompts by id.
        before: The answers before this one, by the prompt's id.

    Raises:
        BadLine: The answer is to no prompt, the second to its prompt, or of another model.
    """
    if answer.id not in prompts:
        raise BadLine(number, "unknown_id", f"no prompt has the id {answer.id!r:.66}")
    if answer.id in before:
        raise BadLine(number, "duplicate", "this prompt was answered before")
    first = next(iter(before.values()), answer)
    if answer.model != first.model:
        raise BadLine(number, "other_model", f"{answer.model!r:.80} after {first.model!r:.80}")


def load(folder: Path) -> DataSet:
    """Read a whole data set.

    Args:
        folder: Where its files are.

    Raises:
        OSError: A file is missing or cannot be read.
        BadLine: A line is damaged.
    """
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

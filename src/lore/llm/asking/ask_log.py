"""The journal of asks as checked records: what a resumed run is served from."""

from __future__ import annotations

from collections.abc import Mapping

from lore.base.errors import BadInput
from lore.llm.asking.journal import Journal
from lore.llm.asking.question import Question
from lore.llm.asking.record import AskRecord, read_record

RESTORE = "put a copy of the file back, or begin a new run in another folder"
Adviser = tuple[str, str, str]
"""Who is asked, in which words, and how the answer is read: identity, prompt version, answer version."""


class AskLog:
    """The records of one run.

    Whatever is wrong with the file raises a BadInput that names the file and the line.
    """

    def __init__(self, journal: Journal, adviser: Adviser):
        """Serve from a journal, and write to it.

        Args:
            journal: The file of the run.
            adviser: The adviser that the run asks now.
        """
        self.journal, self.adviser = journal, adviser

    def next(self) -> AskRecord | None:
        """Return the record that the run is served next.

        Returns:
            The record; None where the journal has no more, so that the run asks by itself.

        Raises:
            BadInput: The line is damaged or does not hold a record.
        """
        try:
            values = self.journal.peek()
            return None if values is None else read_record(values)
        except (ValueError, RecursionError) as error:
            line = self._line()
            raise BadInput(
                "resume",
                f"{self.journal.path}: line {line} cannot be used ({error}); {RESTORE}; or keep a copy and "
                f"cut line {line} and all after it off: what they tell of is then asked, and paid for, again",
            ) from error

    def find(self, question: Question) -> AskRecord | None:
        """Return the next record, if it belongs to this question.

        Args:
            question: What the run wants to ask now.

        Returns:
            The record; None where there is none, or where it belongs to another question or adviser.

        Raises:
            BadInput: The line is damaged or does not hold a record.
        """
        record = self.next()
        if record is None or not self._is_ours(record):
            return None
        asked = (question.env_step, question.env, question.request.key)
        return record if asked == (record.env_step, record.env, record.key) else None

    def comes_later(self, question: Question) -> bool:
        """Say whether the next record belongs to a question that this run has yet to come to.

        Args:
            question: What the run wants to ask now.

        Returns:
            True where the same adviser was asked the recorded question at a later step, or at the same step
                for a later environment.

        Raises:
            BadInput: The line is damaged or does not hold a record.
        """
        record = self.next()
        if record is None or not self._is_ours(record) or self.find(question) is not None:
            return False
        return (record.env_step, record.env) >= (question.env_step, question.env)

    def explain_mismatch(self, question: Question) -> BadInput:
        """Make the error for a next record that belongs to another question. Call it only where there is one.

        Args:
            question: What the run wants to ask now.

        Returns:
            The error to raise. It names the line, and both questions and advisers.

        Raises:
            BadInput: The line is damaged or does not hold a record.
        """
        record = self.next()
        assert record is not None
        then = ", ".join((record.provider, record.prompt_version, record.answer_version))
        return BadInput(
            "resume",
            f"{self.journal.path}: line {self._line()} is ask {record.ask}, of environment {record.env} "
            f"at step {record.env_step} ({then}), but this run asks for environment {question.env} at step "
            f"{question.env_step} ({', '.join(self.adviser)}): config, code or file are not those of the "
            f"run it was written by; {RESTORE}",
        )

    def take(self) -> None:
        """Step over the next record."""
        self.journal.take()

    def append(self, record: AskRecord) -> None:
        """Write a record: it is on the disk when this returns.

        Args:
            record: What was asked, and what came of it.

        Raises:
            OSError: The disk refuses.
        """
        self.journal.append(record.to_json())

    def state_dict(self) -> dict[str, int]:
        """Return the position in the journal."""
        return self.journal.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where `state` was taken.

        Args:
            state: What `state_dict` returned.

        Raises:
            BadInput: The file does not reach there.
        """
        try:
            self.journal.load_state_dict(state)
        except ValueError as error:
            raise BadInput("resume", f"{error}; {RESTORE}") from error

    def _is_ours(self, record: AskRecord) -> bool:
        return self.adviser == (record.provider, record.prompt_version, record.answer_version)

    def _line(self) -> int:
        """Number of the journal's next line, from 1."""
        offset = self.journal.state_dict()["offset"]
        return self.journal.path.read_bytes()[:offset].count(b"\n") + 1

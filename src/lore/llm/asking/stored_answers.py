"""Answers to requests in the cache that runs share: found only where they are what they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lore.llm.answer import ANSWER_VERSION, Answer, BadAnswer, parse_answer
from lore.llm.asking.cache import BAD_ENTRY, AnswerCache, answer_key
from lore.llm.prompt import PROMPT_VERSION
from lore.llm.request import Request


class StoredAnswers:
    """The stored answers of one adviser.

    A plan is filed under its kind of situation, weights under the one situation that they were given for.
    """

    def __init__(self, cache: AnswerCache | None, identity: str):
        """Look into a cache for one adviser.

        Args:
            cache: The answers that runs share; None for no answers at all.
            identity: `identity()` of the adviser.
        """
        self._cache, self._identity = cache, identity

    def find(self, request: Request) -> tuple[str | None, int]:
        """Look for a plan for this kind of situation, or else for an answer to this very request.

        Args:
            request: What is to be asked.

        Returns:
            The answer's text, None where there is none; and how many entries held something else.
        """
        bad = 0
        for key in () if self._cache is None else (request.plan_key, request.key):
            assert self._cache is not None
            known = self._cache.errors[BAD_ENTRY]
            stored = self._cache.get(self._name(key, request))
            if stored is not None and not _belongs(stored.text, key, request):
                self._cache.refuse_entry("an entry is no answer to its question")
                stored = None
            bad += self._cache.errors[BAD_ENTRY] - known
            if stored is not None:
                return stored.text, bad
        return None, bad

    def keep(self, request: Request, answer: Answer, text: str, meta: Mapping[str, Any]) -> None:
        """Store an answer, unless there is one already.

        Args:
            request: What was asked.
            answer: What the text says.
            text: The answer as the adviser wrote it.
            meta: What it took, as JSON values.
        """
        if self._cache is not None and request.actions:
            key = request.plan_key if answer.plan else request.key
            self._cache.put(self._name(key, request), text, meta)

    def _name(self, key: str, request: Request) -> str:
        version = f"{ANSWER_VERSION} {' '.join(request.actions)}"
        return answer_key(key, self._identity, PROMPT_VERSION, version)


def _belongs(text: str, key: str, request: Request) -> bool:
    """Say whether a stored text is an answer, and of the kind that is filed under this key."""
    try:
        answer = parse_answer(text, request.actions)
    except BadAnswer:
        return False
    return key == (request.plan_key if answer.plan else request.key)

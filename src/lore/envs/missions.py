"""Missions as token ids over one vocabulary, so that a model reads every task with the same table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

import numpy as np
from minigrid.envs.babyai.core.roomgrid_level import BabyAIMissionSpace
from minigrid.minigrid_env import MiniGridEnv

_WORDS = """
    a after and at avoid ball behind blue box door end fetch find from front get go goal green grey
    hallway in key lava left matching maze must near next object of on open opening pick purple put
    reach red right room rooms square the then to traverse unlock up use yellow you your
"""
WORDS = tuple(_WORDS.split())
"""Words of MiniGrid's and BabyAI's missions; token id 0 pads, a word's id is its place here, from 1."""
LONGEST = 128  # tokens, and variants of words, that a task may have: ids are bytes

_PROBES, _FEW_PROBES = 32, 8  # resets that show how a BabyAI level, or another task, words its missions
# Longest clauses of the BabyAI grammar: "pick up the grey ball in front of you", and
# "put the grey ball in front of you next to the grey ball in front of you".
_CLAUSE, _PUT_CLAUSE = 9, 17
_SEQUENCE = 4 * _PUT_CLAUSE + 4  # two pairs joined by "and", the pairs joined by "then" or "after you"


@dataclass(frozen=True)
class MissionCode:
    """How a task's missions become token ids.

    Attributes:
        length: Tokens of every encoded mission; 0 where the mission never varies, and is not observed.
        words: The vocabulary, WORDS and then the words that only this task has.
    """

    length: int
    words: tuple[str, ...] = WORDS

    @property
    def classes(self) -> int:
        """Number of token ids, padding included."""
        return len(self.words) + 1

    def encode(self, mission: str) -> np.ndarray:
        """Encode a mission; nothing is cut off.

        Args:
            mission: Text; case and punctuation do not matter.

        Returns:
            Token ids, uint8 (length,), padded with 0.

        Raises:
            ValueError: A word is not in the vocabulary, or the mission has more than `length` words.
        """
        words = _split(mission)
        unknown = sorted(set(words) - set(self.words))
        if unknown:
            raise ValueError(f"mission {mission!r}: {', '.join(unknown)} not among the words of this task")
        if len(words) > self.length:
            raise ValueError(
                f"mission {mission!r}: {len(words)} words, this task's observations hold {self.length}"
            )
        tokens = np.zeros(self.length, np.uint8)
        tokens[: len(words)] = [self.words.index(word) + 1 for word in words]
        return tokens


def code_of(env: MiniGridEnv) -> MissionCode:
    """Find out how a task words its missions. Resets `env`.

    MiniGrid tasks list their missions' variants. BabyAI levels make theirs up at each reset: those of a few
    fixed seeds are looked at, so the answer is always the same.

    Args:
        env: The task, without wrappers.

    Returns:
        Its code.

    Raises:
        ValueError: The mission varies and its variants are not listed, or they are too long or too many.
    """
    space = vars(env.observation_space)["spaces"]["mission"]
    if space.ordered_placeholders is not None:
        listed = {space.mission_func(*choice) for choice in product(*space.ordered_placeholders)}
        return (
            _code(listed, max(len(_split(mission)) for mission in listed))
            if len(listed) > 1
            else MissionCode(0)
        )
    babyai = isinstance(space, BabyAIMissionSpace)
    missions = {env.reset(seed=seed)[0]["mission"] for seed in range(_PROBES if babyai else _FEW_PROBES)}
    if len(missions) == 1:
        return MissionCode(0)
    if not babyai:
        raise ValueError(
            "the mission varies; list what it can be in its mission_space: "
            "MissionSpace(mission_func, ordered_placeholders=[...])"
        )
    words = {word for mission in missions for word in _split(mission)}
    lengths = {len(_split(mission)) for mission in missions}
    if len(lengths) == 1:
        return _code(missions, lengths.pop())
    if words & {"then", "after", "and"}:
        return _code(missions, _SEQUENCE)
    return _code(missions, _PUT_CLAUSE if "put" in words else _CLAUSE)


def _code(missions: set[str], length: int) -> MissionCode:
    new = sorted({word for mission in missions for word in _split(mission)} - set(WORDS))
    if max(length, len(new)) > LONGEST:
        raise ValueError(f"missions of {length} words, {len(new)} of them new; at most {LONGEST}")
    return MissionCode(length, (*WORDS, *new))


def _split(mission: str) -> list[str]:
    return re.findall(r"\w+", mission.lower())

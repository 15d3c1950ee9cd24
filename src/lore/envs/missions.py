"""Missions as token ids over one fixed vocabulary, so that a model reads every task with the same table."""

from __future__ import annotations

import re
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
CLASSES = len(WORDS) + 1  # id 0 pads

_IDS = {word: i + 1 for i, word in enumerate(WORDS)}
_PROBES = 32  # resets that show how a BabyAI level words its missions
# Longest clauses of the BabyAI grammar: "pick up the grey ball in front of you", and
# "put the grey ball in front of you next to the grey ball in front of you".
_CLAUSE, _PUT_CLAUSE = 9, 17
_SEQUENCE = 4 * _PUT_CLAUSE + 4  # two pairs joined by "and", the pairs joined by "then" or "after you"


def encode(mission: str, length: int) -> np.ndarray:
    """Mission text -> uint8 (length,) token ids, padded with 0.

    Raises ValueError for a word outside WORDS and for a mission longer than `length`; nothing is cut off.
    """
    words = _split(mission)
    unknown = sorted(set(words) - _IDS.keys())
    if unknown:
        raise ValueError(
            f"mission {mission!r}: {', '.join(unknown)} not in the vocabulary of lore.envs.missions"
        )
    if len(words) > length:
        raise ValueError(f"mission {mission!r}: {len(words)} words, this task's observations hold {length}")
    tokens = np.zeros(length, np.uint8)
    tokens[: len(words)] = [_IDS[word] for word in words]
    return tokens


def decode(tokens: np.ndarray) -> str:
    """Token ids (L,) -> the words, joined by spaces."""
    return " ".join(WORDS[int(token) - 1] for token in tokens if token)


def token_length(env: MiniGridEnv) -> int:
    """Number of tokens to reserve for this task's missions; 0 if its mission never varies.

    MiniGrid tasks list their missions' variants. BabyAI levels make theirs up at each reset: those of a few
    fixed seeds are looked at, so the answer is always the same. Resets `env`.
    """
    space = vars(env.observation_space)["spaces"]["mission"]
    if space.ordered_placeholders is not None:
        missions = {space.mission_func(*choice) for choice in product(*space.ordered_placeholders)}
        return max(len(_split(m)) for m in missions) if len(missions) > 1 else 0
    if not isinstance(space, BabyAIMissionSpace):
        return 0
    missions = {env.reset(seed=seed)[0]["mission"] for seed in range(_PROBES)}
    if len(missions) == 1:
        return 0
    words = {word for mission in missions for word in _split(mission)}
    lengths = {len(_split(mission)) for mission in missions}
    if len(lengths) == 1:
        return lengths.pop()
    if words & {"then", "after", "and"}:
        return _SEQUENCE
    return _PUT_CLAUSE if "put" in words else _CLAUSE


def _split(mission: str) -> list[str]:
    return re.findall(r"[a-z]+", mission.lower())

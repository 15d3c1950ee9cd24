"""What an outside observer sees of an agent's skill: keys, doors, wasted actions, and how far the goal is.

Privileged: nothing here reaches the agent or an adviser.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minigrid.core.world_object import Box, Door, Key, WorldObj
from minigrid.minigrid_env import MiniGridEnv

from lore.envs.adapter import MiniGridAdapter
from lore.envs.privileged.truth import core, distances

EVERY = 16  # steps of an environment between two measurements of distances: they search the whole grid


@dataclass
class _Deeds:
    """Of the running episode: what its task holds, and what was done with it."""

    keys: bool = False
    doors: bool = False
    locks: bool = False
    picked: bool = False
    toggled: bool = False
    unlocked: bool = False


@dataclass
class _Before:
    """What one action can change: the pose, the hand, the thing ahead and, if it is a door, its state."""

    pose: tuple[int, int, int]
    held: WorldObj | None
    cell: tuple[int, int]
    ahead: WorldObj | None
    door: tuple[bool, bool] | None


class SkillMeter:
    """Shares and medians of training steps and episodes since the last row: the metrics minigrid/.

    Call `before`, step the environments, call `after`. Rows on which an episode has ended do not count.
    """

    def __init__(self, envs: Sequence[MiniGridAdapter]):
        """Start with nothing counted.

        Args:
            envs: The training environments.
        """
        self._worlds: list[MiniGridEnv] = [core(env) for env in envs]
        self._deeds = [_Deeds() for _ in envs]
        self._before: list[_Before] = []
        self._steps = 0
        self._counts: Counter[str] = Counter()
        self._distances: dict[str, list[int]] = {}

    def before(self, first: Sequence[bool]) -> None:
        """Look at every environment before its step.

        Args:
            first: For each environment, whether an episode begins there.
        """
        for i, world in enumerate(self._worlds):
            if first[i]:
                self._deeds[i] = _task(world)
        self._before = [_look(world) for world in self._worlds]

    def after(self, acted: Sequence[bool], ended: Sequence[bool]) -> None:
        """Look again after the step, and count what has changed.

        Args:
            acted: For each environment, whether the step was an action, not the start of an episode.
            ended: For each environment, whether the step ended its episode.
        """
        self._steps += 1
        for i, (world, before) in enumerate(zip(self._worlds, self._before, strict=True)):
            if acted[i]:
                self._step(world, self._deeds[i], before, ended[i])
            if acted[i] and ended[i]:
                self._episode(self._deeds[i])
            if acted[i] and self._steps % EVERY == 0:
                for name, value in asdict(distances(world)).items():
                    if value is not None:
                        self._distances.setdefault(name, []).append(value)

    def result(self) -> dict[str, float]:
        """Give the row's metrics, and start afresh.

        Returns:
            Name -> number; a name is absent where there is nothing to say.
        """
        counts, far = self._counts, self._distances
        self._counts, self._distances = Counter(), {}
        row = {}
        for name, of in (
            ("pickup_key_rate", "episodes_keys"),
            ("door_toggle_rate", "episodes_doors"),
            ("unlock_open_rate", "episodes_locks"),
            ("has_key_ratio", "steps_keys"),
            ("invalid_action_ratio", "steps"),
        ):
            if counts[of]:
                row[f"minigrid/{name}"] = counts[name] / counts[of]
        return row | {f"minigrid/distance_{name}": float(statistics.median(v)) for name, v in far.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        return {
            "deeds": [list(vars(deeds).values()) for deeds in self._deeds],
            "steps": self._steps,
            "counts": dict(self._counts),
            "distances": {name: list(values) for name, values in self._distances.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` gave, for the same number of environments.
        """
        self._deeds = [_Deeds(*values) for values in state["deeds"]]
        self._steps, self._counts = state["steps"], Counter(state["counts"])
        self._distances = {name: list(values) for name, values in state["distances"].items()}

    def _step(self, world: MiniGridEnv, deeds: _Deeds, before: _Before, ended: bool) -> None:
        door = _state(before.ahead)
        held = world.carrying
        moved = _pose(world) != before.pose or held is not before.held
        changed = moved or world.grid.get(*before.cell) is not before.ahead or door != before.door
        has_key = isinstance(held, Key)
        deeds.picked |= has_key and held is not before.held
        deeds.toggled |= door != before.door
        deeds.unlocked |= before.door is not None and before.door[1] and door is not None and not door[1]
        self._counts["steps"] += 1
        self._counts["steps_keys"] += deeds.keys
        self._counts["has_key_ratio"] += has_key
        self._counts["invalid_action_ratio"] += not changed and not ended

    def _episode(self, deeds: _Deeds) -> None:
        for kind, has, name, did in (
            ("keys", deeds.keys, "pickup_key_rate", deeds.picked),
            ("doors", deeds.doors, "door_toggle_rate", deeds.toggled),
            ("locks", deeds.locks, "unlock_open_rate", deeds.unlocked),
        ):
            self._counts[f"episodes_{kind}"] += has
            self._counts[name] += has and did


def _task(world: MiniGridEnv) -> _Deeds:
    """What the episode that begins has to do with; keys in boxes count."""
    things = [thing for thing in world.grid.grid if thing is not None]
    inside = [thing.contains for thing in things if isinstance(thing, Box)]
    keys = any(isinstance(thing, Key) for thing in [*things, *inside, world.carrying])
    doors = [thing for thing in things if isinstance(thing, Door)]
    return _Deeds(keys, bool(doors), any(door.is_locked for door in doors))


def _look(world: MiniGridEnv) -> _Before:
    cell = (int(world.front_pos[0]), int(world.front_pos[1]))
    ahead = world.grid.get(*cell)
    return _Before(_pose(world), world.carrying, cell, ahead, _state(ahead))


def _pose(world: MiniGridEnv) -> tuple[int, int, int]:
    return int(world.agent_pos[0]), int(world.agent_pos[1]), int(world.agent_dir)


def _state(thing: WorldObj | None) -> tuple[bool, bool] | None:
    return (thing.is_open, thing.is_locked) if isinstance(thing, Door) else None

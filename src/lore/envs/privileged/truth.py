"""What only an outside observer may know. The one place that reads `env.unwrapped`.

Nothing here may reach the agent or an adviser that is not labelled an oracle: layouts for the statistics,
distances for the metrics, the remaining way for reward shaping, pictures for films.

Distances count cells on shortest paths. Walls and lava block, and so does a locked door; closed doors and
things that can be carried do not.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from minigrid.core.world_object import Box, Door, Goal, Key, WorldObj
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import GoToInstr, OpenInstr, PickupInstr
from minigrid.envs.blockedunlockpickup import BlockedUnlockPickupEnv
from minigrid.envs.keycorridor import KeyCorridorEnv
from minigrid.envs.obstructedmaze import ObstructedMazeEnv
from minigrid.envs.unlock import UnlockEnv
from minigrid.envs.unlockpickup import UnlockPickupEnv
from minigrid.minigrid_env import MiniGridEnv

Cell = tuple[int, int]
Field = dict[Cell, int]

HAS_OBJ = (
    UnlockPickupEnv,
    BlockedUnlockPickupEnv,
    KeyCorridorEnv,
    ObstructedMazeEnv,
)


@dataclass(frozen=True)
class Distances:
    """Cells between the landmarks of a task; None where one is missing or cannot be reached.

    A carried key is where the agent is. key_door and door_goal belong to the locked door, or to the only
    door once it is unlocked. The goal is what ends the episode in success.
    """

    agent_key: int | None
    key_door: int | None
    door_goal: int | None


def core(env: gym.Env) -> MiniGridEnv:
    """Return the MiniGrid task below all wrappers.

    Args:
        env: The wrapped task.

    Raises:
        TypeError: There is no MiniGrid task below.
    """
    inner = env.unwrapped
    if not isinstance(inner, MiniGridEnv):
        raise TypeError(f"{type(inner).__name__} is not a MiniGrid environment")
    return inner


def layout_hash(env: gym.Env) -> str:
    """Name the present grid, contents of boxes included, and the agent's pose.

    Args:
        env: The task, wrapped or not.

    Returns:
        16 hexadecimal digits; equal grids have equal names.
    """
    world = core(env)
    codes = [_code(cell) for cell in world.grid.grid]
    pose = (int(world.agent_pos[0]), int(world.agent_pos[1]), int(world.agent_dir))
    text = repr((world.grid.width, world.grid.height, codes, pose))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def draw(env: gym.Env, size: int) -> np.ndarray:
    """Draw the whole grid for human eyes, as MiniGrid does.

    Args:
        env: The task, wrapped or not.
        size: No side of the picture is longer, in pixels, unless the grid has more cells.

    Returns:
        Pixels, uint8 (H, W, 3).
    """
    world = core(env)
    tile = max(1, size // max(world.grid.width, world.grid.height))
    return world.get_frame(highlight=True, tile_size=tile)


def distances(env: gym.Env) -> Distances:
    """Measure the distances agent-key, key-door and door-goal in the present state.

    Args:
        env: The task, wrapped or not.
    """
    world = core(env)
    agent = _agent(world)
    door = _door(world)
    key = _key(world, None if door is None else door[1].color)
    goals = _goals(world)
    from_key = None if key is None else _field(world, [key])
    from_goal = None if not goals else _field(world, goals)
    return Distances(
        agent_key=None if from_key is None else from_key.get(agent),
        key_door=None if from_key is None or door is None else _beside(from_key, door[0]),
        door_goal=None if from_goal is None or door is None else _beside(from_goal, door[0]),
    )


class Route:
    """How far an episode's success is away. One for each environment; `reset` at each episode's start."""

    def __init__(self, env: gym.Env) -> None:
        """Take up a task.

        Args:
            env: The task, wrapped or not.
        """
        self._world = core(env)
        self._fields: dict[tuple, Field] = {}

    def reset(self) -> None:
        """Forget the episode before; call it at each episode's start."""
        self._fields = {}

    def remaining(self) -> int | None:
        """Count the cells to walk, plus one for each key to fetch and door to unlock.

        What stands in the way but can be carried is ignored.

        Returns:
            0 at success; None if the task has no such measure (no goal to stand on or thing to pick up, more
            than one locked door), or if success is out of reach now.
        """
        world = self._world
        goals = _goals(world)
        if not goals:
            return None
        agent = _agent(world)
        way = self._field(goals).get(agent)
        if way is not None and not any(_is_locked(world.grid.get(*goal)) for goal in goals):
            return way
        locked = _doors(world, locked=True)
        if len(locked) != 1:
            return None
        cell, door = locked[0]
        key = _key(world, door.color)
        if key is None:
            return None
        held = key == agent
        to_key = 0 if held else self._field([key]).get(agent)
        to_door = self._field([cell]).get(key)
        to_goal = _beside(self._field(goals), cell)
        if to_key is None or to_door is None or to_goal is None:
            return None
        return to_key + to_door + to_goal + (1 if held else 2)

    def _field(self, sources: list[Cell]) -> Field:
        """Cached while the sources and the locked doors stay; walls and lava never move in an episode."""
        name = (tuple(sources), tuple(cell for cell, _ in _doors(self._world, locked=True)))
        if name not in self._fields:
            self._fields[name] = _field(self._world, sources)
        return self._fields[name]


def _field(world: MiniGridEnv, sources: list[Cell]) -> Field:
    """Distance of every reachable cell from the nearest source; a source may itself be solid."""
    found: Field = dict.fromkeys(sources, 0)
    queue = deque(sources)
    while queue:
        x, y = queue.popleft()
        for cell in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
            if cell in found or not (0 <= cell[0] < world.grid.width and 0 <= cell[1] < world.grid.height):
                continue
            thing = world.grid.get(*cell)
            if thing is not None and (thing.type in ("wall", "lava") or _is_locked(thing)):
                continue
            found[cell] = found[(x, y)] + 1
            queue.append(cell)
    return found


def _beside(field: Field, cell: Cell) -> int | None:
    """Distance of a cell that may be solid: through its nearest neighbor."""
    if cell in field:
        return field[cell]
    x, y = cell
    near = [field[c] for c in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)) if c in field]
    return min(near) + 1 if near else None


def _goals(world: MiniGridEnv) -> list[Cell]:
    """Cells of what ends the episode in success; a carried target is where the agent is."""
    wanted: list[WorldObj] = []
    if isinstance(world, RoomGridLevel):
        instruction = vars(world)["instrs"]
        if isinstance(instruction, (PickupInstr, GoToInstr, OpenInstr)):
            wanted = instruction.desc.obj_set
    elif isinstance(world, HAS_OBJ):
        wanted = [world.obj]
    elif isinstance(world, UnlockEnv):
        wanted = [world.door]
    else:
        return [cell for cell, thing in _things(world) if isinstance(thing, Goal)]
    cells = [cell for cell, thing in _things(world) if any(thing is w for w in wanted)]
    return cells + [_agent(world)] * any(world.carrying is w for w in wanted)


def _key(world: MiniGridEnv, color: str | None) -> Cell | None:
    """The nearest listed key of that color (any color if None): in hand, on the floor or in a box."""
    if isinstance(world.carrying, Key) and color in (None, world.carrying.color):
        return _agent(world)
    for cell, thing in _things(world):
        key = thing.contains if isinstance(thing, Box) else thing
        if isinstance(key, Key) and color in (None, key.color):
            return cell
    return None


def _door(world: MiniGridEnv) -> tuple[Cell, Door] | None:
    for doors in (_doors(world, locked=True), _doors(world, locked=False)):
        if len(doors) == 1:
            return doors[0]
    return None


def _doors(world: MiniGridEnv, locked: bool) -> list[tuple[Cell, Door]]:
    return [(cell, t) for cell, t in _things(world) if isinstance(t, Door) and t.is_locked == locked]


def _is_locked(thing: WorldObj | None) -> bool:
    return isinstance(thing, Door) and thing.is_locked


def _things(world: MiniGridEnv) -> Iterator[tuple[Cell, WorldObj]]:
    width = world.grid.width
    for i, thing in enumerate(world.grid.grid):
        if thing is not None and thing.type != "wall":
            yield (i % width, i // width), thing


def _agent(world: MiniGridEnv) -> Cell:
    return int(world.agent_pos[0]), int(world.agent_pos[1])


def _code(cell: WorldObj | None) -> tuple:
    if cell is None:
        return ()
    return (*(int(v) for v in cell.encode()), *(_code(cell.contains) if isinstance(cell, Box) else ()))

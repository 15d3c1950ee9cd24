"""A MiniGrid grid in numbers, and what the actions do to it: the ground for a search.

Privileged as all of this folder: it shows the whole grid. Lava counts as a wall: nobody wants to enter it.
Source: minigrid 3.2.0, `minigrid_env.py` (step) and `core/world_object.py` (toggle).
"""

from __future__ import annotations

from collections.abc import Collection

from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.world_object import Box, Door, Key, WorldObj
from minigrid.minigrid_env import MiniGridEnv

OPEN, CLOSED, LOCKED = 0, 1, 2
State = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""(4 * cell + direction, thing in hand or -1, states of the doors, cells of the things or -1)."""


class Board:
    """One grid in numbers: cells as y * width + x, and `start`, the state it is in."""

    def __init__(self, world: MiniGridEnv) -> None:
        """Read a grid.

        Args:
            world: The task in its present state; it is not changed.
        """
        width, cells = world.grid.width, world.grid.grid
        self.steps = tuple(int(dx) + width * int(dy) for dx, dy in DIR_TO_VEC)
        self.solid = [thing is not None and thing.type in ("wall", "lava") for thing in cells]
        self.empty = [thing is None or thing.can_pickup() for thing in cells]
        self.doors: dict[int, int] = {}  # cell -> number
        self.things: list[WorldObj] = []
        self.inside: list[int] = []  # number of the thing that each thing holds, or -1
        self.objects: list[tuple[int, WorldObj]] = []  # with their cells, doors and goals too
        where: list[int] = []
        for cell, thing in enumerate(cells):
            if thing is None or thing.type == "wall":
                continue
            self.objects.append((cell, thing))
            if isinstance(thing, Door):
                self.doors[cell] = len(self.doors)
            elif thing.can_pickup():
                self._add(thing, cell, where)
        hand = -1 if world.carrying is None else self._add(world.carrying, -1, where)
        self.locks = [cells[cell].color for cell in self.doors]
        pose = 4 * (int(world.agent_pos[0]) + width * int(world.agent_pos[1])) + int(world.agent_dir)
        states = tuple(int(cells[cell].encode()[2]) for cell in self.doors)
        self.start: State = (pose, hand, states, tuple(where))

    def _add(self, thing: WorldObj, cell: int, where: list[int]) -> int:
        number = len(self.things)
        self.things.append(thing)
        self.inside.append(-1)
        where.append(cell)
        if isinstance(thing, Box) and thing.contains is not None:
            self.inside[number] = self._add(thing.contains, -1, where)
        return number

    def numbers(self, objects: Collection[WorldObj]) -> frozenset[int]:
        """Return the numbers of the objects that can be carried; the others are left out.

        Args:
            objects: Objects of the grid.
        """
        return frozenset(i for i, thing in enumerate(self.things) if any(thing is o for o in objects))

    def cells(self, objects: Collection[WorldObj]) -> frozenset[int]:
        """Return the cells of the objects that cannot be carried; the others are left out.

        Args:
            objects: Objects of the grid.
        """
        return frozenset(
            cell
            for cell, thing in self.objects
            if not thing.can_pickup() and any(thing is o for o in objects)
        )

    def opens(self, thing: int, door: int) -> bool:
        """Say whether a thing is the key to a door.

        Args:
            thing: Number of the thing, or -1 for none.
            door: Number of the door.
        """
        return (
            thing >= 0
            and isinstance(self.things[thing], Key)
            and self.things[thing].color == self.locks[door]
        )

    def front(self, pose: int) -> int:
        """Return the cell that the agent faces.

        Args:
            pose: 4 * cell + direction of the agent.
        """
        return pose // 4 + self.steps[pose % 4]

    def move(self, state: State, action: str, shut: frozenset[int]) -> State:
        """Return the state after an action.

        Args:
            state: The state before.
            action: left, right, forward, pickup, drop or toggle; any other name changes nothing.
            shut: Cells of the doors that `toggle` may close; another open door stays open.
        """
        pose, hand, doors, where = state
        if action in ("left", "right"):
            turned = pose - pose % 4 + (pose + (1 if action == "right" else 3)) % 4
            return turned, hand, doors, where
        front = self.front(pose)
        thing, door = where.index(front) if front in where else -1, self.doors.get(front, -1)
        if action == "forward":
            free = not self.solid[front] and thing < 0 and (door < 0 or doors[door] == OPEN)
            return (4 * front + pose % 4, hand, doors, where) if free else state
        if action == "pickup" and thing >= 0 and hand < 0:
            return pose, thing, doors, _put(where, thing, -1)
        if action == "drop" and hand >= 0 and thing < 0 and self.empty[front]:
            return pose, -1, doors, _put(where, hand, front)
        if action == "toggle" and thing >= 0 and isinstance(self.things[thing], Box):
            where = _put(where, thing, -1)
            inside = self.inside[thing]
            return pose, hand, doors, where if inside < 0 else _put(where, inside, front)
        if action == "toggle" and door >= 0:
            if doors[door] == CLOSED or (doors[door] == LOCKED and self.opens(hand, door)):
                return pose, hand, _put(doors, door, OPEN), where
            if doors[door] == OPEN and front in shut:
                return pose, hand, _put(doors, door, CLOSED), where
        return state


def _put(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])

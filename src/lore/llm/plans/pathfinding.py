"""Shortest ways over the remembered map, over turns and steps alike.

A set of cells is one Python int with a bit a cell, a set of poses is four of them, one for each direction.
A whole ring of a search is then a few shifts, so that a search over hundreds of poses takes microseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from lore.base.types import PORTABLE, Cell, GridState, Thing

REACH = 48  # cells farther away than this, in x or y, are not looked at
TAKE_COST = 10  # actions that taking a thing away counts for: a detour of fewer is preferred

Poses = tuple[int, int, int, int]
"""Sets of cells by the direction in which the agent looks."""

_NONE: Poses = (0, 0, 0, 0)


class Ways(NamedTuple):
    """How the shortest ways begin.

    Attributes:
        first: The actions with which a shortest way begins.
        arrived: Whether none is needed, because the pose is a goal.
    """

    first: tuple[str, ...]
    arrived: bool


class Ground:
    """What is known of the floor. Lava is never walked on.

    Attributes:
        free: Set of the cells that can be walked on. The agent's cell is one, whatever the map says of it.
        shut: Set of the cells that can be walked on once a door is opened or a thing is taken away.
        unseen: Set of the cells never seen, beside known cells or between them.
    """

    def __init__(
        self, state: GridState, hand: Thing | None, can: Collection[str], clear: bool = False
    ) -> None:
        """Turn a map into sets of cells.

        Args:
            state: What the agent knows.
            hand: What is carried; a key opens doors of its color.
            can: Names of the task's actions.
            clear: Whether things may be taken away.
        """
        px, py = state.position
        cells = {
            (x, y): thing
            for (x, y), thing in state.cells.items()
            if abs(x - px) <= REACH and abs(y - py) <= REACH
        }
        xs, ys = [px, *(x for x, _ in cells)], [py, *(y for _, y in cells)]
        self._x0, self._y0 = min(xs) - 1, min(ys) - 1  # a rim of unseen cells, so that no shift wraps around
        self._width, self._height = max(xs) - self._x0 + 2, max(ys) - self._y0 + 2
        seen = free = doors = things = 0
        for cell, thing in cells.items():
            bit = self.bit_of(cell)
            seen |= bit
            if thing.walkable:
                free |= bit
            elif thing.kind == "door":
                doors |= bit if thing.opens_with(hand) else 0
            elif thing.kind in PORTABLE:
                things |= bit
        here = self.bit_of((px, py))
        doors = doors & ~here if "toggle" in can else 0
        self._lying = things & ~here
        things = self._lying if clear and "pickup" in can else 0
        self.free, self.shut = free | here, doors | things
        moves = ((1, self.free, "forward"), (2, doors, "toggle"), (TAKE_COST, things, "pickup"))
        self._moves = [move for move in moves if move[1] and "forward" in can]
        self.unseen = ~seen & ((1 << self._width * self._height) - 1)
        self._shifts = (1, self._width, -1, -self._width)
        self._pose = here, state.direction % 4
        self._can = can

    def bit_of(self, cell: Cell) -> int:
        """Return the set that holds one cell.

        Args:
            cell: x and y; it must lie within the map or beside it.
        """
        return 1 << ((cell[1] - self._y0) * self._width + cell[0] - self._x0)

    def collect_bits(self, cells: Iterable[Cell]) -> int:
        """Return the set of the cells that are known or beside known ones; other cells are left out.

        Args:
            cells: x and y of each.
        """
        found = 0
        for x, y in cells:
            if 0 <= x - self._x0 < self._width and 0 <= y - self._y0 < self._height:
                found |= self.bit_of((x, y))
        return found

    def find_poses_facing(self, cells: int) -> Poses:
        """Return the poses from which the agent faces one of the cells.

        Args:
            cells: A set of cells, one bit each.
        """
        return self._step_back((cells, cells, cells, cells))

    def find_poses_on(self, cells: int) -> Poses:
        """Return the poses on the cells of a set that the agent can come to stand on.

        Args:
            cells: A set of cells, one bit each.
        """
        cells &= self.free | self.shut
        return cells, cells, cells, cells

    def find_frontier(self) -> Poses:
        """Return the poses that face a cell never seen, or a thing with such a cell behind it."""
        open_ = self._look_at(self.unseen, self.unseen, self.unseen, self.unseen)
        return unite(open_, self._look_past(self._lying))

    def find_shut_frontier(self) -> Poses:
        """Return the poses that face a shut cell with a cell never seen behind it."""
        return self._look_past(self.shut)

    def _look_past(self, cells: int) -> Poses:
        return self._look_at(*(cells & _shift(self.unseen, -step) for step in self._shifts))

    def _look_at(self, *sets: int) -> Poses:
        east, south, west, north = (
            _shift(cells, -step) & self.free for cells, step in zip(sets, self._shifts, strict=True)
        )
        return east, south, west, north

    def find_ways(self, goals: Mapping[int, Poses]) -> Ways | None:
        """Search outwards from all goals at once, ring by ring, until a ring holds the agent's pose.

        A turn, a step and opening a door cost 1 each; taking something away costs TAKE_COST.

        Args:
            goals: Cost to add, at least 0 -> the poses that end the way at this cost.

        Returns:
            How the shortest ways begin; None if no goal can be reached.
        """
        here, direction = self._pose
        pending, reached = dict(goals), [(-1, _NONE)]
        while pending:
            level, total = min(pending), reached[-1][1]
            ring = _without(pending.pop(level), total)
            if ring[direction] & here:
                arrived = bool(goals.get(level, _NONE)[direction] & here)
                return Ways(() if arrived else self._first_actions(level, reached), arrived)
            if any(ring):
                reached.append((level, unite(total, ring)))
                self._spread(ring, level, pending)
        return None

    def _spread(self, ring: Poses, level: int, pending: dict[int, Poses]) -> None:
        """Put the poses from which `ring` is reached by one move into the rings to come."""
        turned = [0, 0, 0, 0]
        for d, cells in enumerate(ring):
            if "right" in self._can:
                turned[d - 1] |= cells
            if "left" in self._can:
                turned[(d + 1) % 4] |= cells
        _add(pending, level + 1, (turned[0], turned[1], turned[2], turned[3]))
        for cost, ground, _ in self._moves:
            entered = ring[0] & ground, ring[1] & ground, ring[2] & ground, ring[3] & ground
            if any(entered):
                _add(pending, level + cost, self._step_back(entered))

    def _step_back(self, ring: Poses) -> Poses:
        """Return the poses from which one step forward leads to these poses."""
        ground = self.free | self.shut
        east, south, west, north = (
            _shift(cells, -step) & ground for cells, step in zip(ring, self._shifts, strict=True)
        )
        return east, south, west, north

    def _first_actions(self, level: int, reached: list[tuple[int, Poses]]) -> tuple[str, ...]:
        """Return every action with which a shortest way begins.

        An action is one of them if the pose after it is nearer to a goal by exactly the cost of the action.

        Args:
            level: Cost of the shortest ways from here.
            reached: For rising costs, the poses from which a goal costs at most so much.
        """
        here, d = self._pose
        ahead = _shift(here, self._shifts[d])
        nearer = _within(reached, level - 1)
        first = []
        if "left" in self._can and nearer[d - 1] & here:
            first.append("left")
        if "right" in self._can and nearer[(d + 1) % 4] & here:
            first.append("right")
        for cost, ground, action in self._moves:
            if ahead & ground & _within(reached, level - cost)[d]:
                first.append(action)
        return tuple(first)


def _shift(cells: int, by: int) -> int:
    return cells << by if by > 0 else cells >> -by


def unite(a: Poses, b: Poses) -> Poses:
    """Return the poses that are in either set.

    Args:
        a: A set of poses.
        b: Another.
    """
    return a[0] | b[0], a[1] | b[1], a[2] | b[2], a[3] | b[3]


def _without(a: Poses, b: Poses) -> Poses:
    return a[0] & ~b[0], a[1] & ~b[1], a[2] & ~b[2], a[3] & ~b[3]


def _add(pending: dict[int, Poses], level: int, poses: Poses) -> None:
    pending[level] = unite(pending[level], poses) if level in pending else poses


def _within(reached: list[tuple[int, Poses]], level: int) -> Poses:
    """Return the poses from which a goal costs at most `level`."""
    return next((poses for at, poses in reversed(reached) if at <= level), _NONE)

"""Shortest ways over the remembered map, over turns and steps alike.

A set of cells is one Python int with a bit a cell, a set of poses is four of them, one for each direction.
A whole ring of a search is then a few shifts, so that a search over hundreds of poses takes microseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from lore.base.types import Cell, GridState, Thing
from lore.llm.plans.language import PORTABLE

REACH = 48  # cells farther away than this, in x or y, are not looked at
TAKE_COST = 10  # of a cell from which something has to be taken away: rather a detour of that many actions

Poses = tuple[int, int, int, int]
"""Sets of cells by the direction in which the agent looks."""

_NONE: Poses = (0, 0, 0, 0)
_WALKABLE = ("empty", "floor", "goal")


class Ways(NamedTuple):
    """first: the actions with which a shortest way begins. arrived: none is needed, the pose is a goal."""

    first: tuple[str, ...]
    arrived: bool


class Ground:
    """What is known of the floor. Sets: free (can be walked on), shut (can be, once a door is opened or a
    thing is taken away), unseen (beside known cells or between them).

    key: color of the key in hand, if any. can: names of the task's actions. clear: things may be taken
    away. Lava is never walked on. The agent's own cell is free, whatever it is said to be.
    """

    def __init__(self, state: GridState, key: str | None, can: Collection[str], clear: bool = False) -> None:
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
            bit = self.bit(cell)
            seen |= bit
            if walkable(thing):
                free |= bit
            elif thing.kind == "door":
                doors |= bit if opens(thing, key) else 0
            elif thing.kind in PORTABLE:
                things |= bit
        here = self.bit((px, py))
        doors = doors & ~here if "toggle" in can else 0
        self._low = things & ~here
        things = self._low if clear and "pickup" in can else 0
        self.free, self.shut = free | here, doors | things
        moves = ((1, self.free, "forward"), (2, doors, "toggle"), (TAKE_COST, things, "pickup"))
        self._moves = [move for move in moves if move[1] and "forward" in can]
        self.unseen = ~seen & ((1 << self._width * self._height) - 1)
        self._shifts = (1, self._width, -1, -self._width)
        self._pose = here, state.direction % 4
        self._can = can

    def bit(self, cell: Cell) -> int:
        return 1 << ((cell[1] - self._y0) * self._width + cell[0] - self._x0)

    def board(self, cells: Iterable[Cell]) -> int:
        """The set of those of the cells that are known or beside the known ones."""
        board = 0
        for x, y in cells:
            if 0 <= x - self._x0 < self._width and 0 <= y - self._y0 < self._height:
                board |= self.bit((x, y))
        return board

    def facing(self, board: int) -> Poses:
        """Poses that look at a cell of `board`."""
        return self._before((board, board, board, board))

    def on(self, board: int) -> Poses:
        board &= self.free | self.shut
        return board, board, board, board

    def frontier(self) -> Poses:
        """Poses that would see something new at once, over a thing that lies there if need be."""
        open_ = self._looks_at(self.unseen, self.unseen, self.unseen, self.unseen)
        return join(open_, self._past(self._low))

    def ends(self) -> Poses:
        """Poses that look at a shut cell with an unseen one behind it."""
        return self._past(self.shut)

    def _past(self, board: int) -> Poses:
        return self._looks_at(*(board & _shift(self.unseen, -step) for step in self._shifts))

    def _looks_at(self, *boards: int) -> Poses:
        east, south, west, north = (
            _shift(board, -step) & self.free for board, step in zip(boards, self._shifts, strict=True)
        )
        return east, south, west, north

    def ways(self, goals: Mapping[int, Poses]) -> Ways | None:
        """The way to the nearest goal; None if there is none. goals: extra cost -> poses, costs at least 0.

        A turn, a step and opening a door cost 1 each; to take something away costs a detour.
        """
        here, direction = self._pose
        pending, reached = dict(goals), [(-1, _NONE)]
        while pending:
            level, total = min(pending), reached[-1][1]
            ring = _without(pending.pop(level), total)
            if ring[direction] & here:
                arrived = bool(goals.get(level, _NONE)[direction] & here)
                return Ways(() if arrived else self._first(level, reached), arrived)
            if any(ring):
                reached.append((level, join(total, ring)))
                self._spread(ring, level, pending)
        return None

    def _spread(self, ring: Poses, level: int, pending: dict[int, Poses]) -> None:
        """Put the poses from which `ring` is reached by one move into the rings to come."""
        turned = [0, 0, 0, 0]
        for d, board in enumerate(ring):
            if "right" in self._can:
                turned[d - 1] |= board
            if "left" in self._can:
                turned[(d + 1) % 4] |= board
        _add(pending, level + 1, (turned[0], turned[1], turned[2], turned[3]))
        for cost, ground, _ in self._moves:
            entered = ring[0] & ground, ring[1] & ground, ring[2] & ground, ring[3] & ground
            if any(entered):
                _add(pending, level + cost, self._before(entered))

    def _before(self, ring: Poses) -> Poses:
        """The poses one step back."""
        ground = self.free | self.shut
        east, south, west, north = (
            _shift(board, -step) & ground for board, step in zip(ring, self._shifts, strict=True)
        )
        return east, south, west, north

    def _first(self, level: int, reached: list[tuple[int, Poses]]) -> tuple[str, ...]:
        """The actions after which the rest of the way is as much shorter as they cost."""
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


def walkable(thing: Thing) -> bool:
    """Whether one can stand there and live."""
    return thing.kind in _WALKABLE or (thing.kind == "door" and thing.state == "open")


def opens(thing: Thing, key: str | None) -> bool:
    """Whether `toggle` opens that door. key: color of the key in hand, if any."""
    return thing.kind == "door" and (
        thing.state == "closed" or (thing.state == "locked" and thing.color == key)
    )


def _shift(board: int, by: int) -> int:
    return board << by if by > 0 else board >> -by


def join(a: Poses, b: Poses) -> Poses:
    """Poses that are in either."""
    return a[0] | b[0], a[1] | b[1], a[2] | b[2], a[3] | b[3]


def _without(a: Poses, b: Poses) -> Poses:
    return a[0] & ~b[0], a[1] & ~b[1], a[2] & ~b[2], a[3] & ~b[3]


def _add(pending: dict[int, Poses], level: int, poses: Poses) -> None:
    pending[level] = join(pending[level], poses) if level in pending else poses


def _within(reached: list[tuple[int, Poses]], level: int) -> Poses:
    """The poses reached by rings no farther than `level`."""
    return next((poses for at, poses in reversed(reached) if at <= level), _NONE)

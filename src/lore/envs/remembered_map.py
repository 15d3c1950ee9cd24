"""The map an agent can draw of its world: from its own views and steps in this episode, and nothing else.

Cells are named relative to where the episode began. `forward` leads into the cell ahead if one can walk on
it. Only balls move by themselves (MiniGrid's Dynamic-Obstacles tasks): where one may have stepped into the
way, or out of it, both outcomes are kept until a view contradicts one of them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT, STATE_TO_IDX

from lore.base.types import EMPTY, STEPS, Cell, GridState, Thing

_WALK = ("left", "right", "forward")
_MOST = 8  # outcomes kept side by side
_STATES = {index: name for name, index in STATE_TO_IDX.items()}


class MapMemory:
    """Remembers the cells of one environment as last seen; `reset` begins another episode.

    A view is an image uint8 (V, V, 3), V odd, as MiniGrid's obs["image"]: indexed [column, row], the agent at
    [V // 2, V - 1], where what the agent carries is shown.
    Source: minigrid 3.2.0, `minigrid_env.py` (step, gen_obs).
    """

    def __init__(self, max_steps: int) -> None:
        """Start with nothing known.

        Args:
            max_steps: The episode's time limit in steps, only passed on.
        """
        self._max_steps = max_steps
        self._maybe: list[GridState] = []  # what may be so, the likeliest first; nearly always one

    def reset(self, image: np.ndarray, direction: int, mission: str) -> GridState:
        """Forget everything, and begin an episode: the agent is at (0, 0), on an empty cell.

        Args:
            image: The agent's view, uint8 (V, V, 3).
            direction: Direction of the agent: 0 east, 1 south, 2 west, 3 north.
            mission: The episode's mission.
        """
        view = _read(image, direction)
        nothing = GridState(mission, None, (0, 0), direction, {}, frozenset(), -1, self._max_steps)
        self._maybe = [_look(nothing, (0, 0), view, direction)]
        return self._maybe[0]

    def step(self, action: str, image: np.ndarray, direction: int) -> GridState:
        """Work out what is known after an action.

        Args:
            action: Name of the action that was taken.
            image: The agent's view after it, uint8 (V, V, 3).
            direction: Direction of the agent after it: 0 east, 1 south, 2 west, 3 north.

        Raises:
            RuntimeError: There was no `reset` before.
        """
        if not self._maybe:
            raise RuntimeError("call reset() before step()")
        view = _read(image, direction)
        ways = [(state, at) for state in self._maybe for at in _reached(state, action, view)]
        if len(ways) > 1 and action in _WALK:  # the others change the cell ahead: no contradiction
            misfits = [_misfit(state, at, view) for state, at in ways]
            ways = [way for way, misfit in zip(ways, misfits, strict=True) if misfit == min(misfits)]
        self._maybe = [_look(state, at, view, direction) for state, at in ways[:_MOST]]
        return self._maybe[0]


def _look(before: GridState, position: Cell, view: dict[Cell, Thing], direction: int) -> GridState:
    seen, known, hand = _seen(before, position, view), before.cells, view[0, 0]
    return GridState(
        mission=before.mission,
        carrying=None if hand == EMPTY else hand,
        position=position,
        direction=direction,
        cells=known if seen.items() <= known.items() else {**known, **seen},
        visible=frozenset(seen),
        step=before.step + 1,
        max_steps=before.max_steps,
    )


def _reached(before: GridState, action: str, view: dict[Cell, Thing]) -> tuple[Cell, ...]:
    """List the cells that an action may have led to, the likelier first.

    `view` is what the agent sees after the action, by cell relative to the agent.
    """
    here, ahead = before.position, before.ahead
    if action != "forward":
        return (here,)
    was = before.cells[ahead]
    if view[STEPS[before.direction]].kind == "ball":
        return (ahead, here) if was.enterable else (here, ahead)
    return (ahead,) if was.kind == "ball" or was.enterable else (here,)


def _misfit(before: GridState, position: Cell, view: dict[Cell, Thing]) -> tuple[int, int]:
    """Measure how badly a view fits what was known: things that never move, then balls that moved too far."""
    seen, known = _seen(before, position, view), before.cells
    fixed = sum(
        known[cell] != thing and not {known[cell].kind, thing.kind} <= {"ball", "empty"}
        for cell, thing in seen.items()
        if cell in known
    )
    old = {cell for cell in before.visible if known[cell].kind == "ball"}
    new = {cell for cell, thing in seen.items() if thing.kind == "ball"}
    lost = sum(_around(cell) <= seen.keys() and not _around(cell) & new for cell in old)
    risen = sum(_around(cell) <= before.visible and not _around(cell) & old for cell in new)
    return fixed, lost + risen


def _around(cell: Cell) -> set[Cell]:
    x, y = cell
    return {(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)}


def _seen(before: GridState, position: Cell, view: dict[Cell, Thing]) -> dict[Cell, Thing]:
    """Return the cells in view. The agent's cell holds what was there when it was last seen from outside."""
    x, y = position
    seen = {(x + dx, y + dy): thing for (dx, dy), thing in view.items()}
    under = before.cells.get(position, EMPTY)
    seen[position] = under if under.enterable else EMPTY
    return seen


def _read(image: np.ndarray, direction: int) -> dict[Cell, Thing]:
    """Return the seen cells by their offset from the agent in the world's directions."""
    codes = image.tobytes()
    view = {}
    for i, offset in enumerate(_offsets(image.shape[0], direction)):
        thing = _thing(codes[3 * i : 3 * i + 3])
        if thing is not None:
            view[offset] = thing
    return view


@cache
def _offsets(size: int, direction: int) -> tuple[Cell, ...]:
    """List the offset of each cell of a view, in the order of the view's bytes.

    The bytes go column by column; the agent is in the middle of the last row.
    """
    (dx, dy), (rx, ry) = STEPS[direction], STEPS[(direction + 1) % 4]
    return tuple(
        (dx * (size - 1 - row) + rx * (col - size // 2), dy * (size - 1 - row) + ry * (col - size // 2))
        for col in range(size)
        for row in range(size)
    )


@cache
def _thing(code: bytes) -> Thing | None:
    """Turn MiniGrid's (object, color, state) into a Thing; None for a cell out of sight."""
    kind = IDX_TO_OBJECT[code[0]]
    if kind == "unseen":
        return None
    if kind == "empty":
        return EMPTY
    return Thing(kind, IDX_TO_COLOR[code[1]], _STATES[code[2]] if kind == "door" else "")

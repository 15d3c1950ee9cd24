"""The agent's own view, computed as MiniGrid does and several times faster.

`MiniGridEnv.gen_obs` copies the visible 7 x 7 square into a new Grid, rotates it up to four times and
encodes it cell by cell through checked accessors. The functions here read the same cells once. They see
what `gen_obs` sees and nothing else; a test compares the two on every registered task.
Source: minigrid 3.2.0, `minigrid_env.py` (gen_obs, gen_obs_grid) and `core/grid.py` (process_vis, encode).
"""

from __future__ import annotations

from functools import cache, lru_cache
from types import MethodType
from typing import Any

import numpy as np
from minigrid.core.constants import DIR_TO_VEC, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Wall, WorldObj
from minigrid.minigrid_env import MiniGridEnv

_EMPTY = OBJECT_TO_IDX["empty"]
_OUTSIDE = Wall()  # what the agent sees beyond the edge of the grid
_TILE = 9  # pixels; 7 tiles make 63, the last row and column of the image stay black
RGB_SIZE = 64


def use_fast_view(env: MiniGridEnv) -> None:
    """Replace `env.gen_obs` by the fast form, unless the task's class defines another view.

    Args:
        env: The MiniGrid task; its method is replaced in place.
    """
    kind = type(env)
    if kind.gen_obs is MiniGridEnv.gen_obs and kind.gen_obs_grid is MiniGridEnv.gen_obs_grid:
        env.gen_obs = MethodType(_gen_obs, env)


def _gen_obs(env: MiniGridEnv) -> dict[str, Any]:
    return {"image": agent_view(env), "direction": env.agent_dir, "mission": env.mission}


def agent_view(env: MiniGridEnv) -> np.ndarray:
    """Compute what the agent sees now, equal to `gen_obs()["image"]`.

    Args:
        env: The MiniGrid task; V is its agent_view_size.

    Returns:
        Codes of object, color and state, uint8 (V, V, 3), indexed [column, row].
    """
    size = env.agent_view_size
    width, height, cells = env.grid.width, env.grid.height, env.grid.grid
    x0, y0 = int(env.agent_pos[0]), int(env.agent_pos[1])
    seen: list[WorldObj | None] = []
    for dx, dy in _offsets(size, int(env.agent_dir)):
        x, y = x0 + dx, y0 + dy
        seen.append(cells[y * width + x] if 0 <= x < width and 0 <= y < height else _OUTSIDE)
    if env.see_through_walls:
        visible = _everything(size)
    else:
        visible = _visible(tuple([cell is not None and not cell.see_behind() for cell in seen]), size)
    seen[size * (size - 1) + size // 2] = env.carrying  # the agent's own cell shows what it carries
    code = bytearray(3 * size * size)
    for source, target in visible:
        cell = seen[source]
        if cell is None:
            code[target] = _EMPTY
        else:
            code[target : target + 3] = bytes(cell.encode())
    return np.frombuffer(code, np.uint8).reshape(size, size, 3)


@cache
def _offsets(size: int, direction: int) -> tuple[tuple[int, int], ...]:
    """List the world offset of each view cell from the agent, row by row; the last row holds the agent."""
    dx, dy = (int(v) for v in DIR_TO_VEC[direction])
    rx, ry = -dy, dx
    return tuple(
        (dx * (size - 1 - row) + rx * (col - size // 2), dy * (size - 1 - row) + ry * (col - size // 2))
        for row in range(size)
        for col in range(size)
    )


@cache
def _everything(size: int) -> tuple[tuple[int, int], ...]:
    return _pairs([True] * (size * size), size)


@lru_cache(maxsize=1 << 16)
def _visible(opaque: tuple[bool, ...], size: int) -> tuple[tuple[int, int], ...]:
    """Apply `Grid.process_vis` to a row-major pattern of opaque cells; give pairs as `_pairs` does."""
    mask = [False] * (size * size)
    mask[size * (size - 1) + size // 2] = True
    for row in range(size - 1, -1, -1):
        here = row * size
        for step, columns in ((1, range(size - 1)), (-1, range(size - 1, 0, -1))):
            for col in columns:
                if not mask[here + col] or opaque[here + col]:
                    continue
                mask[here + col + step] = True
                if row > 0:
                    mask[here - size + col + step] = True
                    mask[here - size + col] = True
    return _pairs(mask, size)


def _pairs(mask: list[bool], size: int) -> tuple[tuple[int, int], ...]:
    """(row-major index, byte offset in the image) of the seen cells; images are indexed [column, row]."""
    return tuple((i, 3 * ((i % size) * size + i // size)) for i, seen in enumerate(mask) if seen)


def render(image: np.ndarray) -> np.ndarray:
    """Draw a view.

    The picture is `RGBImgPartialObsWrapper(env, tile_size=9)`'s 63 x 63 with one black row and column added.

    Args:
        image: Codes of object, color and state, uint8 (7, 7, 3).

    Returns:
        Pixels, uint8 (64, 64, 3).
    """
    size = image.shape[0]
    picture = np.zeros((RGB_SIZE, RGB_SIZE, 3), np.uint8)
    codes = image.tobytes()
    for col in range(size):
        for row in range(size):
            start = 3 * (col * size + row)
            agent = row == size - 1 and col == size // 2
            tile = _tile(codes[start : start + 3], agent)
            picture[row * _TILE : (row + 1) * _TILE, col * _TILE : (col + 1) * _TILE] = tile
    return picture


@cache
def _tile(code: bytes, agent: bool) -> np.ndarray:
    """Pixels of one cell: uint8 (9, 9, 3). Seen cells are highlighted, as MiniGrid draws them."""
    obj = WorldObj.decode(*code)
    seen = code[0] != OBJECT_TO_IDX["unseen"]
    return Grid.render_tile(obj, agent_dir=3 if agent else None, highlight=seen, tile_size=_TILE)

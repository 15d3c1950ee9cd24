"""Between which two numbers the return of an episode lies, where the world says so."""

from __future__ import annotations

import math
from typing import Any

from lore.base.errors import BadInput


def declared_range(world: Any) -> tuple[float, float] | None:
    """Look up the return range of a world: bounds of an episode's undiscounted reward, shaping apart.

    MiniGrid's and BabyAI's own worlds pay once an episode, so the range of their rewards is that of their
    returns. Any other world says it as `return_range`, an attribute of its class or of itself.

    Args:
        world: The world, without wrappers.

    Returns:
        Lowest and highest return; None where the world does not declare them.

    Raises:
        BadInput: What it declares is no range; the message names `env.id`.
    """
    own = type(world).__module__.partition(".")[0] != "minigrid"
    declared = getattr(world, "return_range" if own else "reward_range", None)
    if declared is None:
        return None
    try:
        low, high = (float(bound) for bound in declared)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise BadInput(
            "env.id",
            f"{type(world).__name__}.return_range is {declared!r}; it must be two numbers, low < high",
        )
    return low, high

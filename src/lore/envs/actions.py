"""Which actions each task needs: the static mask behind `env.actions=useful`; and which can do something now.

An arm of its own in experiments: leaving out `drop` and `done` alone triples a random policy's success on
DoorKey. A task in which the key must be put down before the target can be picked up keeps `drop`. Tasks
that are not listed are refused, not guessed; a test solves one of each kind with the listed actions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from minigrid.core.actions import Actions

from lore.base.errors import BadInput
from lore.base.types import EMPTY, PORTABLE, UNSEEN, GridState

_WALK = (Actions.left, Actions.right, Actions.forward)
_OPEN = (*_WALK, Actions.toggle)
_UNLOCK = (*_WALK, Actions.pickup, Actions.toggle)
_CARRY = (*_WALK, Actions.pickup, Actions.drop, Actions.toggle)

_KINDS: dict[tuple[Actions, ...], str] = {
    _WALK: """
        MiniGrid-Empty-5x5-v0 MiniGrid-Empty-Random-5x5-v0 MiniGrid-Empty-6x6-v0 MiniGrid-Empty-Random-6x6-v0
        MiniGrid-Empty-8x8-v0 MiniGrid-Empty-16x16-v0 MiniGrid-FourRooms-v0
        MiniGrid-LavaGapS5-v0 MiniGrid-LavaGapS6-v0 MiniGrid-LavaGapS7-v0
        MiniGrid-LavaCrossingS9N1-v0 MiniGrid-LavaCrossingS9N2-v0 MiniGrid-LavaCrossingS9N3-v0
        MiniGrid-LavaCrossingS11N5-v0 MiniGrid-SimpleCrossingS9N1-v0 MiniGrid-SimpleCrossingS9N2-v0
        MiniGrid-SimpleCrossingS9N3-v0 MiniGrid-SimpleCrossingS11N5-v0""",
    _OPEN: """
        MiniGrid-MultiRoom-N2-S4-v0 MiniGrid-MultiRoom-N4-S5-v0 MiniGrid-MultiRoom-N4-S5-v1
        MiniGrid-MultiRoom-N6-v0""",
    _UNLOCK: """
        MiniGrid-DoorKey-5x5-v0 MiniGrid-DoorKey-6x6-v0 MiniGrid-DoorKey-8x8-v0 MiniGrid-DoorKey-16x16-v0
        MiniGrid-Unlock-v0""",
    _CARRY: """
        MiniGrid-UnlockPickup-v0 MiniGrid-BlockedUnlockPickup-v0
        MiniGrid-KeyCorridorS3R1-v0 MiniGrid-KeyCorridorS3R2-v0 MiniGrid-KeyCorridorS3R3-v0
        MiniGrid-KeyCorridorS4R3-v0 MiniGrid-KeyCorridorS5R3-v0 MiniGrid-KeyCorridorS6R3-v0
        MiniGrid-ObstructedMaze-1Dl-v0 MiniGrid-ObstructedMaze-1Dlh-v0 MiniGrid-ObstructedMaze-1Dlhb-v0
        BabyAI-UnlockPickup-v0 BabyAI-UnlockPickupDist-v0 BabyAI-BlockedUnlockPickup-v0
        BabyAI-KeyCorridor-v0 BabyAI-KeyCorridorS3R1-v0 BabyAI-KeyCorridorS3R2-v0 BabyAI-KeyCorridorS3R3-v0
        BabyAI-KeyCorridorS4R3-v0 BabyAI-KeyCorridorS5R3-v0 BabyAI-KeyCorridorS6R3-v0""",
}
USEFUL: dict[str, tuple[int, ...]] = {
    env_id: tuple(sorted(int(action) for action in actions))
    for actions, ids in _KINDS.items()
    for env_id in ids.split()
}


def action_table(env_id: str, choice: str, available: int) -> tuple[int, ...]:
    """Say which of MiniGrid's actions the agent may choose from.

    Args:
        env_id: The task, as `env.id` names it.
        choice: all or useful.
        available: Size of the task's own action space.

    Returns:
        MiniGrid's action numbers, in order.

    Raises:
        BadInput: Names `env.actions` where the choice is not known, or no table is for this task.
    """
    if choice == "all":
        return tuple(range(available))
    if choice != "useful":
        raise BadInput("env.actions", f"{choice!r} is not known; all or useful")
    name = env_id.rpartition(":")[2]  # without the package of PACKAGE:ID
    if name not in USEFUL:
        close = get_close_matches(name, USEFUL, n=3)
        hint = f" (known for {', '.join(close)})" if close else ""
        raise BadInput("env.actions", f"no table of useful actions for {env_id}{hint}; use env.actions=all")
    return USEFUL[name]


def valid_actions(state: GridState, names: Sequence[str]) -> list[bool]:
    """Say which of the actions can change something, as far as the agent knows.

    A cell that it has not seen may be anything, so walking into it may change something. Turning always
    does; `done` never does.

    Args:
        state: What the agent knows.
        names: Names of the actions.

    Returns:
        One truth value for each name.
    """
    thing, hand = state.thing_at(state.ahead), state.carrying
    unseen = thing == UNSEEN
    may = {
        "left": True,
        "right": True,
        "forward": thing.enterable or unseen,
        "pickup": hand is None and (thing.kind in PORTABLE or unseen),
        "drop": hand is not None and (thing == EMPTY or unseen),
        "toggle": thing.kind == "box" or unseen or thing.opens_with(hand) or thing.state == "open",
    }
    return [may.get(name, False) for name in names]

"""Checkpoints of older versions, brought to today's keys. The one place that knows how they were."""

from __future__ import annotations

from typing import Any

FLAT = ("updates", "report_due", "curve", "greedy", "advised", "window", "layouts", "wall_s")
"""Keys of `Progress` that once stood in the state itself."""


def upgrade(state: dict[str, Any]) -> dict[str, Any]:
    """Give the state of a checkpoint today's keys.

    Versions before the trials had none in advised runs, so advice always acted. Version 0.1.0 kept counts,
    random streams and the carry beside the parts, called the adviser of an episode `arm`, and had a None for
    every part that a run was without. Weights need no map: the optimiser stores them in one row, without
    names.

    Args:
        state: A checkpoint of any version; it is not changed.

    Returns:
        Name of a part -> its state.
    """
    if "progress" not in state:
        state = _from_0_1_0(dict(state))
    if "adviser" in state and "trial" not in state:
        state = state | {"trial": {}}  # what trial=none has
    return state


def _from_0_1_0(state: dict[str, Any]) -> dict[str, Any]:
    flat = {name: state.pop(name) for name in FLAT}
    episodes, successes = state.pop("episodes")
    todo = list(state.pop("todo", ()))  # the oldest were made between two ticks
    state["progress"] = flat | {"episodes": episodes, "successes": successes, "todo": todo}
    replay = state.pop("replay_rng")
    state["rng"] = {"act": state.pop("act_rng"), "gate_dropout": state.pop("gate_dropout")}
    state["rng"] |= {} if replay is None else {"replay": replay}
    (deter, stoch, action), (latched, value) = state.pop("carry"), state.pop("advice_carry")
    carry = {"deter": deter, "stoch": stoch, "prev_action": action, "latched": latched, "value": value}
    envs = dict(state["envs"])
    envs["advisers"] = envs.pop("arms")
    state |= {"collector": carry, "envs": envs, "advice_meter": state.pop("guidance")}
    return {name: part for name, part in state.items() if part is not None}

"""Advisers to compare with: none, an even one, the right one for other states, the worst and the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lore.base.types import GridState
from lore.llm.plans.executor import find_first_moves
from lore.llm.plans.language import parse
from lore.llm.prompt import policy_key
from lore.llm.providers.scripted import (
    IDLE,
    draw,
    no_advice,
    reply,
    reply_weights,
    right_plan,
)
from lore.llm.request import Provider, Reply, Request


@dataclass
class Control:
    """A provider that is one rule, free and at once."""

    name: str
    rule: Callable[[Request], Reply]
    model: str = "control"
    paid: bool = False
    privileged: bool = False

    def identity(self) -> str:
        """See Provider."""
        return self.name

    def max_cost_usd(self, request: Request) -> float:
        """See Provider: nothing."""
        return 0.0

    def ask(self, request: Request) -> Reply:
        """See Provider."""
        return self.rule(request)


def none(options: object) -> Provider:
    """Make the adviser that says nothing: neither plan nor policy.

    Args:
        options: Not used.
    """
    return Control("none", lambda _: no_advice())


def uniform(options: object) -> Provider:
    """Make the adviser that gives every action the same weight.

    Args:
        options: Not used.
    """
    return Control("uniform", lambda request: reply_weights({}, request.actions))


def adversarial(options: object) -> Provider:
    """Make the adviser that gives the worst plan for any task: drop what is in hand, shut doors, turn.

    Args:
        options: Not used.
    """
    undo = "drop; if reachable(open door) { toggle(open door) }"
    return Control("adversarial", lambda _: reply(f"{undo}; {IDLE}"))


def oracle(options: object) -> Provider:
    """Make the privileged adviser: the best actions of a player who sees the whole grid, with equal weights.

    Args:
        options: Not used.
    """
    return Control("oracle", _best, privileged=True)


def _best(request: Request) -> Reply:
    if request.privileged is None:
        raise RuntimeError("the oracle is asked without request.privileged")
    best = request.privileged()
    return reply_weights(dict.fromkeys(best, 1.0), request.actions, 1.0) if best else no_advice()


def shuffled(options: object) -> Provider:
    """Make the adviser that gives right answers to wrong states.

    It answers as if the agent stood in another place of its map.
    The answer is the right plan's first actions from the other place, as weights. It is not the plan itself,
    because a plan is mostly right wherever the agent stands. The other place follows from the present
    situation alone. So a resumed run gets the same answers, and answers can be stored.

    Args:
        options: Not used.
    """
    return Control("shuffled", _advise_from_elsewhere)


def _advise_from_elsewhere(request: Request) -> Reply:
    state = move_elsewhere(request.state)
    return reply_weights(find_first_moves(parse(right_plan(state)), state, request.actions), request.actions)


def move_elsewhere(state: GridState) -> GridState:
    """Return the same map with the agent in another pose. The same situation always leads to the same pose.

    Args:
        state: What the agent knows.

    Returns:
        The state in which the agent stands on one of the empty cells that it knows, and faces any way.
    """
    empty = sorted(cell for cell, thing in state.cells.items() if thing.kind == "empty")
    poses = [(cell, direction) for cell in empty or [state.position] for direction in range(4)]
    position, direction = poses[draw(policy_key(state)) % len(poses)]
    return replace(state, position=position, direction=direction)

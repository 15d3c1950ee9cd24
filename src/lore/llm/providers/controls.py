"""Advisers to compare with: none, an even one, the right one for other states, the worst and the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lore.base.types import GridState
from lore.llm.prompt import policy_key
from lore.llm.providers.scripted import (
    IDLE,
    draw,
    first_moves,
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
    """Says nothing: neither plan nor policy."""
    return Control("none", lambda _: no_advice())


def uniform(options: object) -> Provider:
    """Every action has the same weight."""
    return Control("uniform", lambda request: reply_weights({}, request.actions))


def adversarial(options: object) -> Provider:
    """The worst that a plan can do in any task: let go of what is in hand, shut doors, turn on the spot."""
    undo = "drop; if reachable(open door) { toggle(open door) }"
    return Control("adversarial", lambda _: reply(f"{undo}; {IDLE}"))


def oracle(options: object) -> Provider:
    """The best actions of a player who sees the whole grid, alike. Privileged."""
    return Control("oracle", _best, privileged=True)


def _best(request: Request) -> Reply:
    if request.privileged is None:
        raise RuntimeError("the oracle is asked without request.privileged")
    best = request.privileged()
    return reply_weights(dict.fromkeys(best, 1.0), request.actions, 1.0) if best else no_advice()


def shuffled(options: object) -> Provider:
    """Right answers, wrong states: the first actions of the right plan, were the agent somewhere else.

    Where it is thought to be follows from the present situation alone, not from what was asked before: so a
    resumed run hears the same, and answers can be stored. Weights, not the plan: of a plan most is right
    anywhere, in some tasks all of it.
    """
    return Control("shuffled", _misplaced)


def _misplaced(request: Request) -> Reply:
    state = elsewhere(request.state)
    return reply_weights(first_moves(right_plan(state), state, request.actions), request.actions)


def elsewhere(state: GridState) -> GridState:
    """The same map, but the agent on any of its empty cells, facing anywhere."""
    empty = sorted(cell for cell, thing in state.cells.items() if thing.kind == "empty")
    poses = [(cell, direction) for cell in empty or [state.position] for direction in range(4)]
    position, direction = poses[draw(policy_key(state)) % len(poses)]
    return replace(state, position=position, direction=direction)

"""A written-out stand-in for a language model: a rule on the mission's words and on what was seen.

It writes a plan for the whole mission, as a model would, and is as good as it is told to be. It is not a
language model and is never called one: its name is scripted wherever it shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import blake2b

from lore.base.errors import BadInput
from lore.base.types import PORTABLE, GridState
from lore.config.options import LLMOptions
from lore.llm.plans.executor import find_first_moves
from lore.llm.plans.language import COLORS, parse
from lore.llm.request import Reply, Request

FAILURES = ("independent", "colors", "sides", "explore")
CONFIDENCE = 0.9  # of every answer, right or wrong
IDLE = "repeat 100 { repeat 100 { left } }"  # turn on the spot until the episode is over

_KINDS = ("door", *PORTABLE, "goal")
_COLOR = rf"(?:(?P<color>{'|'.join(COLORS)}) )?"
_THING = re.compile(rf"(?:(?:a|an|the) )?{_COLOR}(?P<kind>key|ball|box|door|object|goal)\b")
_CLAUSE = re.compile(r"(?P<verb>go to|get to|reach|find|open|pick up|go get|fetch|get|put) (?P<rest>.*)")
_NAMED = re.compile(rf"(?P<color>\b(?:{'|'.join(COLORS)}) )?(?P<rest>(?:locked )?\b(?:key|ball|box|door)\b)")


class ScriptedProvider:
    """Right in a share of the situations; the same situation always gets the same plan.

    The option `failure` says what a wrong answer is:

    - independent: the agent stays away from what is next, in each situation in another way.
    - colors: the right plan, of things of another color; right where it names no thing that has a color.
    - sides: the next action of the right plan, left and right confused, as weights.
    - explore: look around, nothing else.
    """

    name = "scripted"
    model = "scripted"
    paid = False
    privileged = False

    def __init__(self, options: LLMOptions) -> None:
        """Take up the options.

        Args:
            options: The options of the group `llm`.

        Raises:
            BadInput: The competence is outside [0, 1], or the failure is unknown.
        """
        if not 0 <= options.competence <= 1:
            raise BadInput("llm.competence", f"{options.competence} is not between 0 and 1")
        if options.failure not in FAILURES:
            raise BadInput("llm.failure", f"{options.failure!r} is not known; one of {', '.join(FAILURES)}")
        self._options = options

    def identity(self) -> str:
        """See Provider."""
        o = self._options
        return f"scripted competence={o.competence} failure={o.failure} seed={o.seed}"

    def max_cost_usd(self, request: Request) -> float:
        """See Provider: nothing."""
        return 0.0

    def ask(self, request: Request) -> Reply:
        """See Provider. Never fails."""
        plan, o = right_plan(request.state), self._options
        if draw(f"{o.seed} {request.plan_key}") < o.competence * 2**64:
            return reply(plan)
        chance = draw(f"wrong {o.seed} {request.plan_key}")
        if o.failure == "colors":
            return reply(_recolored(plan, chance))
        if o.failure == "explore":
            return reply("explore")
        if o.failure == "independent":
            return reply(stay_away(request.state, chance))
        moves = find_first_moves(parse(plan), request.state, request.actions)
        swap = {"left": "right", "right": "left"}
        return reply_weights({swap.get(move, move): share for move, share in moves.items()}, request.actions)


def reply(plan: str, confidence: float = CONFIDENCE) -> Reply:
    """Make the reply that gives a plan, as a model would send it; free and at once.

    Args:
        plan: Text of the plan.
        confidence: In [0, 1].
    """
    return _sent({"why": "", "plan": plan, "policy": None, "confidence": confidence})


def reply_weights(
    weights: Mapping[str, float], actions: tuple[str, ...], confidence: float = CONFIDENCE
) -> Reply:
    """Make the reply that gives weights for the next action.

    Args:
        weights: Action -> weight. An action that is not named gets 0. Empty: all get the same weight.
        actions: Names of the task's actions.
        confidence: In [0, 1].
    """
    policy = {name: weights.get(name, 0.0) if weights else 1.0 for name in actions}
    return _sent({"why": "", "plan": None, "policy": policy, "confidence": confidence})


def no_advice() -> Reply:
    """Make the reply without advice."""
    return _sent({"why": "", "plan": None, "policy": None, "confidence": 0.0})


def right_plan(state: GridState) -> str:
    """Write the plan for all that is left of the mission.

    The rule reads no more of the state than its plan key tells.

    Args:
        state: What the agent knows.

    Returns:
        Text of the plan; `explore` where the mission has no words that the rule knows.
    """
    clauses = _clauses(state.mission)
    boxes = len(clauses) <= 2  # else the plan would be too long
    steps = [step for clause in clauses for step in _steps(clause, state, boxes)]
    return "; ".join(steps) or "explore"


def _clauses(mission: str) -> list[str]:
    """Return the parts of a mission in the order in which they have to be done."""
    last, after, first = mission.lower().partition(" after you ")
    ordered = f"{first} then {last}" if after else last
    return re.split(r",? then | and then | and ", ordered)


def _steps(clause: str, state: GridState, boxes: bool) -> list[str]:
    found = _CLAUSE.search(clause)
    things = [_target(thing, state) for thing in _THING.finditer(found["rest"])] if found else []
    if not found or not things:
        return []
    target, kind = things[0], things[0].split()[-1]
    if found["verb"] == "open":
        return _open(target, state, boxes) if kind == "door" else []
    if found["verb"] in ("go to", "get to", "reach", "find"):
        return [*_reach(target, state, boxes), f"goto({target})"]
    if kind not in PORTABLE:
        return []
    lift = [*_reach(target, state, boxes), f"pickup({target})"]
    return [*lift, f"drop({things[1]})"] if found["verb"] == "put" and len(things) > 1 else lift


def _target(thing: re.Match[str], state: GridState) -> str:
    """Name a thing as a plan does. An object is of the first kind seen in its color, or else a ball."""
    color, kind = thing["color"] or "", thing["kind"]
    if kind == "goal":
        return kind
    if kind == "object":
        kind = next((each for each in PORTABLE if _seen(state, each, color)), "ball")
    return f"{color} {kind}".strip()


def _open(door: str, state: GridState, boxes: bool) -> list[str]:
    color = door.removesuffix("door")
    if _seen(state, "door", color.strip(), "open"):
        return []
    locked = f"{color}locked door"
    unlock = _unlock(locked, f"{color}key", state, boxes)
    if "key" in state.mission or _seen(state, "door", color.strip(), "locked"):
        return [*unlock, f"toggle({locked})"]
    return [
        f"explore until visible({door})",
        f"if locked({door}) {{ {'; '.join(unlock)} }}",
        f"toggle({door})",
    ]


def _reach(target: str, state: GridState, boxes: bool) -> list[str]:
    """Open locked doors until the target is seen; put down what keeps the hand from clearing the way."""
    *color, kind = target.split()
    if kind == "goal":
        return []
    free = f"if not reachable({target}) {{ drop }}"
    if _seen(state, kind, "".join(color)):
        return [free]
    unlock = "; ".join(_unlock("locked door", "key", state, boxes and kind != "box"))
    look = f"explore until visible({target}) or visible(locked door)"
    return [f"until visible({target}) {{ {look}; {unlock}; toggle(locked door) }}", free]


def _unlock(door: str, key: str, state: GridState, boxes: bool) -> list[str]:
    """Get the key in hand and the way to the door free. boxes: whether they may be opened to find the key."""
    clear = f"if visible({door}) and not reachable({door}) {{ drop; goto({door}) }}"
    lift = f"pickup({key})"
    if state.carrying is not None and state.carrying.kind == "key":
        return [clear, lift]
    look = f"explore until visible({door}) or visible({key})"
    if _seen(state, "key", "".join(key.split()[:-1])):
        return [clear, lift] if _seen(state, "door", "", "locked") else [look, clear, lift]
    if not boxes:
        return [look, clear, lift]
    find = f"explore until visible({key}) or visible(box); if not visible({key}) {{ toggle(box) }}"
    return [look, clear, f"until visible({key}) {{ {find} }}", lift]


def _seen(state: GridState, kind: str, color: str = "", how: str = "") -> bool:
    """Say whether the plan key tells of such a thing. color: empty, or one of the mission's."""
    return any(
        thing.kind == kind and color in ("", thing.color) and how in ("", thing.state)
        for thing in state.cells.values()
    )


def stay_away(state: GridState, chance: int) -> str:
    """Write a plan that keeps from the mission: let go, go to a thing that is not its last, and stay there.

    Args:
        state: What the agent knows.
        chance: Any number; chooses among the kinds of things seen.

    Returns:
        Text of the plan.
    """
    last = next((word for word in reversed(state.mission.split()) if word in _KINDS), "")
    things = sorted({thing.kind for thing in state.cells.values()} & set(_KINDS) - {last, "goal"})
    steps = ["drop"] if state.carrying is not None else []
    if things:
        thing = things[chance % len(things)]
        steps.append(f"if reachable({thing}) {{ goto({thing}) }}")
    return "; ".join([*steps, IDLE])


def _recolored(plan: str, chance: int) -> str:
    """Replace every color by another, the same by the same; a thing without a color gets one."""

    def other(thing: re.Match[str]) -> str:
        color = COLORS.index(thing["color"].strip()) + 1 if thing["color"] else chance
        return f"{COLORS[color % len(COLORS)]} {thing['rest']}"

    return _NAMED.sub(other, plan)


def draw(text: str) -> int:
    """Return a number in [0, 2**64) that follows from a text, the same in every process.

    Args:
        text: Any text.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _sent(fields: Mapping[str, object]) -> Reply:
    return Reply(json.dumps(fields), 0, 0, 0, 0.0, 0.0, "end_turn")

"""What the adviser is told: the agent's own knowledge in words, and the keys under which answers are kept.

Everything here is a function of a GridState alone, and the same in every process.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from hashlib import blake2b

from lore.base.types import STEPS, Cell, GridState, Thing, next_cell
from lore.llm.plans.language import COLORS
from lore.llm.request import Wording

PROMPT_VERSION = "1"  # raise it with any change of the words below: stored answers are filed under it
NEAREST = 8  # of several alike, those that are listed; the rest are counted

_THINGS = frozenset(("door", "key", "ball", "box", "goal", "lava"))
_PLAIN = frozenset(("goal", "lava", "wall", "floor"))  # their color and state tell nothing
_SIDES = ("ahead", "right", "behind", "left")  # by turns to the right

_SYSTEM = """\
You advise an agent in a grid world of rooms and doors. It sees only a few cells before it. You are told its
mission, what it carries and all it has seen so far, placed as it stands and faces now ("2 ahead, 1 left").

World
- It carries at most one key, ball or box. Lying about, they block the way, as walls and shut doors do.
- toggle opens a closed door. A locked one opens only with a key of its color in hand.
- toggle destroys a box and leaves what was in it.
- Standing on a goal is success, on lava death.

Answer with one JSON object and nothing else:
{{"why": "at most 15 words", "plan": "pickup(key); toggle(locked door)", "policy": null, "confidence": 0.9}}
- plan: all that is still to be done, in the language below. It is kept for every situation like this one, so
  name a color only if the mission or the hand does.
- policy: null. Only if no plan can say it: plan null, and weights for the very next action,
  {{{policy}}}
- confidence: from 0 to 1, how likely the advice is right.

Plan: steps joined by ";"
- goto(T): walk up to T and face it, or onto a goal
- pickup(T): go there, put down what is in hand, pick T up
- toggle(T): go there and toggle T
- drop: put down what is in hand where it is in no way; drop(T): right beside T
- explore until TEST: look at unseen places
- forward, left, right, wait: one action each
These steps search for a T not seen yet, open closed doors and clear the way, but never fetch a key.
T is [color] [open|closed|locked] kind; kind is door, key, ball, box, goal, lava, wall or floor. The nearest
one is meant; of keys, one that fits a locked door seen.
- if TEST {{ ... }} else {{ ... }}; while TEST {{ ... }}; until TEST {{ ... }}; repeat 2 {{ ... }}
TEST is visible(T) (seen so far), reachable(T), carrying(T), at(T), open(T), locked(T); also not, and, or.

Examples
{examples}"""

EXAMPLES = {
    "use the key to open the door and then get to the goal": "pickup(key); toggle(locked door); goto(goal)",
    "pick up the blue ball (a box and a locked door seen, no key)": "toggle(box); pickup(key); "
    "toggle(locked door); pickup(blue ball)",
    "pick up the red box (key in hand, door open)": "pickup(red box)",
    "put the grey key next to the green box": "pickup(grey key); drop(green box)",
    "open the red door after you go to a ball": "goto(ball); toggle(red door)",
}
"""Situation -> a good plan for it."""


@lru_cache(maxsize=16)
def write_system(actions: tuple[str, ...]) -> str:
    """Write the instructions: one text for all states of a run, so that a provider can keep it in its cache.

    Args:
        actions: Names, in the order of an answer's weights.
    """
    policy = ", ".join(f'"{name}": 0' for name in actions)
    examples = "\n".join(f"{situation}: {plan}" for situation, plan in EXAMPLES.items())
    return _SYSTEM.format(policy=policy, examples=examples)


def describe(state: GridState) -> str:
    """Put a state into words: mission, hand, what is around, seen now and before, and what is unexplored.

    Args:
        state: What the agent knows.
    """
    now: dict[str, list[Cell]] = defaultdict(list)
    before: dict[str, list[Cell]] = defaultdict(list)
    for cell, thing in state.cells.items():
        if thing.kind in _THINGS:
            (now if cell in state.visible else before)[_name(thing)].append(relative(state, cell))
    return "\n".join(
        [
            f"Mission: {state.mission}",
            f"Carrying: {_hand(state)}",
            "Around: " + ", ".join(f"{side} {_name(thing)}" for side, thing in _around(state)),
            *_listed("In view", now),
            *_listed("Seen before", before),
            f"Unexplored: {_unexplored(state)}",
            f"Steps left: {_left(state)}",
        ]
    )


def plan_key(state: GridState) -> str:
    """Name a kind of situation: mission, hand, kinds and states of what was seen.

    Colors are in it only where the mission or the hand has them too.

    Args:
        state: What the agent knows.
    """
    return f"{state.mission}|{_hand(state)}|{','.join(sorted({label for label, _ in _labels(state)}))}"


def policy_key(state: GridState) -> str:
    """Name one situation: `plan_key`, and a digest of where its things and the walls beside the agent are.

    Args:
        state: What the agent knows.
    """
    marks = {"unseen": "?", "wall": "#"}
    beside = "".join(marks.get(thing.kind, ".") for _, thing in _around(state))
    places = sorted((label, *relative(state, cell)) for label, cell in _labels(state))
    return f"{plan_key(state)}|{blake2b(repr((beside, places)).encode(), digest_size=8).hexdigest()}"


def _labels(state: GridState) -> list[tuple[str, Cell]]:
    known = _colors(state.mission) | ({state.carrying.color} if state.carrying else set())
    return [
        (_name(thing if thing.color in known else thing._replace(color="")), cell)
        for cell, thing in state.cells.items()
        if thing.kind in _THINGS
    ]


@lru_cache(maxsize=1024)
def _colors(mission: str) -> frozenset[str]:
    return frozenset(COLORS) & frozenset(mission.replace(",", " ").split())


@lru_cache(maxsize=1024)
def _name(thing: Thing) -> str:
    """As a plan names it: yellow locked door."""
    if thing.kind in _PLAIN:
        return thing.kind
    return " ".join(word for word in (thing.color, thing.state, thing.kind) if word)


def _hand(state: GridState) -> str:
    return _name(state.carrying) if state.carrying else "nothing"


def relative(state: GridState, cell: Cell) -> Cell:
    """Return where a cell is as the agent stands and faces.

    Args:
        state: What the agent knows.
        cell: x and y in the agent's map.

    Returns:
        Cells ahead and cells to the right; behind and left are negative.
    """
    dx, dy = cell[0] - state.position[0], cell[1] - state.position[1]
    fx, fy = STEPS[state.direction]
    return dx * fx + dy * fy, dy * fx - dx * fy


def _around(state: GridState) -> list[tuple[str, Thing]]:
    beside = (state.thing_at(next_cell(state.position, state.direction + turn)) for turn in range(4))
    return list(zip(_SIDES, beside, strict=True))


def _listed(title: str, things: dict[str, list[Cell]]) -> list[str]:
    if not things:
        return [f"{title}: nothing"]
    lines = [f"{title}:"]
    for name, cells in sorted(things.items()):
        nearest = sorted(cells, key=_distance)
        more = f"; {len(cells) - NEAREST} more" if len(cells) > NEAREST else ""
        lines.append(f"- {name}: " + "; ".join(map(_place, nearest[:NEAREST])) + more)
    return lines


def _distance(relative: Cell) -> tuple[int, int, int]:
    ahead, right = relative
    return abs(ahead) + abs(right), -ahead, right


def _place(relative: Cell) -> str:
    ahead, right = relative
    words = [f"{abs(ahead)} {'ahead' if ahead > 0 else 'behind'}"] if ahead else []
    words += [f"{abs(right)} {'right' if right > 0 else 'left'}"] if right else []
    return ", ".join(words) or "here"


def _unexplored(state: GridState) -> str:
    """Say where a cell to stand on, or else a shut door, has a neighbor that was never seen."""
    cells, edges, doors = state.cells, [], False
    for cell, thing in cells.items():
        if not (thing.walkable or thing.shut):
            continue
        x, y = cell
        if (x + 1, y) in cells and (x - 1, y) in cells and (x, y + 1) in cells and (x, y - 1) in cells:
            continue
        if thing.shut:
            doors = True
        else:
            edges.append(relative(state, cell))
    if edges:
        return f"nearest edge {_place(min(edges, key=_distance))}"
    return "only behind doors" if doors else "nothing"


def _left(state: GridState) -> str:
    left = state.max_steps - state.step
    return "plenty" if 2 * left > state.max_steps else "some" if 5 * left > state.max_steps else "few"


GRID_WORDING = Wording(write_system, describe, plan_key, policy_key)
"""The words and keys of worlds made of cells, MiniGrid's first of all."""
WORDINGS = {"1": GRID_WORDING}
"""Version -> words and keys. Recorded answers are found by those of their own version: whoever raises
PROMPT_VERSION adds a row here, and keeps what the rows before it call as it was."""

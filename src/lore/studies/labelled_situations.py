"""Situations of a task with what is right in them, to try an adviser on: for lore-probe.

They come from episodes played half at random and half by the oracle, and hold what the agent itself knows
there. Right is what a player who sees the whole grid would do; see `Situation`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lore.base.rng import seed_of
from lore.base.types import Cell, GridState, Thing
from lore.envs.adapter import MiniGridAdapter
from lore.envs.privileged.oracle import optimal_actions
from lore.llm.plans.executor import Executor
from lore.llm.plans.language import Program
from lore.llm.prompt import policy_key, relative

SHORTEST, LONGEST = 0.2, 0.8  # share of random steps in an episode, drawn anew for each
EPISODE = 100  # steps after which the next episode begins
WALK = 150  # steps in which a way must come to the thing that it leads to
PATIENCE = 30  # episodes without a new situation before the task is said to have no more
EXPLORE = "explore"
Choose = Callable[[MiniGridAdapter], str | None]
"""Environment -> the next action, or None to stop."""


NO_ORACLE = (
    "; a situation is labelled by the best action, which the oracle knows only where there is a goal to "
    "stand on (docs/environments.md)"
)


class TooFew(ValueError):
    """The task has fewer situations, told apart by policy key, than were asked for."""


@dataclass(frozen=True)
class Touch:
    """Something that was done with a thing.

    Attributes:
        word: pickup, toggle or goto (which ended the episode well).
        thing: The thing, as it was before.
        cell: Where the thing stood.
    """

    word: str
    thing: Thing
    cell: Cell


@dataclass(frozen=True)
class Situation:
    """One moment of an episode, and what is right in it.

    Attributes:
        seed: Seed of the episode.
        actions: The actions that led here.
        state: What the agent knows here.
        optimal: All first actions of shortest ways to success.
        subgoal: Kind of the thing with which the shortest way next does something (picks it up, opens it,
            ends at it), or explore where the agent has not seen that thing yet.
        plan: All that the way does, in the words of a plan.
        env: Stands in this situation; copy it before a step.
    """

    seed: int
    actions: tuple[str, ...]
    state: GridState
    optimal: frozenset[str]
    subgoal: str
    plan: str
    env: MiniGridAdapter

    @property
    def key(self) -> str:
        """The policy key of the state."""
        return policy_key(self.state)


def collect(
    env: MiniGridAdapter, count: int, seed: int, name: str, avoid: Collection[str] = ()
) -> list[Situation]:
    """Collect situations, one from an episode, no two with the same policy key.

    Args:
        env: The task; it remembers.
        count: How many situations to find.
        seed: With the name it chooses the random stream.
        name: Name of the random stream; other names lead to other episodes.
        avoid: Policy keys that no situation may have.

    Raises:
        TooFew: PATIENCE episodes in a row bring nothing new.
    """
    found: list[Situation] = []
    keys = set(avoid)
    episode = barren = 0
    while len(found) < count:
        new = _play_episode(env, seed_of(seed, f"{name}/{episode}"), keys)
        episode, barren = episode + 1, 0 if new else barren + 1
        if new:
            found.append(new)
            keys.add(new.key)
        elif barren == PATIENCE:
            why = "" if found or avoid else NO_ORACLE
            raise TooFew(f"found {len(found)} different situations, not {count}{why}")
    return found


def watch_touches(env: MiniGridAdapter, choose: Choose) -> Iterator[Touch]:
    """Act, and tell what is done with things on the way; ends with the episode or after WALK steps.

    Args:
        env: The task in the situation to start from; it is used up.
        choose: Chooses the actions.

    Yields:
        Each touch, in order.
    """
    for _ in range(WALK):
        action = choose(env)
        if action is None:
            return
        before = env.state
        _, _, terminated, truncated, info = env.step(env.action_names.index(action))
        after = env.state
        cell = before.ahead
        thing = before.cells.get(cell, Thing("wall"))
        if action == "pickup" and after.carrying is not None and before.carrying is None:
            yield Touch("pickup", thing, cell)
        elif action == "toggle" and after.cells.get(cell) != thing:
            yield Touch("toggle", thing, cell)
        elif terminated and info["raw_reward"] > 0:
            cell = cell if action == "forward" and after.position == cell else after.ahead
            yield Touch("goto", after.cells.get(cell, thing), cell)
        if terminated or truncated:
            return


def find_subgoal(plan: Program, situation: Situation) -> str | None:
    """Find out where a plan leads first, in the sense of `Situation.subgoal`.

    Args:
        plan: The plan.
        situation: Where the plan starts; it stays as it is.

    Returns:
        Kind of a thing, or explore; None where the plan comes to nothing.
    """
    env, executor = copy.deepcopy(situation.env), Executor()
    executor.start(plan, tuple(env.action_names))

    def choose(now: MiniGridAdapter) -> str | None:
        probs = executor.advance(now.state).probs
        return max(sorted(probs), key=probs.__getitem__) if probs else None

    touch = next(watch_touches(env, choose), None)
    return None if touch is None else _subgoal(touch, situation.state)


def score_actions(shares: Mapping[str, float], situation: Situation) -> float:
    """Compute the share of the advised actions, those with most weight, that are optimal.

    Args:
        shares: Name of an action -> its weight.
        situation: What is right.

    Returns:
        A number in [0, 1]; 0 without any advised action.
    """
    best = [name for name, share in shares.items() if share == max(shares.values())]
    return sum(name in situation.optimal for name in best) / len(best) if best else 0.0


def apply_rule(state: GridState) -> tuple[str, str]:
    """Apply the plainest rule that reads the same words as an adviser: a yardstick, not an adviser.

    Args:
        state: What the agent knows.

    Returns:
        Subgoal, in the sense of `Situation.subgoal`, and name of an action.
    """
    hand, doors = state.carrying, _cells_of(state, "door")
    shut = [cell for cell in doors if state.cells[cell].state != "open"]
    targets = _cells_of(state, "goal") or [
        cell
        for kind in ("box", "ball", "key")
        for cell in _cells_of(state, kind)
        if f"{state.cells[cell].color} {kind}" in state.mission
    ]
    keys = _cells_of(state, "key") if hand is None and len(shut) == len(doors) else []
    cells = (shut if hand else []) or keys or targets or (shut if not doors or hand is None else [])
    if not cells:
        return EXPLORE, "forward" if state.thing_at(state.ahead).walkable else "right"
    cell = min(cells, key=lambda c: abs(c[0] - state.position[0]) + abs(c[1] - state.position[1]))
    kind, (ahead, right) = state.cells[cell].kind, relative(state, cell)
    if (ahead, right) == (1, 0) and kind != "goal":
        return kind, "toggle" if kind == "door" else "pickup"
    forward = (
        ahead > 0
        and (kind == "goal" or ahead > 1 or right == 0)
        and (state.thing_at(state.ahead).walkable or kind == "goal")
    )
    return kind, "forward" if forward else "right" if right > 0 else "left"


def _play_episode(env: MiniGridAdapter, stream: int, keys: set[str]) -> Situation | None:
    """Play an episode, and choose one of its new situations, each with the same probability."""
    rng = np.random.default_rng(stream)
    seed, share = int(rng.integers(1 << 31)), rng.uniform(SHORTEST, LONGEST)
    env.reset(seed=seed)
    chosen: tuple[MiniGridAdapter, tuple[str, ...], frozenset[str]] | None = None
    actions: list[str] = []
    met: set[str] = set()
    for _ in range(EPISODE):
        optimal, key = optimal_actions(env), policy_key(env.state)
        if not optimal:
            break
        if key not in keys | met:
            met.add(key)
            if rng.random() < 1 / len(met):
                chosen = copy.deepcopy(env), tuple(actions), optimal
        choices = env.action_names if rng.random() < share else sorted(optimal)
        actions.append(choices[rng.integers(len(choices))])
        _, _, terminated, truncated, _ = env.step(env.action_names.index(actions[-1]))
        if terminated or truncated:
            break
    return _label(seed, *chosen) if chosen else None


def _label(
    seed: int, env: MiniGridAdapter, actions: tuple[str, ...], optimal: frozenset[str]
) -> Situation | None:
    done = list(watch_touches(copy.deepcopy(env), _best))
    if not done:
        return None
    plan = "; ".join(f"{touch.word}({_name(touch.thing, env.state.mission)})" for touch in done)
    return Situation(seed, actions, env.state, optimal, _subgoal(done[0], env.state), plan, env)


def _best(env: MiniGridAdapter) -> str | None:
    return min(optimal_actions(env) or [], default=None)


def _subgoal(touch: Touch, state: GridState) -> str:
    known = state.cells.get(touch.cell)
    return touch.thing.kind if known is not None and known.kind == touch.thing.kind else EXPLORE


def _name(thing: Thing, mission: str) -> str:
    """Name a thing as plans do: with its color where the mission has it, a door with its state."""
    color = thing.color if f"{thing.color} {thing.kind}" in mission else ""
    return " ".join(word for word in (color, thing.state, thing.kind) if word)


def _cells_of(state: GridState, kind: str) -> list[Cell]:
    return [cell for cell, thing in state.cells.items() if thing.kind == kind]

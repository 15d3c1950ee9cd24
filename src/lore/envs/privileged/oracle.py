"""Which actions a player who sees the whole grid would take; only for advisers labelled privileged.

An A* search over poses, the hand, doors and where things lie, with a lower bound of the way as its guide. So
it finds what breadth-first search finds, all first actions of all shortest ways, among far fewer states.
Source of what ends a task: minigrid 3.2.0, `envs/` and `envs/babyai/core/verifier.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from minigrid.core.world_object import Goal
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import (
    AfterInstr,
    BeforeInstr,
    GoToInstr,
    Instr,
    OpenInstr,
    PickupInstr,
    PutNextInstr,
    SeqInstr,
)
from minigrid.envs.unlock import UnlockEnv
from minigrid.minigrid_env import MiniGridEnv

from lore.envs.adapter import MiniGridAdapter
from lore.envs.privileged.board import LOCKED, OPEN, Board, State
from lore.envs.privileged.truth import HAS_OBJ, core

LIMIT = 30_000  # states looked at before the search gives up
FAR = 1 << 30
Cells = tuple[int, ...]


@dataclass(frozen=True)
class Aim:
    """What ends the way. Things are given by their number.

    Attributes:
        word: stand (on one of `cells`), open (a door in `cells`), hold (one of `things`), face
            (one of either), put (one of `things` beside one of `cells` or `others`).
        cells: Cells, as y * width + x.
        things: Things that can be carried.
        others: Things that can be carried, to put one of `things` beside.
    """

    word: str
    cells: frozenset[int] = frozenset()
    things: frozenset[int] = frozenset()
    others: frozenset[int] = frozenset()


def optimal_actions(env: MiniGridAdapter, limit: int = LIMIT) -> frozenset[str] | None:
    """Find all actions with which a shortest way to success begins; of a BabyAI sequence, to its next part.

    Balls that move by themselves are taken to stay. BabyAI's strict debugging levels, which a wrong touch
    fails, are searched as if they were not strict.

    Args:
        env: The task in its present state; only actions of `env.action_names` are used.
        limit: States looked at before the search gives up.

    Returns:
        Names of the actions; None where no way is found among `limit` states, or where the task's aim is none
        of Aim's.
    """
    world = core(env)
    board = Board(world)
    found = [_search(board, aim, env.action_names, limit) for aim in _aims(world, board)]
    ways = [way for way in found if way is not None]
    if not ways:
        return None
    best = min(length for length, _ in ways)
    return frozenset().union(*(first for length, first in ways if length == best))


class Bound:
    """At least how many actions are needed: nothing stands in the way, and one lock at most needs its key."""

    def __init__(self, board: Board, aim: Aim) -> None:
        """Prepare the bound; its tables are made when they are first needed.

        Args:
            board: The grid.
            aim: What ends the way.
        """
        self._board, self._aim = board, aim
        self._tables: dict[tuple, list[int]] = {}
        self._keys = [
            [(thing, 1) for thing in range(len(board.things)) if board.opens(thing, door)]
            + [(box, 2) for box, thing in enumerate(board.inside) if board.opens(thing, door)]
            for door in range(len(board.locks))
        ]

    def __call__(self, state: State) -> int:
        """Give the bound of a state.

        Args:
            state: A state of the board.

        Returns:
            Number of actions; FAR or more where the aim is out of reach.
        """
        pose, hand, doors, where = state
        word = self._aim.word
        if hand in self._aim.things:
            return self._beside(doors, where)[pose] if word == "put" else 0
        if hand in self._aim.others:
            return 1
        drop = int(hand >= 0 and word in ("hold", "put"))
        locked = [door for door, value in enumerate(doors) if value == LOCKED]
        if word == "put" or len(locked) != 1 or any(hand == thing for thing, _ in self._keys[locked[0]]):
            return self._direct(doors, where)[pose] + drop
        return self._fetch(doors, where, locked[0], int(hand >= 0 and not drop))[pose] + drop

    def _beside(self, doors: Cells, where: Cells) -> list[int]:
        """With the thing in hand that is to be put beside another."""
        fixed = self._aim.cells | _at(where, self._aim.others)
        ends = {cell + step: 1 for cell in fixed for step in self._board.steps}
        return self._table(("beside", doors, fixed), lambda: self._facing(ends))

    def _direct(self, doors: Cells, where: Cells) -> list[int]:
        """With keys for all locks."""
        aim = self._aim

        def seeds() -> dict[int, int]:
            ends = self._ends(doors, where, -1)
            if aim.word == "put":
                beside = self._beside(doors, where)
                ends = {pose: cost + beside[pose] for pose, cost in ends.items()}
            return ends

        return self._table(("direct", doors, _at(where, aim.things), _at(where, aim.others)), seeds)

    def _fetch(self, doors: Cells, where: Cells, locked: int, drop: int) -> list[int]:
        """Without the key for the one lock: either it is not needed, or it comes first."""
        keys = self._keys[locked]
        late = int(self._aim.word == "hold")  # then the key has to be put down again

        def seeds() -> dict[int, int]:
            direct = self._direct(doors, where)
            fetched = self._facing({where[thing]: cost + drop for thing, cost in keys if where[thing] >= 0})
            ends = {pose: cost + direct[pose] + late for pose, cost in fetched.items()}
            for pose, cost in self._ends(doors, where, locked).items():
                ends[pose] = min(cost, ends.get(pose, FAR))
            return ends

        name = ("fetch", doors, _at(where, self._aim.things), tuple(where[thing] for thing, _ in keys), drop)
        return self._table(name, seeds, locked)

    def _ends(self, doors: Cells, where: Cells, locked: int) -> dict[int, int]:
        """Poses of the last action -> its cost. locked: number of a door that cannot be opened, or -1."""
        aim, numbers = self._aim, self._board.doors
        ends = dict.fromkeys(_at(where, aim.things), 1)
        if aim.word == "open":
            ends = {cell: 1 + (doors[numbers[cell]] == OPEN) for cell in aim.cells if numbers[cell] != locked}
        elif aim.word != "put":
            ends |= dict.fromkeys(aim.cells, 1)
        return self._facing(dict.fromkeys(ends, 0) if aim.word == "face" else ends)

    def _facing(self, ends: dict[int, int]) -> dict[int, int]:
        """Cells with costs -> the poses that look at them, with the same costs."""
        board = self._board
        return {
            4 * (cell - step) + direction: cost
            for cell, cost in ends.items()
            for direction, step in enumerate(board.steps)
            if 0 <= cell - step < len(board.solid) and not board.solid[cell - step]
        }

    def _table(self, name: tuple, seeds: Callable[[], dict[int, int]], locked: int = -1) -> list[int]:
        """Distance of every pose from the nearest seed, by Dijkstra's algorithm from the seeds back.

        name: of what it depends on, the states of the doors second.
        """
        if name in self._tables:
            return self._tables[name]
        board, doors = self._board, name[1]
        table = [FAR] * (4 * len(board.solid))
        heap = [(cost, pose) for pose, cost in seeds().items()]
        heapq.heapify(heap)
        while heap:
            cost, pose = heapq.heappop(heap)
            if cost >= table[pose]:
                continue
            table[pose] = cost
            cell, direction = divmod(pose, 4)
            heapq.heappush(heap, (cost + 1, 4 * cell + (direction + 1) % 4))
            heapq.heappush(heap, (cost + 1, 4 * cell + (direction + 3) % 4))
            back, door = cell - board.steps[direction], board.doors.get(cell, -1)
            if door != locked or door < 0:
                shut = door >= 0 and doors[door] != OPEN
                if 0 <= back < len(board.solid) and not board.solid[back]:
                    heapq.heappush(heap, (cost + 1 + shut, 4 * back + direction))
        self._tables[name] = table
        return table


def _at(where: Cells, things: frozenset[int]) -> frozenset[int]:
    """Return the cells of some things; things in the hand or in a box have none."""
    return frozenset(where[thing] for thing in things) - {-1}


def _search(board: Board, aim: Aim, actions: Sequence[str], limit: int) -> tuple[int, frozenset[str]] | None:
    """Return the length of the shortest ways, and the actions that they begin with."""
    bound = Bound(board, aim)
    shut = aim.cells if aim.word == "open" else frozenset()
    costs: dict[State, int] = {board.start: 0}
    parents: dict[State, list[tuple[State, str]]] = {board.start: []}
    heap = [(bound(board.start), 0, board.start)]
    last: list[tuple[State, str]] = []
    best, looked = FAR, 0
    while heap and heap[0][0] <= best and heap[0][0] < FAR:
        _, cost, state = heapq.heappop(heap)
        if cost > costs[state]:
            continue
        looked += 1
        if looked > limit:
            return None
        cost += 1
        for action in actions:
            after = board.move(state, action, shut)
            if _reached(board, aim, state, action, after):
                if cost < best:
                    best, last = cost, []
                if cost == best:
                    last.append((state, action))
            elif cost < costs.get(after, FAR):
                costs[after], parents[after] = cost, [(state, action)]
                heapq.heappush(heap, (cost + bound(after), cost, after))
            elif cost == costs[after]:
                parents[after].append((state, action))
    return (best, _first(board.start, parents, last)) if last else None


def _reached(board: Board, aim: Aim, before: State, action: str, after: State) -> bool:
    pose, hand, doors, where = after
    front = board.front(pose)
    if aim.word == "stand":
        return pose // 4 in aim.cells
    if aim.word == "hold":
        return action == "pickup" and before[1] < 0 and hand in aim.things
    if aim.word == "open":
        return action == "toggle" and front in aim.cells and doors[board.doors[front]] == OPEN
    if aim.word == "face":
        return front in aim.cells or any(where[thing] == front for thing in aim.things)
    if action != "drop" or before[1] not in aim.things or hand >= 0:
        return False
    return any(
        front + step in aim.cells or any(where[o] == front + step for o in aim.others) for step in board.steps
    )


def _first(
    start: State, parents: dict[State, list[tuple[State, str]]], last: list[tuple[State, str]]
) -> frozenset[str]:
    """The actions that leave `start` on the ways that end with `last`."""
    first, seen, stack = set(), set(), list(last)
    while stack:
        state, action = stack.pop()
        if state == start:
            first.add(action)
        elif state not in seen:
            seen.add(state)
            stack += parents[state]
    return frozenset(first)


def _aims(world: MiniGridEnv, board: Board) -> list[Aim]:
    if isinstance(world, RoomGridLevel):
        return [_aim(board, part) for part in _parts(vars(world)["instrs"])]
    if isinstance(world, HAS_OBJ):
        return [Aim("hold", things=board.numbers([world.obj]))]
    if isinstance(world, UnlockEnv):
        return [Aim("open", cells=board.cells([world.door]))]
    goals = [thing for _, thing in board.objects if isinstance(thing, Goal)]
    return [Aim("stand", cells=board.cells(goals))] if goals else []


def _parts(instruction: Instr) -> Iterator[Instr]:
    """The clauses that can be fulfilled now."""
    if isinstance(instruction, SeqInstr):
        a = [instruction.instr_a] if instruction.a_done != "success" else []
        b = [instruction.instr_b] if instruction.b_done != "success" else []
        order = {BeforeInstr: a or b, AfterInstr: b or a}.get(type(instruction), a + b)
        for part in order:
            yield from _parts(part)
    else:
        yield instruction


def _aim(board: Board, clause: Instr) -> Aim:
    if isinstance(clause, PutNextInstr):
        fixed = clause.desc_fixed.obj_set
        return Aim("put", board.cells(fixed), board.numbers(clause.desc_move.obj_set), board.numbers(fixed))
    wanted = clause.desc.obj_set
    word = {GoToInstr: "face", OpenInstr: "open", PickupInstr: "hold"}[type(clause)]
    return Aim(word, board.cells(wanted), board.numbers(wanted))

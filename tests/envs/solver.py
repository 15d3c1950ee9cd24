"""A scripted solver with full knowledge, to show that a table of actions suffices for a task."""

from __future__ import annotations

from collections import deque

from minigrid.core.actions import Actions
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.world_object import Ball, Box, Door, Goal, Key
from minigrid.minigrid_env import MiniGridEnv

STEPS = [tuple(int(v) for v in d) for d in DIR_TO_VEC]


class Solver:
    """Drives `step(name of action)`; `used` collects the actions it needed."""

    def __init__(self, world: MiniGridEnv, step) -> None:
        self.world, self._step, self.used, self.over = world, step, set(), False

    def act(self, action: Actions) -> None:
        assert not self.over
        self.used.add(action.name)
        self.over = self._step(action.name)

    def find(self, test):
        grid = self.world.grid
        for i, thing in enumerate(grid.grid):
            if thing is not None and test(thing):
                return i % grid.width, i // grid.width
        return None

    def face(self, target) -> None:
        """Walk next to `target` and look at it, opening closed doors on the way."""
        while not self.over:
            path = self._paths(solid=(target,)).get(target)
            assert path, f"no way to {target}"
            cell = path[0]
            self._turn(cell)
            thing = self.world.grid.get(*cell)
            if cell == target:
                return
            if isinstance(thing, Door) and not thing.is_open:
                self.act(Actions.toggle)
            self.act(Actions.forward)

    def goal(self) -> None:
        self.face(self.find(lambda t: isinstance(t, Goal)))
        self.act(Actions.forward)

    def put_down(self, *keep) -> None:
        """Drop what is carried at the nearest free cell that leaves the cells `keep` within reach."""
        for stand, path in self._paths().items():
            for dx, dy in STEPS:
                spot = (stand[0] + dx, stand[1] + dy)
                if self.world.grid.get(*spot) is not None or spot == self.at or spot in path:
                    continue
                if all(cell in self._paths(stand, spot, keep) for cell in keep):
                    for cell in path:
                        self._turn(cell)
                        self.act(Actions.forward)
                    self._turn(spot)
                    self.act(Actions.drop)
                    return
        raise AssertionError("nowhere to put it down")

    def solve(self) -> None:
        """DoorKey, Unlock, (Blocked)UnlockPickup, KeyCorridor, ObstructedMaze-1D*, and walks to a goal."""
        door = self.find(lambda t: isinstance(t, Door) and t.is_locked)
        if door is None:
            self.goal()
            return
        color = self.world.grid.get(*door).color
        blocker = self._blocker(door)
        if blocker is not None:
            self.face(blocker)
            self.act(Actions.pickup)
            self.put_down(door, self.find(lambda t: isinstance(t.contains if isinstance(t, Box) else t, Key)))
        box = self.find(lambda t: isinstance(t, Box) and isinstance(t.contains, Key))
        if box is not None:
            self.face(box)
            self.act(Actions.toggle)
        self.face(self.find(lambda t: isinstance(t, Key) and t.color == color))
        self.act(Actions.pickup)
        self.face(door)
        self.act(Actions.toggle)
        if self.find(lambda t: isinstance(t, Goal)):
            self.goal()
        elif not self.over:
            target = self.find(lambda t: t is self.world.obj)
            self.put_down(target)
            self.face(target)
            self.act(Actions.pickup)

    def _blocker(self, door):
        for dx, dy in STEPS:
            cell = (door[0] + dx, door[1] + dy)
            thing = self.world.grid.get(*cell)
            if isinstance(thing, Ball) and thing is not self.world.obj:
                return cell
        return None

    def _turn(self, cell) -> None:
        x, y = self.at
        self._turn_to(STEPS.index((cell[0] - x, cell[1] - y)))

    def _turn_to(self, direction: int) -> None:
        while int(self.world.agent_dir) != direction:
            right = (direction - int(self.world.agent_dir)) % 4 <= 2
            self.act(Actions.right if right else Actions.left)

    @property
    def at(self):
        return tuple(int(v) for v in self.world.agent_pos)

    def _paths(self, start=None, blocked=None, solid=()):
        """Cells within reach -> path; `solid` ones may end a path. Without any, only through open doors."""
        start = start or self.at
        paths, queue = {start: []}, deque([start])
        while queue:
            cell = queue.popleft()
            if cell in solid:
                continue
            for dx, dy in STEPS:
                near = (cell[0] + dx, cell[1] + dy)
                if near in paths or near == blocked or not self._inside(near):
                    continue
                thing = self.world.grid.get(*near)
                door = isinstance(thing, Door) and not thing.is_locked and (thing.is_open or bool(solid))
                if thing is None or door or isinstance(thing, Goal) or near in solid:
                    paths[near] = [*paths[cell], near]
                    queue.append(near)
        return paths

    def _inside(self, cell) -> bool:
        return 0 <= cell[0] < self.world.grid.width and 0 <= cell[1] < self.world.grid.height

"""One MiniGrid task in the form the agent reads: a dictionary of small integer arrays, or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from minigrid.core.actions import Actions
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

from lore.base.types import GridState, ObsSpec
from lore.envs import agent_view
from lore.envs.missions import MissionCode
from lore.envs.privileged.truth import core, layout_hash
from lore.envs.remembered_map import MapMemory
from lore.envs.return_range import declared_range
from lore.envs.time_limit import Clock

Obs = dict[str, np.ndarray]
MODES = ("symbolic", "raw147", "rgb64")
CLOCK = {"clock": ObsSpec((1,), dtype="float32")}

_DIRECTIONS = [np.array(d, np.uint8) for d in range(4)]
for _direction in _DIRECTIONS:
    _direction.setflags(write=False)


class MiniGridAdapter(gym.Wrapper):
    """A MiniGrid task with coded observations and a table of actions.

    Observations, by mode (V is the side of the agent's view, 7 unless the task says otherwise):
      symbolic  object (V, V) of 11 classes, color (V, V) of 6, state (V, V) of 3, direction () of 4
      raw147    image (147,) float32: the same codes as plain numbers
      rgb64     image (64, 64, 3) uint8: the view, drawn
    and, but for raw147, mission (L,) token ids where the task's mission varies (`missions.length` L > 0).
    Where asked for, in every mode: clock (1,) float32, the share of the episode's time left, in [0, 1];
    hint (A,) float32, the advised weight of each action, in [0, 1], zeros without advice.
    Arrays are indexed [column, row] as MiniGrid's; the agent stands at [V // 2, V - 1]. The agent's own cell
    shows what it carries.

    Attributes:
        return_range: Lowest and highest return of an episode, shaping apart; None where the world does not
            declare them.
        remember: Whether a map of what was seen this episode is kept, in every mode the same, which `state`
            gives; it may be set before a reset.
    """

    def __init__(
        self,
        env: gym.Env,
        mode: str,
        actions: Sequence[int],
        missions: MissionCode,
        *,
        remember: bool = False,
        clock: bool = False,
        hint: bool = False,
    ) -> None:
        """Wrap a task.

        Args:
            env: The MiniGrid task, wrapped or not.
            mode: symbolic, raw147 or rgb64.
            actions: MiniGrid's numbers of the actions that the agent may choose from, in order.
            missions: How the task's missions are encoded.
            remember: See the class.
            clock: Whether the time left is observed.
            hint: Whether there is room for advice; zeros here, an adviser's word is put in where one acts.

        Raises:
            TypeError: There is no MiniGrid task below.
            ValueError: The mode is not known, or does not fit the view.
        """
        super().__init__(env)
        self._world = core(env)
        self.return_range = declared_range(self._world)
        size = self._world.agent_view_size
        self._hint = {"hint": np.zeros(len(actions), np.float32)} if hint else {}
        self.obs_spec = obs_spec(mode, size, missions) | (CLOCK if clock else {})
        self.obs_spec |= {key: ObsSpec(value.shape, dtype="float32") for key, value in self._hint.items()}
        self.action_names = [Actions(a).name for a in actions]
        self.action_space = gym.spaces.Discrete(len(actions))
        self.observation_space = gym.spaces.Dict({key: _space(spec) for key, spec in self.obs_spec.items()})
        self._mode, self._actions, self._missions = mode, tuple(int(a) for a in actions), missions
        self._clock, self._shows_clock = Clock(env), clock
        self._mission, self._tokens = "", np.zeros(missions.length, np.uint8)
        self.remember, self._memory = remember, MapMemory(self._world.max_steps)
        self._state: GridState | None = None

    @property
    def time_limit(self) -> int:
        """Most steps that the running episode can have."""
        return self._clock.limit

    @property
    def state(self) -> GridState:
        """What the agent knows now.

        Raises:
            RuntimeError: Nothing is remembered, or there was no reset yet.
        """
        if self._state is None:
            raise RuntimeError("there is a state only with remember=True, from the first reset on")
        return self._state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Seed of the episode; None goes on with the random stream of the task.
            options: Passed on to the task, as Gymnasium defines.

        Returns:
            The first observation, key of `obs_spec` -> array, and the task's info with "layout", the hash of
            the initial grid.
        """
        raw, info = self.env.reset(seed=seed, options=options)
        now = self._world.gen_obs()  # what a task begins with in hand is still on the floor in `raw`
        if self.remember:
            self._memory = MapMemory(self._world.max_steps)  # BabyAI levels set their limit at each reset
            self._state = self._memory.reset(now["image"], int(now["direction"]), now["mission"])
        if self._mode == "rgb64":
            raw = {**raw, "image": now["image"]}
        return self._observe(raw), {**info, "layout": layout_hash(self.env)}

    def step(self, action: int) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Args:
            action: Number of the action in `action_names`.

        Returns:
            Observation, reward, terminated, truncated, and info with "raw_reward", the reward without
            shaping.

        Raises:
            IndexError: There is no action of this number.
        """
        if action < 0:
            raise IndexError(f"action {action} is not in [0, {len(self._actions)})")
        raw, reward, terminated, truncated, info = self.env.step(self._actions[action])
        info.setdefault("raw_reward", float(reward))
        if self.remember:
            name = self.action_names[action]
            self._state = self._memory.step(name, raw["image"], int(raw["direction"]))
        return self._observe(raw), float(reward), terminated, truncated, info

    def _observe(self, raw: dict[str, Any]) -> Obs:
        obs = self._view(raw) | self._hint
        if self._shows_clock:
            obs["clock"] = np.array([self._clock.left()], np.float32)
        return obs

    def _view(self, raw: dict[str, Any]) -> Obs:
        """What is seen and read, without clock and hint."""
        image = raw["image"]
        if self._mode == "raw147":
            return {"image": image.reshape(-1).astype(np.float32)}
        if self._mode == "symbolic":
            obs = {
                "object": image[..., 0],
                "color": image[..., 1],
                "state": image[..., 2],
                "direction": _DIRECTIONS[raw["direction"]],
            }
        else:
            obs = {"image": agent_view.render(image)}
        if self._missions.length:
            if raw["mission"] != self._mission:
                self._tokens = self._missions.encode(raw["mission"])
                self._mission = raw["mission"]
            obs["mission"] = self._tokens
        return obs


def obs_spec(mode: str, size: int, missions: MissionCode) -> dict[str, ObsSpec]:
    """Say what each key of an observation holds; see MiniGridAdapter.

    Args:
        mode: One of MODES.
        size: Side of the agent's view, in cells.
        missions: How the task's missions are encoded.

    Raises:
        ValueError: The mode is not known, or does not fit the view.
    """
    if mode == "raw147":
        if size != 7:
            raise ValueError(
                f"obs=raw147 needs a 7 x 7 view, this task has {size} x {size}; use obs=symbolic"
            )
        return {"image": ObsSpec((147,), dtype="float32")}
    if mode == "symbolic":
        spec = {
            "object": ObsSpec((size, size), classes=len(OBJECT_TO_IDX)),
            "color": ObsSpec((size, size), classes=len(COLOR_TO_IDX)),
            "state": ObsSpec((size, size), classes=len(STATE_TO_IDX)),
            "direction": ObsSpec((), classes=4),
        }
    elif mode == "rgb64":
        if size != 7:
            raise ValueError(f"obs=rgb64 needs a 7 x 7 view, this task has {size} x {size}; use obs=symbolic")
        spec = {"image": ObsSpec((agent_view.RGB_SIZE, agent_view.RGB_SIZE, 3))}
    else:
        raise ValueError(f"obs={mode!r} is not known; one of {', '.join(MODES)}")
    if missions.length:
        spec["mission"] = ObsSpec((missions.length,), classes=missions.classes)
    return spec


def _space(spec: ObsSpec) -> gym.spaces.Box:
    if spec.dtype == "float32":
        return gym.spaces.Box(-np.inf, np.inf, spec.shape, np.float32)
    return gym.spaces.Box(0, spec.classes - 1 if spec.classes else 255, spec.shape, np.uint8)

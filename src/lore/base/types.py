"""Data that passes between the rooms: names, shapes and types, and what a thing or a map can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

FLAGS = ("is_first", "is_last", "is_terminal")


@dataclass(frozen=True)
class ObsSpec:
    """One entry of an observation.

    shape: without batch dimensions. classes > 0: integers in [0, classes), which the agent one-hot
    encodes and predicts as categories. classes == 0: an image when dtype is "uint8" and the shape is
    (H, W, C), otherwise a float32 vector, which the agent squashes by symlog.
    """

    shape: tuple[int, ...]
    classes: int = 0
    dtype: str = "uint8"

    @property
    def is_image(self) -> bool:
        """Whether the entry is an image: (H, W, C) of uint8 that are no categories."""
        return self.classes == 0 and self.dtype == "uint8" and len(self.shape) == 3


@dataclass(frozen=True)
class Episode:
    """One finished training or evaluation episode (a row of episodes.jsonl).

    env_step: transitions made by all environments when it ended. length: transitions of the episode.
    return_: undiscounted raw reward. success: return_ > 0. layout: hash of the initial grid.
    adviser: who advised it ("none" without advice). handed_over: the step from which advice acted in an
    episode that began without it, None where that did not happen.
    """

    env_step: int
    env: int
    episode: int
    seed: int
    layout: str
    return_: float
    length: int
    success: bool
    shaped_return: float
    adviser: str = "none"
    handed_over: int | None = None


@dataclass
class Latent:
    """State of the RSSM. deter: (..., D) in the compute dtype. stoch: (..., S) integer class indices."""

    deter: Tensor
    stoch: Tensor


@dataclass
class Carry:
    """What acting remembers between steps. prev_action: (N,). With advice also latched: (N,) bool, the gate's
    latch, and value: (N,) float32, the critic's of the step before."""

    latent: Latent
    prev_action: Tensor
    latched: Tensor | None = None
    value: Tensor | None = None


@dataclass
class Belief:
    """What the agent makes of a step. logits: (N, A), the actor's, float32. feat: (N, F)."""

    logits: Tensor
    feat: Tensor


@dataclass
class Batch:
    """Sequences from replay: B sequences of T steps, and the step before each as context.

    obs: key -> (B, T, *shape). action: (B, T), taken at each row. prev_action: (B, T), taken one row
    earlier. reward: (B, T). is_first, is_last, is_terminal, success: (B, T) bool. context: latents (B, ...)
    of the row before the first. won: (B, T) bool, whether the row's episode has ended, with a success.
    index: (B, T) rows in the replay, for fresh latents. prior (B, T, A), mask (B, T, A), confidence, source,
    beta and temperature (B, T): the advice each row was acted under, zeros without.
    """

    obs: dict[str, Tensor]
    action: Tensor
    prev_action: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    success: Tensor
    won: Tensor
    context: Latent
    index: Tensor
    prior: Tensor
    mask: Tensor
    confidence: Tensor
    source: Tensor
    beta: Tensor
    temperature: Tensor


Cell = tuple[int, int]
"""(x, y): x grows to the east, y to the south."""
STEPS: tuple[Cell, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""What one step adds to a cell, by direction: east, south, west, north."""
PORTABLE = ("key", "ball", "box")
"""Kinds of things that can be picked up."""


def next_cell(cell: Cell, direction: int) -> Cell:
    """Return the cell that one step in a direction leads to.

    Args:
        cell: Where the step starts.
        direction: 0 east, 1 south, 2 west, 3 north; taken modulo 4.
    """
    dx, dy = STEPS[direction % 4]
    return cell[0] + dx, cell[1] + dy


class Thing(NamedTuple):
    """What stands in a cell, in MiniGrid's words. state: open, closed or locked for a door, else empty text.

    kind: empty, wall, floor, door, key, ball, box, goal, lava, or unseen for a cell that was never seen. An
    empty cell has no color.
    """

    kind: str
    color: str = ""
    state: str = ""

    @property
    def enterable(self) -> bool:
        """Whether an agent can step onto the thing. An agent that steps onto lava dies."""
        return self.walkable or self.kind == "lava"

    @property
    def walkable(self) -> bool:
        """Whether an agent can stand on the thing and live."""
        return self.kind in ("empty", "floor", "goal") or (self.kind == "door" and self.state == "open")

    @property
    def shut(self) -> bool:
        """Whether the thing is a door that is closed or locked."""
        return self.kind == "door" and self.state in ("closed", "locked")

    def opens_with(self, hand: Thing | None) -> bool:
        """Say whether the thing is a shut door that `toggle` opens.

        Args:
            hand: What the agent carries, None for nothing; a locked door needs a key of the door's color.
        """
        fits = hand is not None and hand.kind == "key" and hand.color == self.color
        return self.shut and (self.state == "closed" or fits)


EMPTY, UNSEEN = Thing("empty"), Thing("unseen")


@dataclass(frozen=True)
class GridState:
    """What an agent knows of its world from its own views and actions in this episode, and nothing else.

    position: of the agent; an episode starts at (0, 0). direction: 0 east, 1 south, 2 west, 3 north.
    cells: every cell seen so far, as last seen; a cell that is not in it was never seen. visible: the cells
    in view now, the agent's own included. carrying: the thing in hand. step, max_steps: of the episode.
    """

    mission: str
    carrying: Thing | None
    position: Cell
    direction: int
    cells: Mapping[Cell, Thing]
    visible: frozenset[Cell]
    step: int
    max_steps: int

    @property
    def ahead(self) -> Cell:
        """The cell that the agent faces."""
        return next_cell(self.position, self.direction)

    def thing_at(self, cell: Cell) -> Thing:
        """Return what stands in a cell, as last seen; UNSEEN where the cell was never seen.

        Args:
            cell: (x, y), relative to where the episode started.
        """
        return self.cells.get(cell, UNSEEN)


@dataclass
class Prior:
    """Advice for one step of N environments.

    logits: (N, A) float32, log of the advised distribution, constant where there is none. mask: (N, A) bool,
    the actions that the adviser allows; those of today allow all. confidence: (N,) float32 in [0, 1]. source:
    (N,) uint8, an index of SOURCES; 0 is none.
    """

    logits: Tensor
    mask: Tensor
    confidence: Tensor
    source: Tensor


SOURCES = ("none", "plan", "answer", "prior_net")
"""Where a step's advice came from: a running plan, a stored policy answer, the distilled network."""

TRIAL_PHASES = ("on trial", "benefit shown", "graduated", "outgrown", "harmful")
"""Phases of trial=paired; the metric trial/phase is an index of them."""

"""Families of worlds: all that a run has to know of a kind of environment, behind one interface.

MiniGrid is the first. Another one is an EnvFamily under a name: a row of FAMILIES, or an entry point of the
group `lore.env_families`; `env.family=NAME` chooses it. docs/environments.md shows a whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lore.base.errors import BadInput
from lore.base.plugins import load
from lore.config.options import EnvOptions
from lore.envs import SkillMeter
from lore.envs.actions import valid_actions
from lore.envs.make import MakeEnv, make_env
from lore.envs.privileged.oracle import optimal_actions
from lore.llm.prompt import GRID_WORDING
from lore.llm.request import Wording

GROUP = "lore.env_families"
FAMILIES = {"minigrid": "lore.training.families:MINIGRID"}
"""Name -> its EnvFamily, written as an entry point."""


class StepMeter(Protocol):
    """What an outside observer measures of training steps; `SkillMeter` is one."""

    def before(self, first: Sequence[bool]) -> None:
        """Look at the environments just before a step.

        Args:
            first: For each environment, whether an episode begins there.
        """

    def after(self, acted: Sequence[bool], ended: Sequence[bool]) -> None:
        """Look at the environments just after the step.

        Args:
            acted: For each environment, whether the step was an action; False where it was a reset.
            ended: For each environment, whether its episode ended with the step.
        """

    def result(self) -> dict[str, float]:
        """Give a row's metrics, name -> number."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` gave.
        """


def _watch_nothing(envs: Sequence[Any]) -> StepMeter:
    """Return a meter that sees no environment, and so has nothing to say."""
    return SkillMeter([])


@dataclass(frozen=True)
class EnvFamily:
    """One kind of worlds. Only `make` is needed; each other part adds what it says.

    Attributes:
        make: Returns one environment; raises BadInput by the key that is wrong.
        wording: Lets advisers be asked; the states it gets are GridStates, or a subclass with more in it for
            worlds that are no grids.
        valid_actions: (state, action names) -> which can change something; lets exploration draw from these.
        optimal_actions: Environment -> names of the best actions now, or None; lets privileged advisers see
            them.
        watch: The training environments -> a meter, whose numbers go into metrics.jsonl.
        hinted: Whether what `make` returns heeds `env.hint` (an observation `hint` of zeros, (A,) float32).
        timed: Whether what `make` returns heeds `env.timeout` (terminated, not just truncated, by the time
            limit) and `env.clock` (an observation `clock`); without it both are refused.
    """

    make: MakeEnv
    wording: Wording | None = None
    valid_actions: Callable[[Any, Sequence[str]], list[bool]] | None = None
    optimal_actions: Callable[[Any], Collection[str] | None] | None = None
    watch: Callable[[Sequence[Any]], StepMeter] = _watch_nothing
    timed: bool = False
    hinted: bool = False


MINIGRID = EnvFamily(
    make_env, GRID_WORDING, valid_actions, optimal_actions, SkillMeter, timed=True, hinted=True
)


def find_family(options: EnvOptions) -> EnvFamily:
    """Return the family that `env.family` names.

    Args:
        options: The task.

    Raises:
        BadInput: The name is unknown, claimed twice, or does not lead to an EnvFamily.
    """
    family = load(GROUP, FAMILIES, options.family, "env.family", "family")
    if not isinstance(family, EnvFamily):
        raise BadInput("env.family", f"{options.family!r} is a {type(family).__name__}, not an EnvFamily")
    return family


def refuse_what_is_missing(options: EnvOptions, advised: bool, valid_noise: bool) -> EnvFamily:
    """Return the family, if it has what a run needs of it.

    Args:
        options: The task.
        advised: Whether the run has an adviser.
        valid_noise: Whether exploration is to draw from actions that can change something.

    Raises:
        BadInput: A part is missing, by the key that asks for it.
    """
    family = find_family(options)
    if advised and family.wording is None:
        raise BadInput("llm", f"env.family={options.family} has no words for an adviser; use llm=none")
    if valid_noise and family.valid_actions is None:
        raise BadInput(
            "explore.valid_noise",
            f"env.family={options.family} does not tell valid actions; use false",
        )
    if options.timeout != "truncate" and not family.timed:
        raise BadInput("env.timeout", f"env.family={options.family} knows no other than truncate")
    if options.clock and not family.timed:
        raise BadInput("env.clock", f"env.family={options.family} has no clock; use false")
    if options.hint and not family.hinted:
        raise BadInput("env.hint", f"env.family={options.family} has no room for a hint; use false")
    return family

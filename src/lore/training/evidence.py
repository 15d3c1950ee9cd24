"""Whether advice helps, harms, or has ceased to succeed: decided during a run, at a known rate of errors.

Testing by betting: a gambler bets on every episode that advice helps (or harms). Where it does not, the
expected wealth never grows, whatever the learner does in between. So by Ville's inequality the wealth reaches
1 / alpha with probability at most alpha in the whole run (Waudby-Smith and Ramdas, arXiv 2010.09686).
docs/trial.md has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lore.training.tally import Mean

BETS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Shares of the largest stake that cannot ruin; the wealth is spread over them evenly."""


def effect(return_: float, advised: bool, share: float, centre: float) -> float:
    """Estimate, without bias, what advice adds to the return of the agent of this episode.

    Args:
        return_: Return of the episode, in [0, 1].
        advised: Whether the episode was advised.
        share: Probability with which it was to be advised, in (0, 1).
        centre: Any number in [0, 1] that was fixed before the episode. The variance is smallest near the mean
            return.

    Returns:
        A number whose mean, over the draw and the episode, is the advised minus the unadvised mean return.
    """
    return (return_ - centre) * (1.0 / share if advised else -1.0 / (1.0 - share))


@dataclass
class Wealth:
    """Wealth of a gambler who spreads one unit over BETS.

    Attributes:
        sign: +1 bets that advice helps, -1 that it harms.
        eps: Difference of mean returns that counts as none.
        logs: Logarithm of the wealth made of each of BETS, 0 at the start.
    """

    sign: int
    eps: float
    logs: list[float] = field(default_factory=lambda: [0.0] * len(BETS))

    @property
    def value(self) -> float:
        """The wealth, 1 at the start: an e-value. It is finite, at most e^700."""
        top = max(self.logs)
        return math.exp(min(top, 700.0)) * sum(math.exp(x - top) for x in self.logs) / len(BETS)

    def bet(self, return_: float, advised: bool, share: float, centre: float) -> None:
        """Settle the bet on one episode; the arguments are those of `effect`."""
        low, high = centre / share, (1 - centre) / (1 - share)  # least effect, negated: benefit
        if self.sign < 0:
            low, high = (1 - centre) / share, centre / (1 - share)
        gain = self.sign * effect(return_, advised, share, centre) - self.eps
        stake = gain / (max(low, high) + self.eps)  # at least -1
        self.logs = [x + math.log1p(b * stake) for x, b in zip(self.logs, BETS, strict=True)]


@dataclass
class Decline:
    """Detects that advised episodes no longer succeed as they did (Shin et al., arXiv 2203.03532).

    While their mean return is at least `level`, it takes at least A of them until the value reaches A, in the
    mean: the Shiryaev-Roberts procedure, with an e-value for each possible beginning of the decline.

    Attributes:
        level: Mean return below which advice has declined, in [0, 1).
        sums: The detector's value for each of BETS, 0 at the start.
    """

    level: float
    sums: list[float] = field(default_factory=lambda: [0.0] * len(BETS))

    @property
    def value(self) -> float:
        """What is compared with the threshold A: the mean over BETS."""
        return sum(self.sums) / len(BETS)

    def add(self, return_: float) -> None:
        """Take the return of one advised episode, in [0, 1]."""
        stake = (self.level - return_) / (1 - self.level)  # at least -1
        self.sums = [(m + 1) * (1 + b * stake) for m, b in zip(self.sums, BETS, strict=True)]


@dataclass
class Case:
    """The evidence of one trial.

    Attributes:
        benefit: Wealth of the bets that advice helps.
        harm: Wealth of the bets that it harms; begun anew after a verdict of benefit.
        on: Outcomes of advised episodes.
        off: Outcomes of the others.
        lengths: Lengths of advised successes.
        steps: Environment steps since the trial began.
        advised_steps: Those in which advice might act.
        decline: Whether advised episodes still succeed; after a verdict of benefit.
    """

    benefit: Wealth
    harm: Wealth
    on: Mean = field(default_factory=Mean)
    off: Mean = field(default_factory=Mean)
    lengths: Mean = field(default_factory=Mean)
    steps: int = 0
    advised_steps: int = 0
    decline: Decline | None = None

    @classmethod
    def begun(cls, eps: float) -> Case:
        """Begin: no evidence."""
        return cls(Wealth(1, eps), Wealth(-1, eps))

    @classmethod
    def loaded(cls, state: dict[str, Any]) -> Case:
        """Make the case whose `dataclasses.asdict` is given."""
        means = {name: Mean(**state[name]) for name in ("on", "off", "lengths")}
        decline = None if state["decline"] is None else Decline(**state["decline"])
        wealths = {name: Wealth(**state[name]) for name in ("benefit", "harm")}
        return cls(**{**state, **means, **wealths, "decline": decline})

    @property
    def centre(self) -> float:
        """Centre of the next episode's `effect`."""
        return (self.on.value + self.off.value) / 2

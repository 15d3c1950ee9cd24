"""trial=paired: advice is trusted after a verdict that it helps, and barred after one that it harms.

Every episode is advised with a known probability. Bets on what advice adds (`evidence`) decide the phase, and
the phase decides the probability and the trust. docs/trial.md has the table, and what is guaranteed.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from typing import Any

from lore.base.types import TRIAL_PHASES
from lore.config.options import TrialOptions
from lore.training.evidence import Case, Decline, Wealth
from lore.training.tally import WINDOW, Tally, set_stream, stream_state

ON_TRIAL, SHOWN, GRADUATED, OUTGROWN, HARMFUL = PHASES = TRIAL_PHASES
GRADUATED_SHARE = 0.05  # of the episodes that are advised after graduation
FALL = 0.2  # of unaided success after graduation that ends it
HALF_LIFE = 1000  # environment steps in which trust is halved after graduation
DECLINE = 400.0  # mean number of advised episodes to a false alarm of `Decline`


@dataclass
class Entry:
    """An episode, as the trial sees it; what is above `acts` is fixed at its beginning.

    Attributes:
        number: Its place in the order of beginnings, over all environments.
        trial: Number of the trial.
        phase: Phase in which it began.
        share: Probability of being advised.
        advised: Whether it is, from its beginning.
        centre: Centre of its `effect`.
        horizon: Steps within which success counts.
        acts: Whether advice may act in its next step.
        steps: Steps so far.
        handed: Steps that it had when it was handed over to the adviser.
        mixed: Whether a step was taken otherwise than drawn: then its success is neither's.
        outcome: What counts of its return, in [0, 1], once that is decided.
    """

    number: int
    trial: int
    phase: str
    share: float
    advised: bool
    centre: float
    horizon: float
    acts: bool
    steps: int = 0
    handed: int | None = None
    mixed: bool = False
    outcome: float | None = None


class Paired:
    """The phases of a run's trials."""

    def __init__(
        self,
        options: TrialOptions,
        num_envs: int,
        rng: random.Random,
        return_range: tuple[float, float],
    ):
        """Begin the first trial.

        Args:
            options: `share`, `alpha`, `eps`, `cap` and `horizon`.
            num_envs: Environments side by side.
            rng: Stream of the draws; its state is part of this one's.
            return_range: Least and greatest raw return of an episode, finite.
        """
        self.options, self.rng, self.return_range = options, rng, return_range
        self.tally = Tally()
        self.phase = ON_TRIAL
        self.trial = 1
        self.case = Case.begun(options.eps)
        self.count = 0  # episodes that have begun
        self.running: list[Entry | None] = [None] * num_envs
        self.queue: list[Entry] = []  # drawn, and not yet bet on; in the order of their beginnings
        self.handovers = 0
        self.verdicts: list[list[Any]] = []  # [environment step, verdict]
        self.graduation: list[Any] = [0, 0.0]  # environment step and unaided success of the latest
        self.events: list[str] = []  # to be told when the next episode ends

    @property
    def trust(self) -> float:
        """How far advice is trusted in learning now: 1 once benefit is shown, fading after graduation."""
        if self.phase == GRADUATED:
            return 0.5 ** ((self.tally.steps - self.graduation[0]) / HALF_LIFE)
        return float(self.phase == SHOWN)

    @property
    def unaided_success(self) -> float:
        """As counted."""
        return self.tally.unaided_success

    @property
    def share(self) -> float:
        """Probability that an episode which begins now is advised."""
        if self.phase == ON_TRIAL:
            return self.options.share if self._within_cap() else 0.0
        return {SHOWN: self.options.share, GRADUATED: GRADUATED_SHARE}.get(self.phase, 0.0)

    @property
    def horizon(self) -> float:
        """Steps within which success counts in an episode that begins now; after a verdict, all of them."""
        if self.options.horizon is None or not self.case.lengths.count or self.phase != ON_TRIAL:
            return math.inf
        return math.ceil(self.options.horizon * self.case.lengths.value)

    def begin(self, env: int) -> bool:
        """Draw whether an episode is advised, and fix all that its bet depends on."""
        if self.running[env] is not None:
            raise ValueError(f"the episode of environment {env} has not ended")  # its bet would wait for ever
        share = self.share
        advised = self.rng.random() < share
        entry = Entry(
            number=self.count,
            trial=self.trial,
            phase=self.phase,
            share=share,
            advised=advised,
            centre=self.case.centre,
            horizon=self.horizon,
            acts=advised,
        )
        self.count += 1
        self.running[env] = entry
        if share > 0:
            self.queue.append(entry)
        return advised

    def acts(self, env: int) -> bool:
        """As drawn, at first; `step` alone changes it."""
        return self._entry(env).acts

    def step(self, env: int) -> None:
        """Decide what has not succeeded in time, count the step, and say who acts in the next one."""
        entry = self._entry(env)
        if entry.outcome is None and entry.steps >= entry.horizon:
            self._decide(entry, 0.0)  # it went on, so it did not succeed within the horizon
        entry.steps += 1
        self.tally.step(entry.acts)
        self.case.steps += 1
        self.case.advised_steps += entry.acts
        entry.mixed |= entry.acts != entry.advised
        self.handovers += entry.handed == entry.steps - 1
        if self.phase in (OUTGROWN, HARMFUL):
            entry.acts = False
        elif self.phase == entry.phase == ON_TRIAL and self.trial == entry.trial:
            self._relieve(entry)

    def end(self, env: int, return_: float, success: bool) -> list[str]:
        """Decide what counts of the return, settle the bets, and change the phase where they say so."""
        entry = self._entry(env)
        if math.isnan(return_):
            raise ValueError("the return of an episode is not a number")
        self.running[env] = None
        if entry.outcome is None:
            low, high = self.return_range
            counts = success or self.options.horizon is None or entry.phase != ON_TRIAL
            if entry.advised and success and entry.trial == self.trial:
                self.case.lengths.add(entry.steps)
            self._decide(entry, min(max((return_ - low) / (high - low), 0.0), 1.0) if counts else 0.0)
        overtaken = entry.phase == ON_TRIAL != self.phase  # by a verdict, after which success counts anew
        self.tally.end(entry.advised, None if overtaken else success and not entry.mixed)
        self._graduate()
        told, self.events = self.events, []
        return told

    def handed_over(self, env: int) -> int | None:
        """Say from which step of the running episode advice acts, where it began without it."""
        return self._entry(env).handed

    def metrics(self) -> dict[str, float]:
        """Give phase, trust, evidence and counts; the horizon once there is one."""
        row: dict[str, float] = {
            "trial/phase": PHASES.index(self.phase),
            "trial/trust": self.trust,
            "trial/benefit_e": self.case.benefit.value,
            "trial/harm_e": self.case.harm.value,
            "trial/verdicts": len(self.verdicts),
            "trial/handovers": self.handovers,
            **self.tally.metrics(),
        }
        return row | ({"trial/horizon": self.horizon} if math.isfinite(self.horizon) else {})

    def summary(self) -> dict[str, Any]:
        """Give phase, trust, evidence and verdicts."""
        return {
            "phase": self.phase,
            "trust": self.trust,
            "benefit_e": self.case.benefit.value,
            "harm_e": self.case.harm.value,
            "advised_share": self.tally.advised_share,
            "verdicts": [list(row) for row in self.verdicts],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return plain values; an episode that both runs and awaits its bet stands there once."""
        entries = {entry.number: entry for entry in [*self.queue, *self.running] if entry is not None}
        return {
            "rng": stream_state(self.rng),
            "tally": asdict(self.tally),
            "phase": self.phase,
            "trial": self.trial,
            "case": asdict(self.case),
            "count": self.count,
            "entries": [asdict(entry) for entry in entries.values()],
            "running": [None if entry is None else entry.number for entry in self.running],
            "queue": [entry.number for entry in self.queue],
            "handovers": self.handovers,
            "verdicts": [list(row) for row in self.verdicts],
            "graduation": list(self.graduation),
            "events": list(self.events),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        set_stream(self.rng, state["rng"])
        self.tally = Tally(**state["tally"])
        self.phase, self.trial, self.case = state["phase"], state["trial"], Case.loaded(state["case"])
        self.count, self.handovers = state["count"], state["handovers"]
        entries = {row["number"]: Entry(**row) for row in state["entries"]}
        self.running = [None if number is None else entries[number] for number in state["running"]]
        self.queue = [entries[number] for number in state["queue"]]
        self.verdicts = [list(row) for row in state["verdicts"]]
        self.graduation, self.events = list(state["graduation"]), list(state["events"])

    def _entry(self, env: int) -> Entry:
        entry = self.running[env]
        if entry is None:
            raise ValueError(f"no episode has begun in environment {env}")
        return entry

    def _within_cap(self) -> bool:
        return self.case.advised_steps <= self.options.cap * self.case.steps

    def _relieve(self, entry: Entry) -> None:
        """On trial: advice acts for at most a horizon in an episode, and takes over what no longer counts.

        An unaided episode is handed over while the cap leaves room. Where the cap itself had kept advice out
        (share 0) it stays out: the room is worth more to draws.
        """
        if entry.acts:
            entry.acts = entry.steps - (entry.handed or 0) < entry.horizon
            return
        open_ = not entry.advised and entry.handed is None and entry.share > 0
        if open_ and entry.steps >= entry.horizon and self._within_cap():
            entry.acts, entry.handed = True, entry.steps

    def _decide(self, entry: Entry, outcome: float) -> None:
        """Fix what counts of an episode, and settle the bets that waited for it."""
        entry.outcome = outcome
        if entry.trial == self.trial:
            (self.case.on if entry.advised else self.case.off).add(outcome)
        while self.queue and self.queue[0].outcome is not None:
            self._settle(self.queue.pop(0))

    def _settle(self, entry: Entry) -> None:
        """Bet on an episode; all that began before it are settled. Those of a graduate have no bet."""
        assert entry.outcome is not None
        case, bet = self.case, (entry.outcome, entry.advised, entry.share, entry.centre)
        bound = self.trial * (self.trial + 1) / self.options.alpha
        if entry.phase == ON_TRIAL:
            case.benefit.bet(*bet)
            case.harm.bet(*bet)
            if case.benefit.value >= bound:
                self._show_benefit()
            elif case.harm.value >= bound:
                self._enter(HARMFUL, "advice harms: it is barred from now on")
        elif entry.phase == SHOWN:
            assert case.decline is not None
            case.harm.bet(*bet)
            if entry.advised:
                case.decline.add(entry.outcome)
            if case.decline.value >= DECLINE:
                self.trial, self.case = self.trial + 1, Case.begun(self.options.eps)
                told = "advised episodes no longer succeed as they did: advice is on trial again"
                self._enter(ON_TRIAL, told)
            elif case.harm.value >= bound:
                self._enter(OUTGROWN, "the agent alone has outgrown the adviser: it is barred from now on")

    def _show_benefit(self) -> None:
        case = self.case
        episodes = f"{case.on.count + case.off.count} episodes ({case.on.count} advised)"
        case.harm, case.decline = Wealth(-1, self.options.eps), Decline(case.on.value / 2)
        self._enter(SHOWN, f"benefit shown after {episodes}: advice is trusted in learning from now on")

    def _graduate(self) -> None:
        """Leave the adviser once the agent alone succeeds as often; call it back once it no longer does.

        As often as with advice lately, and as before the verdict: an adviser that turned is no measure.
        """
        advised, unaided = self.tally.advised, self.tally.unaided
        if self.phase == SHOWN and len(advised) == len(unaided) == WINDOW:
            assert self.case.decline is not None
            wanted = max(sum(advised) / WINDOW, 2 * self.case.decline.level) - self.options.eps
            if sum(unaided) / WINDOW >= wanted - 1e-9:
                self.graduation = [self.tally.steps, sum(unaided) / WINDOW]
                told = "the agent alone succeeds as often as with advice: advice fades out"
                self._enter(GRADUATED, told, anew=False)
        elif self.phase == GRADUATED and self.graduation[1] - sum(unaided) / WINDOW >= FALL - 1e-9:
            told = "the agent alone succeeds less often than at graduation: advice is back"
            self._enter(SHOWN, told, anew=False)

    def _enter(self, phase: str, told: str, anew: bool = True) -> None:
        """Change the phase; success is counted anew where the next change depends on it.

        anew: Other bets are made from now on, so none on what has begun before.
        """
        self.phase = phase
        if anew:
            self.queue = []
        self.verdicts.append([self.tally.steps, phase])
        self.events.append(f"trial, step {self.tally.steps}: {told}")
        if phase == SHOWN:
            self.tally.advised, self.tally.unaided = [], []

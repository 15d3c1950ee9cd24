"""What advice did: how far the gate was open, how far the policy moved, how often that changed the choice."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lore.base.types import SOURCES
from lore.gate.mix import divergence
from lore.gate.temperature import pinned

if TYPE_CHECKING:
    from lore.gate import Gate
    from lore.training.acting import Decision

NONE = SOURCES[0]
PROVIDED = ("plan", "answer")
CLEAR = 0.05  # difference of two probabilities from which one action is preferred to the other


def clear_changes(logits: Tensor, mixed: Tensor) -> Tensor:
    """Find where advice changed the likeliest action, and not just which of two ties comes first.

    A policy that is nearly uniform has no likeliest action to speak of: the least push flips it. A change
    counts where the policy was decided (it preferred its likeliest action to the new one by CLEAR) or where
    the advised policy is.

    Args:
        logits: Logits of the policy, (N, A).
        mixed: Logits of the advised policy, (N, A).

    Returns:
        (N,) bool.
    """
    own, new = logits.argmax(-1, keepdim=True), mixed.argmax(-1, keepdim=True)  # (N, 1)
    if torch.equal(own, new):
        return torch.zeros(len(own), dtype=torch.bool, device=own.device)
    before, after = logits.softmax(-1), mixed.softmax(-1)  # (N, A)
    was_decided = before.gather(-1, own) - before.gather(-1, new) >= CLEAR
    is_decided = after.gather(-1, new) - after.gather(-1, own) >= CLEAR
    return ((own != new) & (was_decided | is_decided)).squeeze(-1)


class AdviceMeter:
    """Measures what advice did.

    Of the training steps since the last row it gives means, the metrics uncertainty_gate/. Of all steps since
    the run began it gives the influence, among the metrics llm/: the mean KL(pi_mix || pi_wm) over steps with
    advice, the share of steps with advice, the share at which advice changed the likeliest action, and the
    steps by source. A step at which advice may not act counts as one without advice.

    Attributes:
        vetoes: Steps at which the critics' veto kept advice from acting.
        taught: Steps that a provider's advice covered, even where it might not act: PriorNet's lessons.
        changes: Steps at which advice clearly changed the likeliest action (see `clear_changes`); None where
            a part of the run was not counted, because an older version made it.
    """

    def __init__(self, gate: Gate):
        """Start with nothing counted.

        Args:
            gate: The gate of the run.
        """
        self.gate = gate
        self.steps = self.flips = self.taught = self.vetoes = 0
        self.changes: int | None = 0
        self.kl_sum = 0.0
        self.sources: Counter[str] = Counter()
        self._window: dict[str, list[float]] = {}

    def add(self, decision: Decision, over: Sequence[bool]) -> None:
        """Take in one step.

        Args:
            decision: For N environments, of a policy with advice.
            over: (N), where an episode has ended: such a row does not count.
        """
        assert decision.opening is not None and decision.prior is not None
        live = [i for i, ended in enumerate(over) if not ended]
        self.steps += len(live)
        heard, acts = decision.prior.source.tolist(), decision.acts
        self.taught += sum(SOURCES[heard[i]] in PROVIDED for i in live)
        source = [s if acts is None or acts[i] else 0 for i, s in enumerate(heard)]
        self.sources.update(SOURCES[source[i]] for i in live)
        if not self.gate.follows:
            self._put("beta", decision.opening.beta.tolist(), live)
            for name, values in decision.opening.terms.items():
                self._put(name, values.tolist(), live)
        self._put("latch_share", decision.opening.latched.tolist(), live)
        mixed = decision.mixed
        if mixed is None:
            return
        advised = [i for i in live if source[i]]
        if decision.vetoed is not None:
            against = decision.vetoed.tolist()
            self.vetoes += sum(against[i] for i in advised)
        kl = divergence(mixed.logits, decision.belief.logits).tolist()
        flips = (mixed.logits.argmax(-1) != decision.belief.logits.argmax(-1)).tolist()
        self.kl_sum += sum(kl[i] for i in advised)
        self.flips += sum(flips[i] for i in advised)
        if self.changes is not None:
            clear = clear_changes(decision.belief.logits, mixed.logits).tolist()
            self.changes += sum(clear[i] for i in advised)
        self._put("kl", kl, advised)
        if self.gate.options.temperature == "match":
            self._put("temperature_pinned_share", pinned(mixed.temperature).tolist(), advised)

    def result(self) -> dict[str, float]:
        """Give a row's metrics, name -> number; the means start afresh."""
        window, self._window = self._window, {}
        row = {}
        for name, values in window.items():
            if name not in ("beta", "kl"):
                row[f"uncertainty_gate/{name}"] = statistics.fmean(values)
        betas, kl = window.get("beta"), window.get("kl")
        if betas:
            mean = statistics.fmean(betas)
            row["uncertainty_gate/avg_beta"] = mean
            row["uncertainty_gate/beta_std"] = statistics.pstdev(betas)
            largest = self.gate.beta_max
            if math.isfinite(largest):
                row["uncertainty_gate/beta_saturation"] = mean / largest if largest else 0.0
        if kl:
            row["uncertainty_gate/avg_kl"] = statistics.fmean(kl)
            above = sum(value > self.gate.delta_target for value in kl)
            row["uncertainty_gate/kl_above_target_share"] = above / len(kl)
        row["uncertainty_gate/lambda_kl"] = float(self.gate.kl.multiplier)
        return row | self.influence()

    def influence(self) -> dict[str, float]:
        """Give the influence since the run began, metric -> number."""
        steps = max(1, self.steps)
        advised = self.steps - self.sources[NONE]
        shares = {f"llm/source/{name}": self.sources[name] / steps for name in SOURCES}
        if self.gate.options.veto:
            shares["llm/vetoed_share"] = self.vetoes / steps
        return {
            "llm/influence_kl": self.kl_sum / advised if advised else math.nan,
            "llm/prior_share": advised / steps,
            "llm/argmax_flip_share": self.flips / steps,
            **shares,
        }

    def totals(self) -> dict[str, float]:
        """Give the influence, and the share of steps at which advice clearly changed the likeliest action."""
        if self.changes is None:
            return self.influence()
        return self.influence() | {"llm/clear_change_share": self.changes / max(1, self.steps)}

    def state_dict(self) -> dict[str, Any]:
        window = {name: list(values) for name, values in self._window.items()}
        counts = [self.steps, self.flips, self.kl_sum]
        return {
            "counts": counts,
            "taught": self.taught,
            "vetoes": self.vetoes,
            "changes": self.changes,
            "sources": dict(self.sources),
            "window": window,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` gave; one of an older version lacks `changes`, `taught` and `vetoes`.
        """
        self.steps, self.flips, self.kl_sum = state["counts"]
        self.changes = state.get("changes")
        self.taught, self.vetoes = state.get("taught", 0), state.get("vetoes", 0)
        self.sources = Counter(state["sources"])
        self._window = {name: list(values) for name, values in state["window"].items()}

    def _put(self, name: str, values: Sequence[float], rows: Sequence[int]) -> None:
        kept = [float(values[i]) for i in rows]
        if kept:
            self._window.setdefault(name, []).extend(value for value in kept if not math.isnan(value))

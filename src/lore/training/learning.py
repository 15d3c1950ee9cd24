"""What advice changes in learning: the policy in imagination, the KL constraint, trust in advised returns.

Letters: N states, B sequences of T steps, F features, A actions, H imagined steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lore.base.types import SOURCES, Batch
from lore.dreamer.guide import Doubt, Lookahead, Moment
from lore.gate import Gate, divergence, mix
from lore.gate.mix import centred
from lore.training.teaching import Teacher

OWN = SOURCES.index("prior_net")


class GuidedLearning:
    """The gate's part in a gradient step; DreamerV3Agent.guide is one. Set `now` before each update."""

    def __init__(
        self,
        gate: Gate,
        distilled: Callable[[Tensor], Tensor] | None,
        replay_value: str,
        teacher: Teacher | None = None,
    ):
        """
        Args:
            gate: Says how strongly advice counts.
            distilled: Features (N, F) -> prior logits (N, A) of the distilled adviser; None without.
            replay_value: What the critic learns from advised rows: keep, weight or drop.
            teacher: How advice enters the actor's losses; None: it does not.
        """
        self.gate, self.distilled, self.replay_value = gate, distilled, replay_value
        self.teacher = teacher
        self.now = Moment()

    @property
    def mixes_imagination(self) -> bool:
        """Whether `imagined_bonus` is added to the policy in imagination."""
        return self.distilled is not None and self.teacher is not None and self.teacher.mixes

    def regularise(
        self, feat: Tensor, log_probs: Tensor, lookahead: Lookahead
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Compute what stands in place of the actor's entropy bonus; see Teacher.

        Args:
            feat: (H, N, F).
            log_probs: log pi_wm, or log pi_mix where advice is mixed in imagination, (A, H, N).
            lookahead: The agent's.

        Returns:
            The bonus, (H, N), and metrics; None: the entropy bonus stays.
        """
        return self.teacher.regularise(feat, log_probs, lookahead, self.now) if self.teacher else None

    @torch.no_grad()
    def imagined_bonus(self, feat: Tensor, logits: Tensor, doubt: Doubt) -> Tensor:
        """Compute what is added to the policy's logits in imagined states.

        Args:
            feat: (N, F).
            logits: l_wm, (N, A).
            doubt: The agent's.

        Returns:
            beta * l~, (N, A).
        """
        assert self.distilled is not None
        prior = self.distilled(feat)
        bonus, _ = self.gate.bonus(prior, torch.ones_like(prior, dtype=torch.bool), logits)
        beta = self.gate.imagined_beta(logits, self._read(doubt, feat, logits), self.now.env_step)
        return beta.unsqueeze(-1) * bonus

    def calibrate(self, feat: Tensor, logits: Tensor, doubt: Doubt) -> None:
        """Show states from replay to a gate that still measures its norms.

        Args:
            feat: Posterior features, (N, F).
            logits: l_wm, (N, A).
            doubt: The agent's.
        """
        if self.gate.calibrating:
            self.gate.calibrate(logits, self._read(doubt, feat, logits))

    def replay_loss(
        self, logits: Tensor, batch: Batch, imagined: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the penalty of the KL constraint, and what a teacher adds on replayed rows.

        Args:
            logits: l_wm of replayed rows, (B, T, A), with gradient.
            batch: The rows.
            imagined: KL of imagined states, (H, N), with gradient; None where no advice is mixed there.

        Returns:
            The losses kl (0-d) and clone (B, T), as far as there are, and metrics.
        """
        losses, metrics = self._kl_loss(logits, batch, imagined)
        taught = self.teacher.replay_loss(logits, batch, self.now) if self.teacher else None
        if taught is not None:
            losses["clone"], more = taught
            metrics |= more
        return losses, metrics

    def _kl_loss(
        self, logits: Tensor, batch: Batch, imagined: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The penalty by its name, 0-d, and metrics; both empty in other modes than penalty."""
        control = self.gate.kl
        if control.mode != "penalty":
            return {}, {}
        rows = self._advised(batch)
        kl = torch.where(rows, divergence(self._mixed(logits.detach(), batch), logits), 0.0)
        total, count = kl.sum(), rows.sum()
        metrics = {"uncertainty_gate/replay_kl": total.detach() / count.clamp(min=1)}
        if imagined is not None:
            total, count = total + imagined.sum(), count + imagined.numel()
            metrics["uncertainty_gate/imagined_kl"] = imagined.detach().mean()
        loss = control.loss(total, count)
        return {"kl": loss}, metrics | {"uncertainty_gate/lambda_kl": control.multiplier}

    @torch.no_grad()
    def value_weight(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """Weigh what the critic learns from replayed rows.

        drop: nothing where advice acted. weight: there min(1, pi_wm(a) / pi_mix(a)), the truncated importance
        ratio of V-trace (Espeholt et al. 2018, arXiv 1802.01561).

        Args:
            logits: l_wm, (B, T, A).
            batch: The rows.

        Returns:
            Weights, (B, T); None: all rows count alike.
        """
        if self.replay_value == "keep":
            return None
        if self.replay_value == "drop":
            return (batch.beta == 0).float()
        mixed = self._mixed(logits, batch)
        action = batch.action.unsqueeze(-1)
        ratio = (logits.log_softmax(-1) - mixed.log_softmax(-1)).gather(-1, action).squeeze(-1).exp()
        return torch.where(batch.beta > 0, ratio.clamp(max=1.0), 1.0)

    def _advised(self, batch: Batch) -> Tensor:
        """Find the rows (B, T) on which a provider's advice acted."""
        return (batch.beta > 0) & (batch.source != OWN)

    def _mixed(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute l_mix (B, T, A): today's l_wm with the advice and the beta stored with the rows."""
        temperature = torch.where(batch.beta > 0, batch.temperature, 1.0)
        return mix(logits, batch.beta, centred(batch.prior, batch.mask) / temperature.unsqueeze(-1))

    def _read(self, doubt: Doubt, feat: Tensor, logits: Tensor) -> dict[str, Tensor]:
        return doubt(feat, logits) if self.gate.members else {}

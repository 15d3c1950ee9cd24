"""How far advice may move the policy: a multiplier in the actor's loss, or a beta lowered until it fits.

Source of the multiplier: the usual dual ascent on a constraint, clipped at both ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lore.config.options import KLOptions
from lore.gate.mix import divergence, mix
from lore.gate.roots import crossing_interval

PROJECTION_SLACK = 1e-5
"""`project` aims at this share below delta, so that float32 rounding stays under delta."""


class KLControl:
    """The constraint KL(pi_mix || pi_wm) <= delta_target.

    Attributes, each of which may be assigned:
        mode: none, penalty or project.
        delta_target: What the KL is held to, in nats.
        kl_lr: Step of the multiplier at an update.
        lambda_max: Largest multiplier.
        multiplier: The multiplier lambda, a 0-d tensor.
    """

    def __init__(self, options: KLOptions, device: torch.device | str = "cpu"):
        """Begin with the multiplier at 0.

        Args:
            options: The options of the group `gate.kl`.
            device: Where the multiplier is.
        """
        self.mode, self.delta_target = options.mode, options.delta_target
        self.kl_lr, self.lambda_max = options.kl_lr, options.lambda_max
        self.multiplier = torch.zeros((), device=device)

    def loss(self, total: Tensor, count: Tensor) -> Tensor:
        """Compute the penalty lambda * ReLU(KL - delta), then move lambda on.

        Args:
            total: Sum of the KL over the states, 0-d, with gradient.
            count: Number of the states, 0-d. With 0 there is no loss, and lambda stays.

        Returns:
            The penalty, 0-d.
        """
        kl = total / count.clamp(min=1)
        loss = self.multiplier * torch.relu(kl - self.delta_target)
        moved = self.multiplier + self.kl_lr * (kl.detach() - self.delta_target)
        self.multiplier = torch.where(count > 0, moved.clamp(0.0, self.lambda_max), self.multiplier)
        return torch.where(count > 0, loss, 0.0)

    def project(self, logits: Tensor, beta: Tensor, bonus: Tensor) -> Tensor:
        """Lower beta until KL(pi_mix || pi_wm) <= delta_target.

        The KL grows with beta: its derivative is beta times the variance of the bonus under pi_mix.

        Args:
            logits: l_wm, (N, A).
            beta: (N,).
            bonus: l~, (N, A).

        Returns:
            The largest beta' <= beta that the constraint allows, (N,).
        """
        if self.delta_target <= 0:
            return torch.zeros_like(beta)
        over = divergence(mix(logits, beta, bonus), logits) > self.delta_target
        if not bool(over.any()):
            return beta
        wide, steps = logits.double(), bonus.double()

        def room(x: Tensor) -> Tensor:  # (N, G)
            mixed = wide.unsqueeze(1) + x.unsqueeze(-1) * steps.unsqueeze(1)
            return -divergence(mixed, wide.unsqueeze(1))

        level = torch.full_like(beta.double(), -self.delta_target * (1.0 - PROJECTION_SLACK))
        low, _ = crossing_interval(room, level, torch.zeros_like(level), beta.double())
        return torch.where(over, low.float(), beta)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the multiplier; the options are not in it."""
        return {"multiplier": self.multiplier.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken.

        Args:
            state: What `state_dict` returned.
        """
        self.multiplier = state["multiplier"].to(self.multiplier.device)

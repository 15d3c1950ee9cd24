"""Who takes part in a gradient step besides DreamerV3; DreamerV3 itself never hears of advice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lore.base.types import Batch
from lore.dreamer.actor_critic import ActorCritic

Doubt = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Features (N, F) and actor logits (N, A) -> what the ensembles say of them: name -> (N,)."""

Lookahead = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Features (N, F) and actions (N,) -> the return that one imagined step by the action promises, and the value
of the state, (N,) each."""


@dataclass(frozen=True)
class Moment:
    """Where a run stands when a gradient step is taken.

    Attributes:
        env_step: Environment steps of the run.
        trust: How far advice is trusted, in [0, 1].
        unaided: Success of the latest episodes that the agent played alone, in [0, 1].
    """

    env_step: int = 0
    trust: float = 1.0
    unaided: float = 0.0


class Guide(Protocol):
    """Who takes part in a gradient step besides DreamerV3; `lore.training.learning` has one.

    Attributes:
        now: Where the run stands; set before an update.
    """

    now: Moment

    @property
    def gate(self) -> object:
        """The gate of the run."""

    @property
    def mixes_imagination(self) -> bool:
        """Whether `imagined_bonus` is added to the policy in imagination."""

    def imagined_bonus(self, feat: Tensor, logits: Tensor, doubt: Doubt) -> Tensor:
        """Compute what is added to the policy's logits in imagined states.

        Args:
            feat: Features, (N, F).
            logits: The actor's, (N, A).
            doubt: The agent's `doubt`.

        Returns:
            (N, A), without gradient.
        """

    def regularise(
        self, feat: Tensor, log_probs: Tensor, lookahead: Lookahead
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Compute what stands in place of the actor's entropy bonus in imagined states.

        Args:
            feat: Features, (H, N, F), without gradient.
            log_probs: The policy, (A, H, N), with gradient.
            lookahead: The agent's `lookahead`.

        Returns:
            The bonus, (H, N), with gradient, and metrics, 0-d; None: the entropy bonus stays.
        """

    def calibrate(self, feat: Tensor, logits: Tensor, doubt: Doubt) -> None:
        """Look at states from replay, before the losses that follow.

        Args:
            feat: Posterior features, (N, F).
            logits: The actor's, (N, A).
            doubt: The agent's `doubt`.
        """

    def replay_loss(
        self, logits: Tensor, batch: Batch, imagined: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute further losses of the actor.

        Args:
            logits: The actor's logits of replayed rows, (B, T, A), with gradient.
            batch: The replayed rows.
            imagined: KL(sg(pi_mix) || pi_wm) of imagined states, (H, N), with gradient; None without a bonus.

        Returns:
            Losses by name, of any shape, and metrics, 0-d; both may be empty.
        """

    def value_weight(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """Weigh what the critic learns from replayed rows.

        Args:
            logits: The actor's logits of replayed rows, (B, T, A), without gradient.
            batch: The replayed rows.

        Returns:
            Weights, (B, T); None: all rows count alike.
        """


class ImaginedPolicy:
    """Draws imagined actions, and keeps what the guide added to the logits at each step."""

    def __init__(self, actor_critic: ActorCritic, guide: Guide | None, doubt: Doubt, rng: torch.Generator):
        """Start with nothing kept.

        Args:
            actor_critic: Gives the logits.
            guide: Adds to the logits, if it mixes imagination; None: nobody does.
            doubt: The agent's `doubt`.
            rng: Draws the actions; on the agent's device.
        """
        self._actor_critic, self._doubt, self._rng = actor_critic, doubt, rng
        self._guide = guide if guide is not None and guide.mixes_imagination else None
        self._added: list[Tensor] = []

    def __call__(self, feat: Tensor) -> Tensor:
        """Draw the actions of one imagined step.

        Args:
            feat: Features, (N, F).

        Returns:
            Actions, (N,) long.
        """
        if self._guide is None:
            return self._actor_critic.sample(feat, self._rng)
        logits = self._actor_critic.logits(feat)
        added = self._guide.imagined_bonus(feat, logits, self._doubt)
        self._added.append(added)
        return self._actor_critic.draw(logits + added, self._rng)

    def bonus(self) -> Tensor | None:
        """Return what was added to the logits of all steps but the last.

        Returns:
            (H, N, A); None where nothing was added.
        """
        return torch.stack(self._added[:-1]) if self._added else None

"""What every teacher can change in a gradient step; the base changes nothing."""

from __future__ import annotations

from torch import Tensor

from lore.base.types import Batch
from lore.config.options import TeachOptions
from lore.dreamer.guide import Lookahead, Moment
from lore.llm.prior_net import PriorNet

Metrics = dict[str, Tensor]


class Teacher:
    """Advice that enters learning nowhere: `teach=none`, and the base of all others.

    Attributes:
        mixes: Whether the distilled adviser acts in imagination.
    """

    mixes = False

    def __init__(self, options: TeachOptions, entropy: float, distilled: PriorNet | None):
        """Take up the options.

        Args:
            options: The options of the group `teach`.
            entropy: Coefficient of the actor's entropy bonus.
            distilled: The adviser as a network; None without.
        """
        self.options, self.entropy, self.distilled = options, entropy, distilled

    def regularise(
        self, feat: Tensor, log_probs: Tensor, lookahead: Lookahead, now: Moment
    ) -> tuple[Tensor, Metrics] | None:
        """Compute what stands in place of the actor's entropy bonus in imagined states.

        Args:
            feat: Features, (H, N, F), without gradient.
            log_probs: The policy, (A, H, N), with gradient.
            lookahead: The agent's.
            now: Where the run stands.

        Returns:
            The bonus, (H, N), with gradient, and metrics, 0-d; None: the entropy bonus stays.
        """
        return None

    def replay_loss(self, logits: Tensor, batch: Batch, now: Moment) -> tuple[Tensor, Metrics] | None:
        """Compute a further loss of the actor on replayed rows.

        Args:
            logits: The actor's, (B, T, A), with gradient.
            batch: The rows.
            now: Where the run stands.

        Returns:
            The loss, (B, T), and metrics, 0-d; None: there is none.
        """
        return None

"""A gate of your own: advice counts less and less as training goes on, whatever the agent knows.

    pip install examples/own_gate
    lore-train gate=fading gate.beta=2

A gate is a class with `open`. Mixing, temperature and the KL constraint are inherited; docs/gate.md has the
formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lore.gate import Gate, Opening

HALF_LIFE = 500  # environment steps


class FadingGate(Gate):
    """beta = gate.beta * 0.5 ** (env_step / HALF_LIFE); new advice may always be asked for."""

    def open(self, logits: Tensor, doubt: dict[str, Tensor], latched: Tensor, env_step: int) -> Opening:
        """Say how strongly advice acts in each of N states.

        Args:
            logits: of the agent's own policy, (N, A).
            doubt: what the ensembles say, name -> (N,); empty, for `members` is 0 here.
            latched: whether new advice could be asked for one step ago, (N,) bool.
            env_step: environment steps so far.

        Returns:
            beta (N,), the new latch (N,) and no terms for the metrics.
        """
        beta = self.options.beta * 0.5 ** (env_step / HALF_LIFE)
        return Opening(torch.full_like(logits[:, 0], beta), torch.ones_like(latched), {})

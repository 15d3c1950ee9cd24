"""Lambda-returns and the percentile scale of returns.

Source: Hafner et al. 2023 (arXiv 2301.04104), section "Actor critic learning"; danijar/dreamerv3,
dreamerv3/agent.py (lambda_return) and embodied/jax/utils.py (Normalize).
"""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(
    reward: Tensor, terminal: Tensor, last: Tensor, value: Tensor, discount: float, lam: float
) -> Tensor:
    """Compute lambda-returns, time first.

    R_t = r_{t+1} + live_{t+1} * ((1 - c_{t+1}) * v_{t+1} + c_{t+1} * R_{t+1}); R_{L-1} = v_{L-1}, where
    live = discount * (1 - terminal), c = lam * (1 - last). A time-out (last without terminal) bootstraps from
    the value, a terminal step does not.

    Args:
        reward: (L, N), of the step that led to each row.
        terminal: (L, N), 1 where the episode has ended for good; may lie between.
        last: (L, N), 1 where the episode has ended.
        value: (L, N).
        discount: Of one step.
        lam: lambda.

    Returns:
        The returns, (L - 1, N).
    """
    live = discount * (1.0 - terminal[1:])
    carry = lam * (1.0 - last[1:])
    fixed = reward[1:] + live * (1.0 - carry) * value[1:]
    decay = live * carry
    out = torch.empty_like(fixed)
    future = value[-1]
    for t in range(len(fixed) - 1, -1, -1):
        future = fixed[t] + decay[t] * future
        out[t] = future
    return out


class ReturnScale:
    """Moving 5th and 95th percentiles of returns; `scale` is their distance, at least `limit`."""

    def __init__(
        self, rate: float, limit: float, low: float, high: float, device: torch.device | str = "cpu"
    ):
        """Start with both percentiles at 0.

        Args:
            rate: Share of the way to the new percentiles that an update goes, in (0, 1].
            limit: Least scale, in units of return.
            low: Lower percentile, in [0, 100].
            high: Upper percentile, in [0, 100].
            device: Where the tensors are.
        """
        self.rate, self.limit = rate, limit
        self.quantiles = torch.tensor([low / 100.0, high / 100.0], device=device)
        self.value = torch.zeros(2, device=device)  # low, high

    def update(self, returns: Tensor) -> Tensor:
        """Take in returns.

        Args:
            returns: Returns of any shape.

        Returns:
            The scale after the update, 0-d.
        """
        self.value.lerp_(torch.quantile(returns.float().flatten(), self.quantiles), self.rate)
        return self.scale

    @property
    def scale(self) -> Tensor:
        """Distance of the percentiles, at least `limit`, 0-d."""
        return (self.value[1] - self.value[0]).clamp(min=self.limit)

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` gave, on any device.
        """
        self.value.copy_(state["value"])

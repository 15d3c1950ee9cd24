"""LaProp with adaptive gradient clipping, over flat buffers, with float32 master weights.

Source: danijar/dreamerv3, embodied/jax/opt.py (clip_by_agc, scale_by_rms, scale_by_momentum);
Ziyin et al. 2020 (LaProp, arXiv 2002.04839); Brock et al. 2021 (AGC, arXiv 2102.06171), per tensor here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lore.nn import fused

AGC_FLOOR = 1e-3  # a tensor's norm counts as at least this much


class LaProp:
    """Keeps float32 master weights; the modules compute with views of a copy in `dtype`.

    After construction every parameter and its .grad are views of two flat buffers, so that a step is a
    few vector operations. Call backward, then step(), which also clears the gradients.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        dtype: torch.dtype = torch.float32,
        warmup: int = 0,
        agc: float = 0.3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-20,
    ):
        self.params = list(params)
        self.lr, self.warmup, self.agc = lr, warmup, agc
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.updates = 0
        self.sizes = [p.numel() for p in self.params]
        self.master = torch.cat([p.detach().flatten().float() for p in self.params])
        self.second = torch.zeros_like(self.master)
        self.first = torch.zeros_like(self.master)
        self.compute = self.master if dtype == torch.float32 else self.master.to(dtype)
        self.grad = torch.zeros_like(self.compute)
        for param, weight, grad in zip(
            self.params, self._views(self.compute), self._views(self.grad), strict=True
        ):
            param.data = weight
            param.grad = grad

    def _views(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split(self.sizes)
        return [piece.view(p.shape) for piece, p in zip(pieces, self.params, strict=True)]

    def masters(self) -> list[Tensor]:
        """Float32 views of the weights, one a parameter."""
        return self._views(self.master)

    @torch.no_grad()
    def step(self) -> dict[str, Tensor]:
        """Apply the gradients and clear them. Returns the norms of gradient and update as 0-d tensors."""
        self.updates += 1
        grad_norms = fused.norms(self.grad, self.sizes)
        scale = torch.ones_like(grad_norms)
        if self.agc:
            limit = self.agc * fused.norms(self.master, self.sizes).clamp(min=AGC_FLOOR)
            scale = 1.0 / (grad_norms / limit).clamp(min=1.0)
        ramp = min(1.0, (self.updates - 1) / self.warmup) if self.warmup else 1.0
        rate = self.lr * ramp / (1.0 - self.beta1**self.updates)
        correct2 = 1.0 - self.beta2**self.updates
        buffers = (self.second, self.first, self.master, self.compute)
        fused.laprop(self.grad, scale, self.sizes, *buffers, self.beta1, self.beta2, correct2, self.eps, rate)
        self.grad.zero_()
        return {
            "opt/grad_norm": torch.linalg.vector_norm(grad_norms),
            "opt/update_norm": torch.linalg.vector_norm(self.first) * rate,
        }

    def publish(self) -> None:
        """Copy the master weights to the views that the modules compute with."""
        if self.compute is not self.master:
            self.compute.copy_(self.master)

    def state_dict(self) -> dict[str, Tensor | int]:
        return {
            "master": self.master.clone(),
            "first": self.first.clone(),
            "second": self.second.clone(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the number of weights differs."""
        if state["master"].shape != self.master.shape:
            raise ValueError(
                f"checkpoint has {state['master'].numel()} weights, this agent {self.master.numel()}"
            )
        self.master.copy_(state["master"])
        self.first.copy_(state["first"])
        self.second.copy_(state["second"])
        self.updates = state["updates"]
        self.publish()

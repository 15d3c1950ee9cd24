"""Means of what happened since the last row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Value = float | Tensor | np.number | np.ndarray | Sequence[float]


class MetricsAggregator:
    """Mean of each metric over the calls of `add` since the last `result`.

    A metric is a number, a 0-d tensor, or a vector of fixed size (list, array or 1-d tensor; the mean is
    taken element by element). Tensors are copied into a float64 sum on their own device: `add` never waits
    for the device, and the caller may overwrite them afterwards. Each metric has its own count, so metrics
    that come less often are not diluted.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Value]) -> None:
        """Add one observation of each metric.

        Args:
            values: Metric -> a number, a 0-d tensor, or a vector of fixed size (list, array or 1-d tensor). A
                call may leave out any metric.

        Raises:
            ValueError: A metric changes its shape or has more than one dimension.
        """
        for name, value in values.items():
            if isinstance(value, (bool, int, float, np.number)):
                value = float(value)
            else:
                value = torch.as_tensor(value).detach()
                if value.ndim > 1:
                    raise ValueError(f"metric {name!r} has shape {_shape(value)}: not a number or a vector")
            self._sums[name] = self._plus(name, value)
            self._counts[name] = self._counts.get(name, 0) + 1

    def result(self) -> dict[str, float | list[float]]:
        """Return the means since the last call, and start afresh.

        It waits for each device once.

        Returns:
            Metric -> mean, a list for a vector, in the order in which the metrics first came; empty when
            nothing was added.
        """
        sums, counts = _on_host(self._sums), self._counts
        self._sums, self._counts = {}, {}
        means = {name: total / counts[name] for name, total in sums.items()}
        return {name: mean.tolist() if isinstance(mean, Tensor) else mean for name, mean in means.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return sums (floats, CPU float64 tensors) and counts: torch.load(weights_only=True) reads them."""
        sums = {k: v.clone() if isinstance(v, Tensor) else v for k, v in _on_host(self._sums).items()}
        return {"sums": sums, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state: the next row is the one that the uninterrupted run would have written.

        Args:
            state: What `state_dict` returned.
        """
        self._sums = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state["sums"].items()}
        self._counts = dict(state["counts"])

    def _plus(self, name: str, value: float | Tensor) -> float | Tensor:
        total = self._sums.get(name)
        if total is None:
            # copy=True: a CUDA graph or an in-place update may overwrite the caller's tensor.
            return value.to(torch.float64, copy=True) if isinstance(value, Tensor) else value
        if _shape(total) != _shape(value):
            raise ValueError(f"metric {name!r} had shape {_shape(total)} and now has {_shape(value)}")
        if not isinstance(value, Tensor):
            return total + value
        return total.to(value.device).add_(value) if isinstance(total, Tensor) else value.double() + total


def _shape(value: float | Tensor) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _on_host(sums: Mapping[str, float | Tensor]) -> dict[str, float | Tensor]:
    """The same sums with every tensor on the CPU; one transfer per device."""
    host: dict[str, float | Tensor] = dict(sums)
    by_device: dict[torch.device, list[str]] = {}
    for name, total in sums.items():
        if isinstance(total, Tensor) and total.device.type != "cpu":
            by_device.setdefault(total.device, []).append(name)
    for names in by_device.values():
        tensors = [t for t in (sums[n] for n in names) if isinstance(t, Tensor)]
        flat = torch.cat([t.reshape(-1) for t in tensors]).cpu()
        parts = flat.split([t.numel() for t in tensors])
        host.update({n: p.reshape(t.shape) for n, p, t in zip(names, parts, tensors, strict=True)})
    return host

"""LoRe: DreamerV3 with a language model as adviser. Names load on first use, so `import lore` is instant."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lore.config.options import Config
    from lore.dreamer.agent import DreamerV3Agent
    from lore.dreamer.replay import ReplayBuffer
    from lore.gate import UncertaintyGate
    from lore.llm.asking.controller import LLMController
    from lore.metrics.aggregate import MetricsAggregator

__version__ = "0.2.0"
__all__ = [
    "Config",
    "DreamerV3Agent",
    "LLMController",
    "MetricsAggregator",
    "ReplayBuffer",
    "UncertaintyGate",
    "__version__",
]

_HOME = {
    "Config": "lore.config.options",
    "DreamerV3Agent": "lore.dreamer.agent",
    "LLMController": "lore.llm.asking.controller",
    "MetricsAggregator": "lore.metrics.aggregate",
    "ReplayBuffer": "lore.dreamer.replay",
    "UncertaintyGate": "lore.gate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lore' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

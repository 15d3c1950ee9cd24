"""Metrics: what a run writes down (JSONL), and the views of it (W&B, terminal)."""

from lore.metrics.aggregate import MetricsAggregator
from lore.metrics.closing_words import closing_text, next_command
from lore.metrics.health import Alert, HealthMonitor
from lore.metrics.logger import RunLogger
from lore.metrics.summary import auc, make_summary, steps_to_90

__all__ = [
    "Alert",
    "HealthMonitor",
    "MetricsAggregator",
    "RunLogger",
    "auc",
    "closing_text",
    "make_summary",
    "next_command",
    "steps_to_90",
]

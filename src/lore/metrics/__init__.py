"""Metrics: what a run writes down (JSONL), and the views of it (W&B, terminal)."""

from lore.metrics.aggregate import MetricsAggregator
from lore.metrics.logger import RunLogger
from lore.metrics.summary import auc, make_summary, steps_to_90

__all__ = ["MetricsAggregator", "RunLogger", "auc", "make_summary", "steps_to_90"]

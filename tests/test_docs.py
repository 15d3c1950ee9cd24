"""docs/metrics.md names every metric a run logs, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lore.config import compose
from lore.train import train

DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"


def test_every_logged_metric_has_a_line_and_every_line_a_metric(tmp_path: Path) -> None:
    overrides = ["+preset=debug", "agent.critic_ensemble=2", "agent.disagreement_ensemble=2", "env=empty5"]
    cfg = compose([*overrides, "logger=quiet", "env.max_steps=20", "run.steps=120"])
    train(cfg, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {name for row in rows for name in row}
    table = DOCS.read_text(encoding="utf-8").split("## Names in metrics.jsonl")[1].split("\n## ")[0]
    lines = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {name for line in lines for name in re.findall(r"`([^`]+)`", line)}
    assert logged == documented

"""docs/metrics.md names every metric a run logs, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests import runs
from tests.metrics.sinks.test_wandb_sink import history

from lore.config.compose import compose
from lore.training.trainer import train

ROOT = Path(__file__).parents[1]


def logged_in(folder: Path) -> set[str]:
    """Names in metrics.jsonl, those of a family as docs/metrics.md writes them."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row}
    names = {re.sub(r"^(llm/failure)/.*", r"\1/KIND", name) for name in names}
    return {re.sub(r"^(llm/(?:outcome|trigger|plan|source))/.*", r"\1/NAME", name) for name in names}


def numbers_in(folder: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl, numbers only: W&B gets no nulls, and shows a vector as a histogram."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if isinstance(v, int | float)} for row in rows]


def sent_to_wandb(folder: Path) -> list[dict[str, float]]:
    """The same rows, read back from W&B's own file by W&B."""
    (segment,) = (folder / "wandb").glob("offline-run-*")
    keep = re.compile(r"(?!_)[^.]+$")  # not its own fields, nor the parts of a histogram
    return [
        {k: v for k, v in row.items() if keep.match(k) and isinstance(v, int | float)}
        for row in history(segment)
    ]


def test_every_logged_metric_has_a_line_and_every_line_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key-of-nobody")
    overrides = ["+preset=debug", "agent.critic_ensemble=2", "agent.disagreement_ensemble=2", "env=empty5"]
    cfg = compose([*overrides, "logger=quiet", "env.max_steps=20", "run.steps=120"])
    train(cfg, tmp_path)
    advised = ["agent=prior", "llm.cache=null", "logger=quiet", "run.steps=600", "run.eval_episodes=2"]
    logged = logged_in(tmp_path)
    looks_around = ["llm=scripted", "llm.competence=0", "llm.failure=explore"]  # until all is explored
    for name, adviser in {"plans": looks_around, "no server": runs.DEAD}.items():
        folder = tmp_path / name
        folder.mkdir()
        train(compose([*advised, *adviser, "env.max_steps=60"]), folder)
        logged |= logged_in(folder)
    folder = tmp_path / "everything"
    folder.mkdir()
    everything = ["prior_net.enabled=true", "gate.mix_in_imagination=true", "gate.temperature=match"]
    quiet = ["llm.cache=null", "logger=offline", "logger.terminal=off"]
    train(compose(["+preset=debug", *everything, *quiet]), folder)
    assert sent_to_wandb(folder) == numbers_in(folder)
    logged |= logged_in(folder)
    table = (
        (ROOT / "docs" / "metrics.md")
        .read_text(encoding="utf-8")
        .split("## Names in metrics.jsonl")[1]
        .split("\n## ")[0]
    )
    lines = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {name for line in lines for name in re.findall(r"`([^`]+)`", line)}
    assert logged == documented


def test_what_the_coverage_page_names_exists() -> None:
    """Every path, and behind a colon a part of the name of one of that file's tests."""
    page = (ROOT / "docs" / "spec-coverage.md").read_text(encoding="utf-8")
    cells = [line.split("|")[2].strip() for line in page.splitlines() if line.startswith("| ")]
    shown = [cell for cell in cells if cell not in ("shown by", "---")]
    assert len(shown) > 50 and all(shown)
    for cell in shown:
        if cell.startswith(("*open*", "by hand")):
            continue
        for part in re.sub(r" \([^)]*\)", "", cell).split("; "):
            path, _, names = part.partition(": ")
            found = [folder / path for folder in (ROOT / "tests", ROOT / "docs") if (folder / path).exists()]
            assert found, f"{part}: no such file"
            for name in filter(None, names.split(", ")):
                assert re.search(rf"def test_\w*{re.escape(name)}\w*\(", found[0].read_text()), (
                    f"{part}: no {name}"
                )

"""lore-bench ends with one JSON line that other programs can rely on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lore.cli.bench import main as bench_main

# Section 11 of the specification.
KEYS = [
    "workload",
    "device",
    "dtype",
    "size",
    "params",
    "median_s",
    "matmul_s",
    "matmul_units",
    "gflop",
    "peak_rss_mb",
]


def test_the_last_line_is_the_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["size=tiny", "dtype=float32", "agent.batch_size=2", "agent.seq_len=4", "agent.horizon=3"]
    assert bench_main(small) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(row) == KEYS
    assert row["workload"].startswith("2x4 H3") and row["dtype"] == "float32"
    assert row["median_s"] > 0 and row["gflop"] > 0 and row["peak_rss_mb"] > 100
    assert row["matmul_units"] == pytest.approx(row["median_s"] / row["matmul_s"], rel=0.1)


def test_the_reference_is_the_agent_alone_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    """The size that peers are compared at, and with the ensembles that a gate reads."""
    small = ["agent.batch_size=2", "agent.seq_len=4", "agent.horizon=3", "replay.capacity=1000"]
    params = []
    for more in ([], ["gate=lore", "llm=scripted"]):
        assert bench_main([*small, *more]) == 0
        params.append(json.loads(capsys.readouterr().out.splitlines()[-1])["params"])
    assert params == [656_473, 1_194_068]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_product_is_counted(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that go through oneDNN: 192 starts, so that products are large enough for it."""
    shape = ["agent.batch_size=12", "agent.seq_len=16", f"dtype={dtype}", "replay.capacity=1000"]
    gflop = []
    for horizon in (2, 4):
        assert bench_main([*shape, f"agent.horizon={horizon}"]) == 0
        gflop.append(json.loads(capsys.readouterr().out.splitlines()[-1])["gflop"])
    # two more steps of 192: core 270336, prior 45056, actor 2 x 49600 + 8640 and its gradient, heads
    step = 2 * 192 * (270_336 + 45_056 + 2 * 49_600 + 8_640 + 4 * 65_000) / 1e9
    assert gflop[1] - gflop[0] == pytest.approx(2 * step, rel=0.2)


def test_a_profile_names_every_region_and_leaves_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["size=tiny", "agent.batch_size=2", "agent.seq_len=4", "agent.horizon=3", "replay.capacity=1000"]
    assert bench_main([*small, "profile=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("world model", "imagination", "behaviour", "backward", "optimizer"):
        assert any(line.startswith(name) for line in lines), name
    assert json.loads((tmp_path / "bench-trace.json").read_text())["traceEvents"]
    assert list(json.loads(lines[-1])) == KEYS


def test_a_wrong_key_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main(["agent.btch_size=2"]) == 2
    assert "agent.btch_size" in capsys.readouterr().err

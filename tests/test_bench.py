"""lore-bench ends with one JSON line that other programs can rely on."""

from __future__ import annotations

import json

import pytest

from lore.cli import bench_main

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


def test_a_wrong_key_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main(["agent.btch_size=2"]) == 2
    assert "agent.btch_size" in capsys.readouterr().err

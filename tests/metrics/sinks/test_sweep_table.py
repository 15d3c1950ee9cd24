"""One table for all jobs of a parallel sweep, from the cards and the records that they write."""

import io
import json
from pathlib import Path

import pytest

from lore.metrics.sinks.sweep_table import TAIL, SweepTable


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def job(folder: Path, number: int, *rows: dict[str, object], torn: str = "") -> Path:
    run = folder / f"run{number}"
    run.mkdir()
    (folder / f"{number}.job").write_text(json.dumps({"run_dir": str(run)}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    return run


def end(folder: Path, number: int, status: int, last: str = "") -> None:
    (folder / f"{number}.end").write_text(json.dumps({"status": status, "last": last}))


def test_a_log_file_gets_a_line_for_each_beginning_and_end_and_one_a_minute(tmp_path: Path) -> None:
    now, stream = [0.0], io.StringIO()
    table = SweepTable(tmp_path, stream, lambda: now[0])
    job(tmp_path, 0, {"env_step": 100}, torn='{"env_st')
    for second in range(125):
        now[0] = float(second)
        table.refresh()
    job(tmp_path, 1)
    end(tmp_path, 0, 1, "lore-train: RuntimeError: x")
    table.refresh()
    table.close()
    lines = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    assert lines == [
        "job run0 begins",
        "0 ended, 1 running: run0 at step 100",
        "0 ended, 1 running: run0 at step 100",
        "job run1 begins",
        "job run0 failed: lore-train: RuntimeError: x",
    ]


def test_a_terminal_shows_one_table_of_what_the_records_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    now, stream = [0.0], Tty()
    table = SweepTable(tmp_path, stream, lambda: now[0])
    job(tmp_path, 0, {"env_step": 100, "success/windowed": 0.25}, {"env_step": 120, "eval/success": 0.5})
    padding = [{"env_step": i, "long": "x" * 100} for i in range(TAIL // 100 + 50)]
    job(tmp_path, 1, *padding, {"env_step": 9000})
    table.refresh()
    now[0] = 61.0
    end(tmp_path, 1, 0)
    table.refresh()
    rows = [list(column.cells) for column in table.table().columns]
    assert list(zip(*rows, strict=True)) == [
        ("run0", "120", "25 %", "50 %", "1:01", "running"),
        ("run1", "9000", "-", "-", "1:01", "finished"),
    ]
    table.close()
    assert "begins" not in stream.getvalue() and "running" in stream.getvalue()


def test_a_low_terminal_shows_the_jobs_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "8")
    monkeypatch.setenv("COLUMNS", "100")
    table = SweepTable(tmp_path, io.StringIO())
    for number in range(9):
        job(tmp_path, number, {"env_step": number})
        if number < 5:
            end(tmp_path, number, 0)
    table.refresh()
    shown = table.table()
    assert list(shown.columns[0].cells) == ["run0", "run5", "run6", "run7", "run8"]
    assert shown.caption == "and 4 more"

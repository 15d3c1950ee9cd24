"""One table for all jobs of a parallel sweep, read from their folders."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lore.metrics.sinks.terminal_view import clock_time, duration, share

TAIL = 1 << 16  # bytes at the end of metrics.jsonl that are read
LIVE_S, PLAIN_S = 1.0, 60.0  # seconds between refreshes
ENDED = {0: "finished", 1: "failed", 2: "refused", 130: "interrupted"}


@dataclass
class Job:
    """A job as the table shows it. ended: its exit status; None while it runs."""

    run_dir: Path
    started: float
    seconds: float = 0.0
    step: int = 0
    success: float | None = None
    evaluation: float | None = None
    ended: int | None = None
    last: str = ""

    @property
    def state(self) -> str:
        """How the job stands, in a word."""
        return "running" if self.ended is None else ENDED.get(self.ended, f"exit status {self.ended}")


class SweepTable:
    """Shows the jobs whose cards lie in a folder (see lore.cli.sweep) on a stream.

    On a terminal one table is redrawn in place; elsewhere a line tells of each job that begins or ends, and
    of all of them once a minute.
    """

    def __init__(self, folder: Path, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.clock = folder, clock
        self.console = Console(file=stream)
        self.jobs: dict[int, Job] = {}
        self._live: Live | None = None
        self._shown = clock()
        if stream.isatty() and os.environ.get("TERM") != "dumb":
            self._live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()

    def refresh(self) -> None:
        """Read the cards and the records again, and show them where it is time."""
        for card in sorted(self.folder.glob("*.job")):
            number = int(card.stem)
            if number not in self.jobs:
                self.jobs[number] = Job(Path(_read(card)["run_dir"]), self.clock())
                self._tell(number, "begins")
        for number, job in self.jobs.items():
            if job.ended is None:
                self._update(number, job)
        pause = LIVE_S if self._live else PLAIN_S
        if self.clock() - self._shown >= pause:
            self._shown = self.clock()
            self._show()

    def say(self, text: str) -> None:
        """Print a line that stays.

        Args:
            text: The line, without its end.
        """
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Show the last state and give the terminal back."""
        self.refresh()
        if self._live:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def table(self) -> Table:
        """Draw the jobs as a table; ended jobs are left out where the terminal is too low for all."""
        table = Table(box=None, padding=(0, 1))
        for name in ("job", "step", "success", "evaluation", "time", "state"):
            table.add_column(name, justify="left" if name in ("job", "state") else "right", no_wrap=True)
        room = max(self.console.height - 3, 1)
        shown = sorted(self.jobs.items(), key=lambda item: (item[1].ended is not None, item[0]))[:room]
        for _, job in sorted(shown):
            table.add_row(
                job.run_dir.name,
                str(job.step),
                share(job.success),
                share(job.evaluation),
                duration(job.seconds),
                job.state,
            )
        if len(shown) < len(self.jobs):
            table.caption = f"and {len(self.jobs) - len(shown)} more"
        return table

    def _update(self, number: int, job: Job) -> None:
        job.seconds = self.clock() - job.started
        for row in _tail(job.run_dir / "metrics.jsonl"):
            job.step = max(job.step, int(row.get("env_step", 0)))
            job.success = row.get("success/windowed", job.success)
            job.evaluation = row.get("eval/success", job.evaluation)
        end = self.folder / f"{number}.end"
        if end.exists():
            card = _read(end)
            job.ended, job.last = card["status"], card["last"]
            self._tell(number, f"{job.state}" + (f": {job.last}" if job.ended else ""))

    def _tell(self, number: int, what: str) -> None:
        job = self.jobs[number]
        if self._live is None or job.ended:  # on a terminal the table says the rest
            self.say(f"{clock_time()} job {job.run_dir.name} {what}")

    def _show(self) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)
            return
        running = [job for job in self.jobs.values() if job.ended is None]
        steps = ", ".join(f"{job.run_dir.name} at step {job.step}" for job in running)
        self.say(
            f"{clock_time()} {len(self.jobs) - len(running)} ended, {len(running)} running: {steps or '-'}"
        )


def _read(card: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
    return values


def _tail(path: Path) -> list[Mapping[str, Any]]:
    """The last whole rows of a JSONL file that another process writes."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b"\n")
    return [json.loads(line) for line in lines[1 if len(lines) > 1 and lines[0][:1] != b"{" else 0 : -1]]

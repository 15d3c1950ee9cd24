"""A parallel sweep: its jobs stop and end with the process that started them, and one table shows them all.

The two sides meet in a temporary folder that the parent names in the environment: each job leaves a card
there (NUMBER.job at its start, NUMBER.end at its end, NUMBER.waiting where it did not start), the parent a
file `stop`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

from lore.base.commands import command_line
from lore.base.files import read_json, write_atomic
from lore.cli.guard import DONE, FAILED, INTERRUPTED
from lore.training.run_folder import discard_empty
from lore.training.signals import NAMES, stop_on_signals

VARIABLE = "LORE_SWEEP"  # PID:FOLDER of the parent
POLL_S = 0.5
LISTED = 4  # jobs that a message names
LAUNCHERS = ("hydra/launcher=parallel", "hydra/launcher=joblib")


def is_parallel(arguments: Sequence[str]) -> bool:
    """Say whether a command line asks for jobs in processes of this machine.

    Args:
        arguments: KEY=VALUE arguments; one of LAUNCHERS asks for it.
    """
    return any(argument in LAUNCHERS for argument in arguments)


def lead(command: str, launch: Callable[[], int]) -> int:
    """Launch the jobs, show them, pass a signal on to them as a wish to stop, and say at last how they ended.

    The first signal lets every job save and keeps the waiting ones from starting; Ctrl-C after that raises
    KeyboardInterrupt, and the launcher kills what still runs.

    Args:
        command: Name of the command.
        launch: Starts the jobs and waits for them; it returns an exit status.

    Returns:
        The exit status of the sweep: that of `launch`, or, where it is 0, that of the jobs.
    """
    folder = Path(tempfile.mkdtemp(prefix="lore-sweep-"))
    os.environ[VARIABLE] = f"{os.getpid()}:{folder}"
    try:
        with stop_on_signals() as stop, _attended(folder, lambda: stop.signal):
            status = launch()
        return status if status != DONE else report_ends(command, folder)
    finally:
        del os.environ[VARIABLE]
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _attended(folder: Path, asked: Callable[[], str]) -> Iterator[None]:
    """Keep a thread that shows the jobs; behind the block it has shown every end."""
    over = threading.Event()
    thread = threading.Thread(target=_attend, args=(folder, asked, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _attend(folder: Path, asked: Callable[[], str], over: threading.Event) -> None:
    """The parent's thread: until `over`, pass a stop on and keep the table up to date."""
    from lore.metrics.sinks.sweep_table import SweepTable

    table = SweepTable(folder, sys.stderr)
    told = False
    while not over.wait(POLL_S):
        if asked() and not told:
            told = True
            (folder / "stop").touch()
            table.say(f"{asked()}: the jobs that run are saved, the others do not start; Ctrl-C kills them")
        table.refresh()
    table.close()


def report_ends(command: str, folder: Path) -> int:
    """Say on stderr which jobs failed, which were interrupted and how they go on, and which never started.

    Args:
        command: Name of the command.
        folder: Folder of the jobs' cards.

    Returns:
        The exit status of the sweep: 0, or that of its jobs; a failure goes before an interruption.
    """
    cards = {path.stem: read_json(path) for path in sorted(folder.glob("*.job"), key=lambda p: int(p.stem))}
    ends = {path.stem: read_json(path)["status"] for path in folder.glob("*.end")}
    by_status: dict[int, list[Path]] = {}
    for number, card in cards.items():
        by_status.setdefault(ends.get(number, FAILED), []).append(Path(card["run_dir"]))
    waiting = [read_json(path) for path in sorted(folder.glob("*.waiting"), key=lambda p: int(p.stem))]
    failed, saved = by_status.get(FAILED, []), by_status.get(INTERRUPTED, [])
    if failed:
        text = f"failed: {', '.join(path.name for path in failed)}; the others are in {failed[0].parent}"
        print(f"{command}: {text}", file=sys.stderr, flush=True)
    if saved or waiting:
        said = ["interrupted"]
        if saved:
            ways = _some([command_line(command, f"resume={path}") for path in saved])
            said.append(f"{_jobs(len(saved))} saved, to go on with: {ways}")
        if waiting:
            shared = set.intersection(*(set(card["overrides"]) for card in [*cards.values(), *waiting]))
            own = [[text for text in card["overrides"] if text not in shared] for card in waiting]
            said.append(f"{_jobs(len(waiting))} never started: {_some([' '.join(texts) for texts in own])}")
            said.append("the same command starts every job anew, in a new folder")
        print(f"{command}: {'; '.join(said)}", file=sys.stderr, flush=True)
    for status in (FAILED, INTERRUPTED):
        if status in by_status:
            return status
    return INTERRUPTED if waiting else max(by_status, default=DONE)


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def _some(texts: Sequence[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = len(texts) - LISTED
    return ", ".join(texts[:LISTED]) + (f" and {more} more" if more > 0 else "")


class Worker:
    """Looks after the job that a process of a parallel sweep runs.

    Outside of training, signals are ignored here: a worker that dies takes the whole sweep with it.
    """

    def __init__(self, parent: int, folder: Path) -> None:
        self.parent, self.folder, self.busy = parent, folder, False
        for name in NAMES:
            signal.signal(signal.Signals[name], signal.SIG_IGN)
        threading.Thread(target=self._watch, daemon=True).start()

    def run(self, number: int, run_dir: Path, overrides: Sequence[str], work: Callable[[], int]) -> int:
        """Do a job. Its output goes to a file in the run folder, apart from that of the other jobs.

        Args:
            number: Number of the job in the sweep.
            run_dir: The run folder.
            overrides: KEY=VALUE of the job.
            work: Does the job; it returns an exit status.

        Returns:
            The exit status of the job; 130 at once, without the job, where the sweep is to stop.
        """
        card: dict[str, object] = {"run_dir": str(run_dir), "overrides": list(overrides)}
        if self._is_over():
            self._leave(f"{number}.waiting", card)
            discard_empty(run_dir)
            return INTERRUPTED
        output = self.folder / f"{number}.output"
        self._leave(f"{number}.job", card)
        self.busy = True
        try:
            with output.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
                status = work()
            lines = output.read_text(encoding="utf-8").splitlines()
            if (run_dir / "config.yaml").exists():
                shutil.copyfile(output, run_dir / "output.txt")
            self._leave(f"{number}.end", {"status": status, "last": lines[-1] if lines else ""})
        finally:
            self.busy = False
        return status

    def _leave(self, name: str, card: dict[str, object]) -> None:
        if self.folder.exists():  # the parent removes it at its end
            write_atomic(self.folder / name, json.dumps(card))

    def _is_orphan(self) -> bool:
        return os.getppid() != self.parent

    def _is_over(self) -> bool:
        return self._is_orphan() or (self.folder / "stop").exists()

    def _watch(self) -> None:
        while True:
            time.sleep(POLL_S)
            orphan, over = self._is_orphan(), self._is_over()
            if self.busy and over:
                os.kill(os.getpid(), signal.SIGTERM)  # repeated: the first may come before training
            elif orphan and not self.busy:
                os._exit(INTERRUPTED)  # the parent is gone: no process waits for a result


@cache
def worker() -> Worker | None:
    """Return this process as a worker of a parallel sweep; None where it is none."""
    parent, _, folder = os.environ.get(VARIABLE, "").partition(":")
    return Worker(int(parent), Path(folder)) if parent and os.getppid() == int(parent) else None

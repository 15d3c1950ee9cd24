"""A parallel sweep: its jobs stop and end with the process that started them, and one table shows them all.

The two sides meet in a temporary folder that the parent names in the environment: each job leaves a card
there (NUMBER.job at its start, NUMBER.end at its end), the parent a file `stop`.
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

from lore.base.files import write_atomic
from lore.cli.guard import INTERRUPTED
from lore.training.signals import NAMES, stop_on_signals

VARIABLE = "LORE_SWEEP"  # PID:FOLDER of the parent
POLL_S = 0.5
LAUNCHERS = ("hydra/launcher=parallel", "hydra/launcher=joblib")


def is_parallel(arguments: Sequence[str]) -> bool:
    """Say whether a command line asks for jobs in processes of this machine.

    Args:
        arguments: KEY=VALUE arguments; one of LAUNCHERS asks for it.
    """
    return any(argument in LAUNCHERS for argument in arguments)


@contextmanager
def lead() -> Iterator[None]:
    """Show the jobs while the parent launches them, and pass a signal on to them as a wish to stop.

    The first signal lets every job save and keeps the waiting ones from starting; Ctrl-C after that raises
    KeyboardInterrupt, and the launcher kills what still runs.
    """
    folder = Path(tempfile.mkdtemp(prefix="lore-sweep-"))
    over = threading.Event()
    os.environ[VARIABLE] = f"{os.getpid()}:{folder}"
    try:
        with stop_on_signals() as stop:
            thread = threading.Thread(target=_attend, args=(folder, lambda: stop.signal, over), daemon=True)
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
    finally:
        del os.environ[VARIABLE]
        shutil.rmtree(folder, ignore_errors=True)


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


class Worker:
    """Looks after the job that a process of a parallel sweep runs.

    Outside of training, signals are ignored here: a worker that dies takes the whole sweep with it.
    """

    def __init__(self, parent: int, folder: Path) -> None:
        self.parent, self.folder, self.busy = parent, folder, False
        for name in NAMES:
            signal.signal(signal.Signals[name], signal.SIG_IGN)
        threading.Thread(target=self._watch, daemon=True).start()

    def run(self, number: int, run_dir: Path, work: Callable[[], int]) -> int:
        """Do a job. Its output goes to a file in the run folder, apart from that of the other jobs.

        Args:
            number: Number of the job in the sweep.
            run_dir: The run folder.
            work: Does the job; it returns an exit status.

        Returns:
            The exit status of the job; 130 at once, without the job, where the sweep is to stop.
        """
        if self._is_over():
            return INTERRUPTED
        output = self.folder / f"{number}.output"
        self._leave(f"{number}.job", {"run_dir": str(run_dir)})
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

"""The live view of a run: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lore.base.types import Episode
from lore.metrics.closing_words import closing_text
from lore.metrics.sinks.terminal_view import (
    View,
    advice_text,
    clock_time,
    duration,
    evaluation_text,
    plain_line,
    saved_text,
    share,
    sparkline,
    speed_text,
    trial_text,
)

LIVE_S = 0.25  # seconds between refreshes: at most 4 Hz
IDLE_S = 1.0  # seconds after which the live view is drawn anew though nothing was told
PLAIN_S = 5.0  # seconds between plain lines
MODES = ("auto", "live", "plain", "off")


class Terminal:
    """Shows a `View` on a stream.

    It draws inside the calls that feed it. On a terminal a thread draws as well while none comes, so that the
    clock goes on in an evaluation; it reads the view and nothing else of the run. A stream that is gone (a
    closed terminal or pipe) turns the view off; training does not notice.
    """

    def __init__(
        self, mode: str, view: View, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare the view; nothing is drawn yet.

        Args:
            mode: "live" redraws a panel in place; "plain" prints a line for each evaluation, and one every
                few seconds in which something has moved; "off" shows nothing but what `say` is given;
                "auto" is live on a terminal and plain elsewhere.
            view: What is shown.
            stream: Where to; None: stderr.
            clock: Returns the present time in seconds.

        Raises:
            ValueError: The mode is unknown.
        """
        if mode not in MODES:
            raise ValueError(f"logger.terminal={mode}: use one of {', '.join(MODES)}")
        self.view, self._clock = view, clock
        self._stream = stream if stream is not None else sys.stderr
        self.mode = mode
        if mode == "auto":
            self.mode = "live" if self._stream.isatty() and os.environ.get("TERM") != "dumb" else "plain"
        self._live: Live | None = None
        self._size: tuple[int, int] | None = None  # of the terminal, when it was drawn last
        self._drawn = float("-inf")
        self._told: tuple[object, ...] = ()  # what the latest plain line was about
        self._lock = threading.RLock()
        self._over = threading.Event()
        view.started = view.now = clock()
        view.tick(view.now, view.env_step)

    def metrics(self, env_step: int, values: Mapping[str, Any]) -> None:
        """Take note of a row of metrics that was written.

        Args:
            env_step: Environment steps so far, all environments together.
            values: The row; gradient_steps and what `View.row` takes are read, where they are there.
        """
        with self._lock:
            self.view.row(values)
            self.view.tick(self._clock(), env_step, values.get("gradient_steps"))
            self._draw()

    def step(self, env_step: int, gradient_steps: int) -> None:
        """Take note of how far training is.

        Args:
            env_step: Environment steps so far, all environments together.
            gradient_steps: Gradient steps so far.
        """
        with self._lock:
            self.view.tick(self._clock(), env_step, gradient_steps)
            self._draw()

    def episode(self, episode: Episode) -> None:
        """Take note of a training episode that has ended.

        Args:
            episode: The episode.
        """
        with self._lock:
            self.view.episodes.append(bool(episode.success))
            self.view.tick(self._clock(), episode.env_step)
            self._draw()

    def evaluating(self, over: int, episodes: int) -> None:
        """Take note of how far an evaluation is.

        Args:
            over: Number of episodes that have ended.
            episodes: Number of all episodes of the evaluation.
        """
        with self._lock:
            self.view.evaluating = (over, episodes)
            self.view.now = self._clock()
            self._draw()

    def evaluation(self, env_step: int, success: float, greedy: float | None) -> None:
        """Take note of a finished evaluation and show it at once.

        Args:
            env_step: Environment steps so far, all environments together.
            success: Share of episodes solved by the sampled policy, in [0, 1].
            greedy: Share of episodes solved by the most probable action, in [0, 1]; None where not measured.
        """
        with self._lock:
            self.view.evaluating = None
            self.view.evaluations.append([env_step, success, greedy])
            self.view.tick(self._clock(), env_step)
            self._draw(now=True)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Keep the latest summary.json for the closing words that `close` says.

        Args:
            values: As `make_summary` returns them.
        """
        with self._lock:
            self.view.summary, self.view.summary_at = dict(values), self._clock()

    def saved(self) -> None:
        """Take note that the run is being saved at its present step."""
        with self._lock:
            self.view.saved_step = self.view.env_step
            self.view.now = self._clock()
            self._draw()

    def say(self, text: str) -> None:
        """Print a line that stays, above the live view if there is one. Mode "off" prints it too.

        Args:
            text: The line, without its end.
        """
        with self._lock:
            if self._live is not None:
                live = self._live
                self._write(lambda: live.console.print(text, markup=False, highlight=False, soft_wrap=True))
            else:
                self._write(lambda: print(text, file=self._stream, flush=True))

    def close(self, status: str, next_step: str = "", alerts: Mapping[str, int] | None = None) -> None:
        """Draw once more and say what the run came to.

        Args:
            status: How the run ended, one of STATUSES in lore.metrics.summary.
            next_step: The command to try next; empty: none is shown.
            alerts: Name of the alert -> how often it was given; None or empty: none is shown.
        """
        self._over.set()
        with self._lock:
            if self.mode == "off":
                return
            self.view.now, self.view.evaluating = self._clock(), None
            if self._live is not None:
                self._draw(now=True)
            if self._live is not None:
                self._write(self._live.stop)
                self._live = None
            self._close(status, next_step, alerts)
            self.mode = "off"

    def _close(self, status: str, next_step: str, alerts: Mapping[str, int] | None) -> None:
        view = self.view
        for sentence in closing_text(view.ending(status), view.steps, view.agent, view.adviser):
            self.say(self._wrapped(sentence))
        if alerts:
            counts = ", ".join(f"{name} {count}" for name, count in alerts.items())
            self.say(f"alerts: {counts} (in alerts.jsonl, with causes)")
        self.say(f"folder: {view.run_dir}")
        if next_step:
            self.say(f"next: {next_step}")

    def _wrapped(self, text: str) -> str:
        """`text` in the width of a terminal; one line elsewhere."""
        return textwrap.fill(text, shutil.get_terminal_size().columns) if self._stream.isatty() else text

    def _draw(self, now: bool = False) -> None:
        pause = LIVE_S if self.mode == "live" else PLAIN_S
        if self.mode == "off" or not (now or self.view.now - self._drawn >= pause):
            return
        self._drawn = self.view.now
        if self.mode == "live":
            self._write(self._draw_live)
            return
        about = (self.view.env_step, self.view.evaluating, len(self.view.evaluations))
        if about != self._told:
            self._told = about
            self.say(f"{clock_time()} {plain_line(self.view)}")

    def _draw_live(self) -> None:
        if self._live is None:
            live = Live(console=_Console(file=self._stream, force_terminal=True), auto_refresh=False)
            live.start()
            self._live = live
            threading.Thread(target=self._draw_idle, name="live view", daemon=True).start()
        console = self._live.console
        size = (console.width, console.height)
        if self._size not in (None, size):  # the terminal has wrapped the old lines anew: where is unknown
            console.clear()
        self._size = size
        self._live.update(panel(self.view), refresh=True)

    def _draw_idle(self) -> None:
        """The thread: draw where nothing was drawn for IDLE_S."""
        while not self._over.wait(IDLE_S / 4):
            with self._lock:
                if self._clock() - self._drawn >= IDLE_S and self._live is not None:
                    self.view.now = self._clock()
                    self._draw(now=True)

    def _write(self, call: Callable[[], None]) -> None:
        try:
            call()
        except OSError:  # the stream is gone, and with it the place to say so
            self._over.set()
            live, self._live, self.mode = self._live, None, "off"
            if live is not None:
                live.console.quiet = True
                live.stop()  # gives sys.stdout and sys.stderr back, without a word


class _Console(Console):
    """rich answers a closed pipe with SystemExit; here it is the OSError that it is."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("the terminal is gone")


def panel(view: View) -> Group:
    """Draw the live view: a heading, the progress over environment steps, and a table of what is known.

    Args:
        view: What is shown.
    """
    done = min(view.env_step / view.steps, 1.0) if view.steps else 1.0
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=1.0, completed=done, width=28),
        f"{view.env_step} / {view.steps} env steps, {share(done)}, left {duration(view.seconds_left)}",
    )
    rows = Table.grid(padding=(0, 2))
    rows.add_row("success", f"{share(view.success)} of the last {len(view.episodes)} training episodes")
    if view.adviser != "none":
        rows.add_row("advice", advice_text(view))
    if trial_text(view):
        rows.add_row("trial", trial_text(view))
    rows.add_row("evaluation", evaluation_text(view))
    if view.evaluations:
        curve = sparkline([sampled for _, sampled, _ in view.evaluations])
        rows.add_row("", f"{curve}  to step {view.evaluations[-1][0]}")
    rows.add_row("speed", f"{speed_text(view)}, {duration(view.now - view.started)} so far")
    rows.add_row("saved", saved_text(view))
    return Group(Text(view.env_id, style="bold"), Text(str(view.run_dir), style="dim"), bar, rows)

"""What the terminal shows, as a value and as text."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lore.base.types import TRIAL_PHASES

WINDOW = 20  # training episodes in the success window
SPEED_S = 60.0  # seconds over which speed is measured
BARS = "▁▂▃▄▅▆▇█"
METRICS = {
    "beta": "uncertainty_gate/avg_beta",
    "kl": "uncertainty_gate/avg_kl",
    "asks": "llm/calls_used",
    "asks_left": "llm/budget_remaining",
    "phase": "trial/phase",
    "trust": "trial/trust",
    "episodes_advised": "trial/episodes_advised",
    "episodes_unaided": "trial/episodes_unaided",
}


@dataclass
class View:
    """A run as the terminal sees it. Times are seconds of one clock; speeds are per second.

    evaluating: episodes that are over, and all, of an evaluation under way; None outside of one.
    What METRICS names is that of the last row that had it, None before it: kl is in nats, phase an index of
    TRIAL_PHASES. Without a limit on the asks, asks_left stays None; without a trial, so does trust.
    """

    env_id: str
    run_dir: Path
    steps: int  # environment steps the run is to make
    env_step: int = 0
    agent: str = "dreamer"
    adviser: str = "none"  # who is asked; "none": nobody
    gradient_steps: int = 0
    started: float = 0.0
    now: float = 0.0
    episodes: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    evaluations: list[list[Any]] = field(default_factory=list)  # [env_step, sampled, greedy or None]
    evaluating: tuple[int, int] | None = None
    saved_step: int | None = None
    marks: deque[tuple[float, int, int]] = field(default_factory=deque)  # (time, env_step, gradient_steps)
    beta: float | None = None
    kl: float | None = None
    asks: float | None = None
    asks_left: float | None = None
    phase: float | None = None
    trust: float | None = None
    episodes_advised: float | None = None
    episodes_unaided: float | None = None
    summary: dict[str, Any] = field(default_factory=dict)  # the latest summary.json
    summary_at: float | None = None  # when it was written

    def row(self, values: Mapping[str, Any]) -> None:
        """Take what is shown from a row of metrics.

        Args:
            values: Metric -> value; those of METRICS are read, where they are there and not None.
        """
        for name, metric in METRICS.items():
            if values.get(metric) is not None:
                setattr(self, name, values[metric])

    def ending(self, status: str) -> dict[str, Any]:
        """Return the latest summary, brought to the present step and time.

        Args:
            status: How the run ended, one of STATUSES in lore.metrics.summary.

        Returns:
            The keys of summary.json; before the first summary only status, env_steps, wall_s (seconds) and
            llm_calls_used.
        """
        if self.summary_at is None:
            known = {"llm_calls_used": int(self.asks or 0)}
            wall_s = self.now - self.started
        else:
            known = self.summary
            wall_s = self.summary["wall_s"] + self.now - self.summary_at
        return {**known, "status": status, "env_steps": self.env_step, "wall_s": wall_s}

    def tick(self, now: float, env_step: int, gradient_steps: int | None = None) -> None:
        """Take note of how far the run is, and of the speed.

        Args:
            now: Present time in seconds.
            env_step: Environment steps so far; a smaller number than before is ignored.
            gradient_steps: Gradient steps so far; None: as before.
        """
        self.now = now
        self.env_step = max(self.env_step, env_step)
        if gradient_steps is not None:
            self.gradient_steps = gradient_steps
        if not self.marks or now - self.marks[-1][0] >= 1.0:
            self.marks.append((now, self.env_step, self.gradient_steps))
        while len(self.marks) > 2 and now - self.marks[1][0] > SPEED_S:
            self.marks.popleft()

    @property
    def success(self) -> float | None:
        """Share of successes in the last training episodes; None before the first."""
        return sum(self.episodes) / len(self.episodes) if self.episodes else None

    @property
    def speed(self) -> tuple[float, float]:
        """Environment steps and gradient steps a second, evaluations included; zeros until it is known."""
        if not self.marks or self.now <= self.marks[0][0]:
            return 0.0, 0.0
        then, env_step, gradient_steps = self.marks[0]
        return (self.env_step - env_step) / (self.now - then), (self.gradient_steps - gradient_steps) / (
            self.now - then
        )

    @property
    def seconds_left(self) -> float | None:
        """Seconds until `steps` at the present speed; None until it is known."""
        speed = self.speed[0]
        return max(self.steps - self.env_step, 0) / speed if speed > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to show the same windows."""
        return {
            "env_step": self.env_step,
            "gradient_steps": self.gradient_steps,
            "episodes": list(self.episodes),
            "evaluations": [list(row) for row in self.evaluations],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state; the measurement of speeds starts afresh.

        Args:
            state: What `state_dict` returned.
        """
        self.env_step = max(self.env_step, state["env_step"])
        self.gradient_steps = state["gradient_steps"]
        self.episodes = deque(state["episodes"], maxlen=WINDOW)
        self.evaluations = [list(row) for row in state["evaluations"]]
        self.saved_step = self.env_step
        self.marks.clear()
        self.tick(self.now, self.env_step)


def duration(seconds: float | None) -> str:
    """Write a time span as m:ss or h:mm:ss.

    Args:
        seconds: The span in seconds; None gives "-".
    """
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def clock_time() -> str:
    """Return the time of day in the local time zone, as hh:mm:ss."""
    return time.strftime("%H:%M:%S")


def share(value: float | None) -> str:
    """Write a share as a percentage, such as "92 %".

    Args:
        value: The share, in [0, 1]; None gives "-".
    """
    return "-" if value is None else f"{100 * value:.0f} %"


def sparkline(values: list[float], width: int = 40) -> str:
    """Draw shares as a row of bars, one character each.

    Args:
        values: Shares in [0, 1], oldest first.
        width: How many of the last values are drawn at most.
    """
    return "".join(BARS[min(max(int(value * len(BARS)), 0), len(BARS) - 1)] for value in values[-width:])


def evaluation_text(view: View) -> str:
    """Write the latest evaluation, and how far an evaluation under way is.

    Args:
        view: The run as the terminal sees it.

    Returns:
        Such as "92 % sampled, 97 % greedy"; "-" before the first evaluation.
    """
    text = "-"
    if view.evaluations:
        _, sampled, greedy = view.evaluations[-1]
        text = f"{share(sampled)} sampled" + ("" if greedy is None else f", {share(greedy)} greedy")
    if view.evaluating is not None:
        over, episodes = view.evaluating
        text += f" ({over} of {episodes} episodes)"
    return text


def speed_text(view: View) -> str:
    """Write the environment steps and the gradient steps a second.

    Args:
        view: The run as the terminal sees it.
    """
    env_speed, gradient_speed = view.speed
    return f"{env_speed:.1f} env steps/s, {gradient_speed:.1f} gradient steps/s"


def saved_text(view: View) -> str:
    """Write the step of the last save; "not yet" before the first.

    Args:
        view: The run as the terminal sees it.
    """
    return "not yet" if view.saved_step is None else f"step {view.saved_step}"


def advice_text(view: View) -> str:
    """Write how strongly advice acts and how many asks are left.

    Args:
        view: The run as the terminal sees it.

    Returns:
        Such as "beta 0.12, KL 0.0031, 143 asks left"; "-" before the first row that tells of advice.
    """
    numbers = {"beta": view.beta, "KL": None if view.kl is None else max(0.0, view.kl)}  # rounding: -5e-08
    parts = [f"{name} {value:.2g}" for name, value in numbers.items() if value is not None]
    if view.asks_left is not None:
        parts.append(f"{view.asks_left:.0f} asks left")
    elif view.asks is not None:
        parts.append(f"{view.asks:.0f} asks, no limit")
    return ", ".join(parts) or "-"


def trial_text(view: View) -> str:
    """Write where the trial of advice stands.

    Args:
        view: The run as the terminal sees it.

    Returns:
        Such as "benefit shown, trust 1, 12 of 24 episodes advised"; empty without a trial.
    """
    if view.trust is None:
        return ""
    advised, unaided = view.episodes_advised or 0, view.episodes_unaided or 0
    phase = [] if view.phase is None else [TRIAL_PHASES[int(view.phase)]]
    episodes = f"{advised:.0f} of {advised + unaided:.0f} episodes advised"
    return ", ".join([*phase, f"trust {view.trust:.2g}", episodes])


def plain_line(view: View) -> str:
    """Write the whole view on one line, for a log file.

    Args:
        view: The run as the terminal sees it.
    """
    advice = "" if view.adviser == "none" else f" | advice: {advice_text(view)}"
    trial = f" | trial: {trial_text(view)}" if trial_text(view) else ""
    return (
        f"step {view.env_step}/{view.steps}"
        f" | success {share(view.success)} (last {len(view.episodes)} episodes){advice}{trial}"
        f" | evaluation {evaluation_text(view)} | {speed_text(view)} | left {duration(view.seconds_left)}"
        f" | saved: {saved_text(view)}"
    )

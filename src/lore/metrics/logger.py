"""The record of a run: JSONL files first, W&B and the terminal as views of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lore.base.jsonl import JsonlFile
from lore.base.types import Episode
from lore.config.options import LoggerOptions
from lore.metrics.health import Alert, monitor
from lore.metrics.sinks.terminal import Terminal
from lore.metrics.sinks.terminal_view import View
from lore.metrics.sinks.wandb import WandbSink
from lore.metrics.summary import STATUSES, plain, write_json

METRICS, EPISODES, ALERTS = "metrics.jsonl", "episodes.jsonl", "alerts.jsonl"


class RunLogger:
    """Writes metrics.jsonl, episodes.jsonl, alerts.jsonl and summary.json of one run folder, feeds the views.

    Use it as a context manager: leaving by an exception closes W&B and the terminal as well ("failed", or
    "interrupted" for KeyboardInterrupt). A folder that holds rows already needs `load_state_dict` (resume)
    before the first new row.
    """

    def __init__(
        self,
        run_dir: Path,
        options: LoggerOptions,
        cfg_dict: Mapping[str, Any],
        *,
        arm: str = "",
    ) -> None:
        """Open the record of a run, and the views of it.

        Args:
            run_dir: The run folder.
            options: Options of the group `logger`.
            cfg_dict: The resolved config, as asdict(Config).
            arm: Arm of the study, for W&B; empty where there is none.

        Raises:
            OSError: The folder cannot be written.
            ValueError: `options` has an unknown mode.
        """
        task, steps, agent = cfg_dict["env"]["id"], cfg_dict["run"]["steps"], cfg_dict["agent"]["name"]
        adviser = "none" if cfg_dict["gate"]["name"] == "none" else cfg_dict["llm"]["provider"]
        self._terminal = Terminal(options.terminal, View(task, run_dir, steps, agent=agent, adviser=adviser))
        self._wandb = WandbSink(run_dir, options, cfg_dict, self._terminal.say, arm)
        self._health, self._verbose = monitor(cfg_dict), cfg_dict["health"]["verbose"]
        self._dir = run_dir
        self._files = {name: JsonlFile(run_dir / name) for name in (METRICS, EPISODES, ALERTS)}
        self._ready = all(file.size == 0 for file in self._files.values())
        self._rows = 0
        self._closed = False

    @property
    def wandb_errors(self) -> dict[str, int]:
        """Failures of W&B so far in this run: exception class -> times."""
        return dict(self._wandb.errors)

    @property
    def alerts(self) -> dict[str, int]:
        """Alerts of the health monitor so far in this run: name -> how often."""
        return dict(self._health.counts) if self._health else {}

    def write_metrics(self, env_step: int, values: Mapping[str, Any]) -> None:
        """Append {"env_step": env_step, **values} to metrics.jsonl, and what is wrong in it to alerts.jsonl.

        With the health monitor on, the row also has health/alerts, the number of alerts so far. Tensors and
        arrays become numbers and lists; numbers that are not finite become null.

        Args:
            env_step: Environment steps so far, all environments together.
            values: Metric -> number, vector or tensor, without env_step.

        Raises:
            ValueError: `values` has an env_step, or the folder holds rows and `load_state_dict` was not
                called.
            OSError: The disk is full.
        """
        if "env_step" in values:
            raise ValueError("env_step is an argument of write_metrics(), not one of its values")
        row = plain({"env_step": env_step, **values})
        alerts: Sequence[Alert] = ()
        if self._health:
            alerts = self._health.check(env_step, row)
            row["health/alerts"] = sum(self._health.counts.values())
        self._append(METRICS, row)
        self._rows += 1
        for alert in alerts:
            self._append(ALERTS, asdict(alert))
            self.say(alert.line(self._verbose))
        self._wandb.row(self._rows - 1, row, alerts)
        self._terminal.metrics(env_step, row)

    def write_evaluation(
        self,
        env_step: int,
        success: float,
        greedy: float | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an evaluation to metrics.jsonl: eval/success, eval/success_greedy if measured, and more.

        Args:
            env_step: Environment steps so far, all environments together.
            success: Share of episodes solved by the sampled policy, in [0, 1].
            greedy: Share of episodes solved by the most probable action, in [0, 1]; None where not measured.
            values: Further metrics of the row, by name.

        Raises:
            ValueError: As `write_metrics`.
            OSError: The disk is full.
        """
        scores = {"eval/success": success} | ({} if greedy is None else {"eval/success_greedy": greedy})
        self.write_metrics(env_step, {**scores, **(values or {})})
        self._terminal.evaluation(env_step, success, greedy)

    def show_step(self, env_step: int, gradient_steps: int) -> None:
        """Show how far training is; nothing is written.

        Args:
            env_step: Environment steps so far, all environments together.
            gradient_steps: Gradient steps so far.
        """
        self._terminal.step(env_step, gradient_steps)

    def show_evaluation(self, over: int, episodes: int) -> None:
        """Show how far an evaluation is; nothing is written.

        Args:
            over: Number of episodes that have ended.
            episodes: Number of all episodes of the evaluation.
        """
        self._terminal.evaluating(over, episodes)

    def write_episode(self, ep: Episode) -> None:
        """Append a finished training episode to episodes.jsonl.

        Args:
            ep: The episode.

        Raises:
            ValueError: The folder holds rows and `load_state_dict` was not called.
            OSError: The disk is full.
        """
        row = {
            "env_step": ep.env_step,
            "env": ep.env,
            "episode": ep.episode,
            "seed": ep.seed,
            "layout": ep.layout,
            "return": ep.return_,
            "length": ep.length,
            "success": ep.success,
            "shaped_return": ep.shaped_return,
            "adviser": ep.adviser,
        }
        if ep.handed_over is not None:
            row["handed_over"] = ep.handed_over
        self._append(EPISODES, row)
        self._terminal.episode(ep)

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write summary.json: a reader sees the old one or the new one, never a part.

        Args:
            values: As `make_summary` returns them.

        Raises:
            OSError: The disk refuses; the old file then stands.
        """
        write_json(self._dir / "summary.json", values)
        self._wandb.summary(plain(values))
        self._terminal.summary(values)

    def say(self, text: str) -> None:
        """Show a line on the terminal that stays.

        Args:
            text: The line, without its end.
        """
        self._terminal.say(text)

    def state_dict(self) -> dict[str, Any]:
        """Put the JSONL files on the disk; return their lengths in bytes and the counts, for a checkpoint."""
        offsets = {name: file.sync() for name, file in self._files.items()}
        self._terminal.saved()
        return {
            "offsets": offsets,
            "rows": self._rows,
            "wandb_errors": self.wandb_errors,
            "health": self._health.state_dict() if self._health else None,
            "view": self._terminal.view.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state: drop the rows written since, an incomplete last row among them.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: A file is shorter than in `state`, or no row ends there. The file is named; none is
                changed.
        """
        for name, file in self._files.items():
            file.check(state["offsets"][name])
        for name, file in self._files.items():
            file.truncate(state["offsets"][name])
        self._rows, self._ready = state["rows"], True
        self._wandb.errors.update(state["wandb_errors"])
        if self._health:
            self._health.load_state_dict(state["health"])
        self._terminal.view.load_state_dict(state["view"])

    def close(self, status: str, next_step: str = "") -> None:
        """End the views and close the files. A second call does nothing.

        Args:
            status: "finished", "failed", "interrupted", or "running" for a pause.
            next_step: The command to try next, shown last; empty for none.

        Raises:
            ValueError: Another status.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is not one of {', '.join(STATUSES)}")
        if self._closed:
            return
        self._closed = True
        for file in self._files.values():
            file.close()
        try:
            self._terminal.close(status, next_step, self.alerts)
        finally:
            self._wandb.finish(1 if status == "failed" else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("finished")
        else:
            self.close("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if not self._ready:
            raise ValueError(
                f"{self._files[name].path.parent} holds the rows of another run: "
                "continue it from its checkpoint, or choose another folder"
            )
        self._files[name].append(plain(row))

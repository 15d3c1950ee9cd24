"""Weights & Biases as a view of metrics.jsonl: it may fail, it never stops or delays training for long."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lore.config.options import LoggerOptions
from lore.metrics.health import ERROR, Alert

MODES = ("auto", "offline", "disabled")
INIT_S = 10.0  # seconds to reach the server before the run is recorded offline
FINISH_S = 30.0  # seconds to upload what is left at the end
OFF = "W&B is off from here on"
OFFLINE = "recording offline instead"


class WandbSink:
    """Sends the rows of metrics.jsonl to W&B, from the first row on.

    Online when W&B itself finds a key (WANDB_API_KEY, netrc) and its server answers in time, else offline
    under run_dir/wandb; WANDB_MODE=offline or disabled is respected. It never asks for anything. A failure
    is said in one line and counted in `errors` (exception class -> times). One to go online leads to an
    offline run; any other turns W&B off for the rest of the process.

    Task, arm and adviser are tags of the run, before those of the options; the arm is its job type too.

    The number of the row is W&B's step, env_step the x axis of every chart. run_dir/wandb_id.txt keeps the
    id. A resumed run is completed from metrics.jsonl: rows that the server has are not sent again, rows it
    lacks are. Offline, where W&B ignores `resume`, the new segment holds the whole history and the older
    ones move to run_dir/wandb/replaced, where `wandb sync` does not look: no gap and no duplicate.
    """

    def __init__(
        self,
        run_dir: Path,
        options: LoggerOptions,
        cfg: Mapping[str, Any],
        say: Callable[[str], None],
        arm: str = "",
    ) -> None:
        """Prepare the sink; W&B starts with the first row.

        Args:
            run_dir: The run folder.
            options: Options of the group `logger`.
            cfg: The resolved config, for W&B to show; env.id and llm.provider are read.
            say: Prints one line.
            arm: Arm of the study; empty where there is none.

        Raises:
            ValueError: The mode is unknown.
        """
        if options.wandb not in MODES:
            raise ValueError(f"logger.wandb={options.wandb}: use one of {', '.join(MODES)}")
        self._dir, self._options, self._cfg, self._say = run_dir, options, dict(cfg), say
        self._arm, self._online = arm, False
        self._run: Any = None
        self._off = options.wandb == "disabled"
        self._first = 0  # rows before this number are with W&B already
        self._broken = False  # a run failed: its service is not fit for the next job of this process
        self.errors: dict[str, int] = {}

    def row(self, number: int, row: Mapping[str, Any], alerts: Sequence[Alert] = ()) -> None:
        """Send a row of metrics.jsonl; the first call starts W&B.

        Args:
            number: Number of the row in the file, from 0.
            row: Metric -> number, list of numbers, or None.
            alerts: Alerts that the row gave rise to. An online run sends them on, to wherever the user has
                W&B send alerts.
        """
        if not self._off and self._run is None:
            self._start(number)
        if self._run is not None and number >= self._first:
            self._guard("logging a row", lambda: self._log(number, row))
            for alert in alerts if self._online else ():
                if self._run is not None:
                    self._guard("an alert", partial(self._alert, alert))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Put the values that are numbers or texts into the run's summary.

        Args:
            values: As `make_summary` returns them.
        """
        flat = {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}
        if self._run is not None:
            self._guard("the summary", lambda: self._run.summary.update(flat))

    def finish(self, exit_code: int) -> None:
        """Close the run, and wait at most FINISH_S seconds for uploads.

        Args:
            exit_code: 0 where the run has not failed, else 1.
        """
        run, self._run, self._off = self._run, None, True
        if run is not None:
            self._guard("finishing", lambda: run.finish(exit_code=exit_code))
        if self._broken:
            self._broken = False
            self._guard("ending", lambda: importlib.import_module("wandb").teardown(exit_code=1), quiet=True)

    def _start(self, number: int) -> None:
        before = dict(self.errors)
        online = self._options.wandb == "auto" and self._guard("going online", self._go_online, then=OFFLINE)
        if not online and self.errors != before:
            # The service still holds the id of the run that did not come up.
            self._guard(
                "stopping the service", lambda: importlib.import_module("wandb").teardown(), quiet=True
            )
        if not online and not self._off:
            self._guard("starting offline", lambda: self._init("offline"))
        if self._run is not None and self._first < number:
            self._guard("completing the resumed run", lambda: self._catch_up(number))

    def _go_online(self) -> None:
        """Start online if there is a key and the environment does not say otherwise."""
        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "disabled":
            self._off = True
        if mode not in ("online", "run", "shared"):
            return
        wandb = _silent_wandb()
        if wandb.login(prompt=False, verify=False):
            self._init("online")

    def _init(self, mode: str) -> None:
        wandb = _silent_wandb()
        if mode == "offline":
            self._set_aside()
        self._run = wandb.init(
            project=self._options.project,
            group=self._options.group,
            job_type=self._arm or None,
            tags=self._tags(),
            name=self._dir.name,
            id=self._id(),
            dir=str(self._dir),
            config=self._cfg,
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_S, finish_timeout=FINISH_S),
        )
        self._online = mode == "online"
        self._first = self._run.starting_step
        self._run.define_metric("env_step")
        self._run.define_metric("*", step_metric="env_step")

    def _tags(self) -> list[str]:
        tags = [self._cfg["env"]["id"], self._arm, self._cfg["llm"]["provider"], *self._options.tags]
        return list(dict.fromkeys(tag for tag in tags if tag))

    def _id(self) -> str:
        path = self._dir / "wandb_id.txt"
        if not path.exists():
            path.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()

    def _set_aside(self) -> None:
        for segment in sorted((self._dir / "wandb").glob(f"*run-*-{self._id()}")):
            replaced = segment.parent / "replaced"
            replaced.mkdir(exist_ok=True)
            segment.rename(replaced / f"{segment.name}.{len(list(replaced.iterdir()))}")

    def _catch_up(self, number: int) -> None:
        with (self._dir / "metrics.jsonl").open(encoding="utf-8") as file:
            for known, line in enumerate(itertools.islice(file, number)):
                if known >= self._first:
                    self._log(known, json.loads(line))

    def _log(self, number: int, row: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        values = {name: value for name, value in row.items() if value is not None}
        for name, value in values.items():
            if isinstance(value, list):
                edges = list(range(len(value) + 1))
                values[name] = wandb.Histogram(np_histogram=([float(v or 0.0) for v in value], edges))
        self._run.log(values, step=number, commit=True)

    def _alert(self, alert: Alert) -> None:
        text = f"{alert.line(verbose=True)}\nat environment step {alert.env_step} of {self._dir}"
        level = "ERROR" if alert.level == ERROR else "WARN"
        self._run.alert(f"LoRe: {alert.name}", text, level=level)

    def _guard(self, doing: str, call: Callable[[], Any], *, then: str = OFF, quiet: bool = False) -> bool:
        """The one place that meets W&B's failures. True when `call` went well and there is a run.

        Whatever W&B raises is counted by its class: its errors share no base (a dead service is a plain
        Exception, a full disk an OSError), and none of them is worth a run. KeyboardInterrupt and SystemExit
        pass. The run is closed and dropped; W&B stays off unless `then` says what comes instead.
        """
        try:
            call()
        except Exception as error:  # noqa: BLE001 - counted by kind, see above
            kind = type(error).__name__
            self.errors[kind] = self.errors.get(kind, 0) + 1
            if not quiet:
                reason = next(iter(str(error).splitlines()), "no reason given")
                self._say(
                    f"W&B: {doing} failed ({kind}: {reason}); {then}. metrics.jsonl is complete without it."
                )
            self._off = self._off or then == OFF
            run, self._run = self._run, None
            if run is not None:
                self._broken = True
                self._guard("finishing", lambda: run.finish(exit_code=1), then=then, quiet=True)
            return False
        return self._run is not None


def _silent_wandb() -> Any:
    """The package, told not to print: init's own setting is too late for what it says of other packages."""
    wandb = importlib.import_module("wandb")
    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb

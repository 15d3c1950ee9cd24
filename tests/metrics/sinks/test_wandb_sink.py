import json
import os
import shutil
import subprocess
import sys
import time
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lore.config.options import Config, EnvOptions, LoggerOptions, RunOptions
from lore.metrics.logger import RunLogger
from lore.metrics.sinks.wandb import WandbSink

CFG = asdict(Config(env=EnvOptions(id="MiniGrid-Empty-5x5-v0"), run=RunOptions(steps=1000)))
WELL = {"health/alerts": 0}


class ServiceDied(Exception):
    """As W&B's own: a plain Exception."""


class FakeRun:
    def __init__(self, fake: "FakeWandb", starting_step: int) -> None:
        self.fake, self.starting_step = fake, starting_step
        self.summary: dict[str, Any] = {}
        self.rows: list[tuple[int, dict]] = []
        self.exit_code: int | None = None
        self.alerts: list[tuple[str, str, str]] = []

    def alert(self, title: str, text: str, level: str) -> None:
        self.fake.fail("alert")
        self.alerts.append((title, text, level))

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.fake.metrics.append((name, step_metric))

    def log(self, row: dict, step: int, commit: bool) -> None:
        assert commit
        self.fake.fail("log")
        self.rows.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.fake.fail("finish")
        self.exit_code = exit_code


class FakeWandb(types.ModuleType):
    """Records what it is asked; raises `errors[place]` at init (by mode), login, log or finish."""

    def __init__(self, key: bool = False, starting_step: int = 0, **errors: BaseException) -> None:
        super().__init__("wandb")
        self.key, self.starting_step, self.errors = key, starting_step, errors
        self.torn_down = 0
        self.held: set[str] = set()  # ids the service knows
        self.inits: list[dict] = []
        self.runs: list[FakeRun] = []
        self.metrics: list[tuple[str, str | None]] = []

    def fail(self, place: str) -> None:
        if place in self.errors:
            raise self.errors[place]

    def Settings(self, **settings: Any) -> dict:
        return settings

    def setup(self, settings: dict) -> None:
        assert settings == {"silent": True}

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify
        self.fail("login")
        return self.key

    def init(self, **arguments: Any) -> FakeRun:
        self.inits.append(arguments)
        if arguments["id"] in self.held:
            raise ServiceDied("run ID is in use")  # as W&B 0.31 says after an init that timed out
        self.held.add(arguments["id"])
        self.fail(arguments["mode"])
        self.runs.append(FakeRun(self, self.starting_step if arguments["mode"] == "online" else 0))
        return self.runs[-1]

    def teardown(self, exit_code: int = 0) -> None:
        self.torn_down += 1
        self.held.clear()
        self.fail("teardown")

    def Histogram(self, np_histogram: tuple) -> tuple:
        return ("histogram", *np_histogram)


def install(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> FakeWandb:
    fake = FakeWandb(**arguments)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def logger(path: Path, mode: str = "auto", arm: str = "", tags: tuple[str, ...] = ()) -> RunLogger:
    return RunLogger(
        path, LoggerOptions(wandb=mode, terminal="off", group="g", tags=list(tags)), CFG, arm=arm
    )


def test_nothing_is_imported_when_disabled(no_wandb: None, tmp_path: Path) -> None:
    with logger(tmp_path, "disabled") as log:
        log.write_metrics(1, {})
    assert not (tmp_path / "wandb_id.txt").exists() and log.wandb_errors == {}


def test_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"logger\.wandb=online"):
        logger(tmp_path, "online")


def test_offline_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = install(monkeypatch)
    with logger(tmp_path) as log:
        assert not fake.inits  # only the first row starts it
        log.write_metrics(100, {"x": 1.0, "bad": float("nan"), "actions": [1.0, 3.0]})
        log.write_summary({"auc": 0.5, "eval_curve": [[1, 2.0]], "steps_to_90": None})
    (init,) = fake.inits
    assert init["mode"] == "offline" and init["resume"] is None and init["dir"] == str(tmp_path)
    assert init["config"] == CFG and init["project"] == "lore" and init["group"] == "g"
    assert init["id"] == (tmp_path / "wandb_id.txt").read_text().strip()
    settings = init["settings"]
    assert settings["silent"] and settings["init_timeout"] <= 30 and settings["finish_timeout"] <= 60
    assert fake.metrics == [("env_step", None), ("*", "env_step")]
    (run,) = fake.runs
    histogram = ("histogram", [1.0, 3.0], [0, 1, 2])
    assert run.rows == [(0, {"env_step": 100, "x": 1.0, "actions": histogram, **WELL})]
    assert run.summary == {"auc": 0.5} and run.exit_code == 0


def test_online_with_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = install(monkeypatch, key=True)
    with logger(tmp_path) as log:
        log.write_metrics(100, {})
    assert [(init["mode"], init["resume"]) for init in fake.inits] == [("online", "allow")]


def test_group_arm_and_tags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = install(monkeypatch)
    for name, arm in {"lettered": "E", "unnamed": ""}.items():
        (tmp_path / name).mkdir()
        with logger(tmp_path / name, arm=arm, tags=("mine", "E") if arm else ()) as log:
            log.write_metrics(100, {})
    lettered, unnamed = fake.inits
    assert lettered["group"] == "g" and lettered["job_type"] == "E"
    assert lettered["tags"] == ["MiniGrid-Empty-5x5-v0", "E", "scripted", "mine"]
    assert unnamed["job_type"] is None and unnamed["tags"] == ["MiniGrid-Empty-5x5-v0", "scripted"]


SICK = {"policy/entropy": 0.25, "success/windowed": 0.0, "loss/actor": float("nan")}


def test_alerts_of_an_online_run_are_sent_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = install(monkeypatch, key=True)
    with logger(tmp_path) as log:
        log.write_metrics(100, SICK)
        log.write_metrics(200, SICK)
    (run,) = fake.runs
    low, lost = run.alerts
    assert low[0] == "LoRe: low_entropy" and low[2] == "WARN" and lost[2] == "ERROR"
    assert low[1].startswith("[WARNING] Low entropy detected: 0.25 < 0.5\n  likely cause: ")
    assert low[1].endswith(f"at environment step 100 of {tmp_path}")
    assert [(step, row["health/alerts"]) for step, row in run.rows] == [(0, 2), (1, 2)]


@pytest.mark.parametrize(("key", "known"), [(False, 0), (True, 5)])
def test_no_alert_offline_nor_for_a_row_the_server_has(
    key: bool, known: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = install(monkeypatch, key=key, starting_step=known)
    with logger(tmp_path) as log:
        log.write_metrics(100, SICK)
    assert log.alerts and fake.runs[0].alerts == []


def test_an_alert_that_fails_is_said_counted_and_survived(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, key=True, alert=ServiceDied("gone"))
    with logger(tmp_path) as log:
        log.write_metrics(100, SICK)
        log.write_metrics(200, {})
    assert log.wandb_errors == {"ServiceDied": 1}
    assert "an alert failed (ServiceDied: gone)" in capsys.readouterr().err
    assert len((tmp_path / "alerts.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(("mode", "expected"), [("offline", ["offline"]), ("disabled", [])])
def test_the_environment_may_keep_auto_from_going_online(
    mode: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = install(monkeypatch, key=True)
    monkeypatch.setenv("WANDB_MODE", mode)
    with logger(tmp_path) as log:
        log.write_metrics(100, {})
    assert [init["mode"] for init in fake.inits] == expected


@pytest.mark.parametrize("place", ["online", "login"])
def test_no_way_online_means_offline_and_one_line(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = install(monkeypatch, key=True, **{place: ConnectionError("no route\nsecond line")})
    with logger(tmp_path) as log:
        log.write_metrics(100, {})
        log.write_metrics(200, {})
    assert [step for step, _ in fake.runs[0].rows] == [0, 1]
    (line,) = capsys.readouterr().err.splitlines()
    assert "ConnectionError: no route)" in line and "offline" in line
    assert log.wandb_errors == {"ConnectionError": 1}


@pytest.mark.parametrize(
    "error", [OSError(122, "Disk quota exceeded"), ServiceDied("gone"), ConnectionError()]
)
@pytest.mark.parametrize("place", ["offline", "log"])
def test_a_failure_is_said_once_counted_and_survived(
    place: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = install(monkeypatch, **{place: error})
    with logger(tmp_path) as log:
        for step in range(5):
            log.write_metrics(step, {})
        log.write_summary({"auc": 1.0})
        state = log.state_dict()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert type(error).__name__ in line and "off from here on" in line
    assert log.wandb_errors == state["wandb_errors"] == {type(error).__name__: 1}
    assert len(fake.inits) == 1
    assert [run.exit_code for run in fake.runs] == ([] if place == "offline" else [1])
    assert fake.torn_down == (0 if place == "offline" else 1)

    again = logger(tmp_path)
    again.load_state_dict(state)
    assert again.wandb_errors == {type(error).__name__: 1}


def test_a_failure_of_finish_is_said_and_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, finish=TimeoutError("slow"))
    with logger(tmp_path) as log:
        log.write_metrics(1, {})
    assert "TimeoutError: slow" in capsys.readouterr().err and log.wandb_errors == {"TimeoutError": 1}


def test_a_dead_service_that_cannot_finish_either_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, log=ServiceDied("gone"), finish=BrokenPipeError("gone"), teardown=OSError("gone"))
    with logger(tmp_path) as log:
        log.write_metrics(1, {})
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert log.wandb_errors == {"ServiceDied": 1, "BrokenPipeError": 1, "OSError": 1}


@pytest.mark.parametrize("place", ["offline", "log", "finish"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass(
    place: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, **{place: error()})
    log = logger(tmp_path)
    with pytest.raises(error):
        log.write_metrics(1, {})
        log.close("finished")
    assert log.wandb_errors == {}


def test_without_the_package(no_wandb: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logger(tmp_path, "offline") as log:
        log.write_metrics(1, {})
    assert log.wandb_errors == {"ModuleNotFoundError": 1} and "ModuleNotFoundError" in capsys.readouterr().err


def test_a_raise_does_not_leak_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = install(monkeypatch)
    with pytest.raises(ZeroDivisionError), logger(tmp_path) as log:
        log.write_metrics(1, {})
        raise ZeroDivisionError
    assert fake.runs[0].exit_code == 1


@pytest.mark.parametrize(("known", "sent"), [(0, [0, 1, 2, 3, 4]), (2, [2, 3, 4]), (4, [4]), (9, [])])
def test_a_resumed_online_run_sends_what_the_server_lacks(
    known: int, sent: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with logger(tmp_path, "disabled") as log:
        for step in range(3):
            log.write_metrics(step, {})
        state = log.state_dict()
        log.write_metrics(3, {})
    fake = install(monkeypatch, key=True, starting_step=known)
    with logger(tmp_path) as log:
        log.load_state_dict(state)
        log.write_metrics(3, {})
        log.write_metrics(4, {})
    assert [(step, row["env_step"]) for step, row in fake.runs[0].rows] == [(step, step) for step in sent]


def history(segment: Path) -> list[dict]:
    """Rows of an offline segment, read back by W&B itself."""
    wandb = shutil.which("wandb", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert wandb is not None
    command = [wandb, "leet", "inspect", "--json", str(segment)]
    lines = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    return [record["history"]["item"] for record in map(json.loads, lines) if record["type"] == "history"]


@pytest.mark.slow
def test_a_real_offline_run_resumed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def segments() -> list[Path]:
        return sorted((tmp_path / "wandb").glob("offline-run-*"))

    with logger(tmp_path) as log:
        for step in (100, 200):
            log.write_metrics(step, {"x": step / 10, "bad": float("nan"), "actions": [1.0, 2.0]})
        state = log.state_dict()
        log.write_metrics(300, {"x": 30.0})
        log.write_summary({"auc": 0.5})
    assert [row["env_step"] for row in history(segments()[0])] == [100, 200, 300]
    time.sleep(1.1)  # the folder of a segment is named by the second
    with logger(tmp_path) as log:
        log.load_state_dict(state)
        log.write_metrics(300, {"x": 30.0})
        log.write_metrics(400, {"x": 40.0})
    assert log.wandb_errors == {} and len(segments()) == 1
    rows = history(segments()[0])
    assert [(row["_step"], row["env_step"], row["x"]) for row in rows] == [
        (0, 100, 10), (1, 200, 20), (2, 300, 30), (3, 400, 40),
    ]  # fmt: skip
    assert rows[0]["actions.values"] == [1, 2] or rows[0]["actions"]["values"] == [1, 2]
    assert len(list((tmp_path / "wandb" / "replaced").iterdir())) == 1
    out, err = capfd.readouterr()
    assert out == "" and err == ""


@pytest.mark.slow
def test_two_real_runs_in_one_process_the_first_of_which_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, step in {"first": 100, "second": 200}.items():
        (tmp_path / name).mkdir()
        try:
            with logger(tmp_path / name) as log:
                log.write_metrics(step, {"x": 1.0})
                if name == "first":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert log.wandb_errors == {}
        (segment,) = (tmp_path / name / "wandb").glob("offline-run-*")
        assert [(row["_step"], row["env_step"]) for row in history(segment)] == [(0, step)]
    first, second = ((tmp_path / name / "wandb_id.txt").read_text() for name in ("first", "second"))
    assert first != second and capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_real_run_beside_an_llm_client_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "anthropic.py").touch()  # W&B advertises a package of its own where it sees this one
    script = (
        "import anthropic, sys\nfrom pathlib import Path\nfrom dataclasses import asdict\n"
        "from lore.metrics import RunLogger\nfrom lore.config.options import Config, LoggerOptions\n"
        "options = LoggerOptions(wandb='offline', terminal='off')\n"
        "with RunLogger(Path(sys.argv[1]), options, asdict(Config())) as log:\n    log.write_metrics(1, {})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_sink_without_rows_never_starts(no_wandb: None, tmp_path: Path) -> None:
    said: list[str] = []
    sink = WandbSink(tmp_path, LoggerOptions(), CFG, said.append)
    sink.summary({"a": 1})
    sink.finish(0)
    assert not said and not sink.errors

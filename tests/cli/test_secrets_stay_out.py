"""A marked secret, wherever a user may put it, reaches no file, no name of a file and no terminal."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests import runs
from tests.llm.messages_server import KEY, serve

SECRET = "sk-ant-MARKED-0123456789"
COMMANDS = ("train", "probe", "record", "eval", "bench")
PLACES = {
    "user and password": "http://me:{}@127.0.0.1:9",
    "user": "http://{}@127.0.0.1:9",
    "no scheme": "me:{}@127.0.0.1:9",
    "path": "http://127.0.0.1:9/v1/{}/messages",
    "query": "http://127.0.0.1:9/v1?key={}",
    "fragment": "https://127.0.0.1:9/v1#{}",
    "password with a blank": "http://me:x {} y@127.0.0.1:9",
    "alone": "{}",
}
OPTIONS = (
    "llm.base_url",
    "llm.key_variable",
    "llm.model",
    "logger.project",
    "logger.group",
    "run.dir",
    "env.id",
)
OPTIONS += (
    "+logger.tags",
    "llm.ledger",
    "llm.dataset",
    "gate",
    "no.such.key",
    "resume",
    "out",
    "run",
    "--config-dir",
)


def left_behind(folder: Path) -> list[str]:
    """Files and folders whose name or content shows the secret."""
    found = [path for path in folder.rglob("*") if "MARKED" in path.name]
    found += [path for path in folder.rglob("*") if path.is_file() and b"MARKED" in path.read_bytes()]
    return [str(path) for path in found]


@pytest.mark.parametrize("trial", range(40))
def test_a_secret_on_a_command_line_is_refused_before_anything_is_written(
    trial: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(trial)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    place = list(PLACES)[trial % len(PLACES)]
    value = PLACES[place].format(SECRET)
    option = "llm.base_url" if draw.random() < 0.4 else draw.choice(OPTIONS)
    command = draw.choice(COMMANDS) if draw.random() < 0.5 else "train"
    arguments = [f"{option}={value}", *draw.sample(["-m", "gate=none", "llm=anthropic", "seed=1,2"], 2)]
    draw.shuffle(arguments)
    if draw.random() < 0.2:
        arguments = [value, *arguments[1:]]
    if command == "record":
        arguments = ["export", *arguments]
    main = importlib.import_module(f"lore.cli.{command}").main
    assert main(arguments) == 2
    shown = capfd.readouterr()
    assert "MARKED" not in shown.out + shown.err and shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_in_a_file_of_options_is_refused_too(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stored run's config.yaml, as a stranger may have written it."""
    train = importlib.import_module("lore.cli.train")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    (tmp_path / "run").mkdir()
    value = json.dumps(PLACES[place].format(SECRET))
    for option in ("base_url", "model"):
        (tmp_path / "run" / "config.yaml").write_text(f"llm:\n  {option}: {value}\n")
        assert train.main([f"resume={tmp_path / 'run'}"]) == 2
        shown = capfd.readouterr()
        assert "MARKED" not in shown.out + shown.err
    assert list(work.iterdir()) == []
    assert {p.name for p in (tmp_path / "run").iterdir()} <= {"config.yaml", ".lock"}


SURROUNDINGS: dict[str, dict[str, str]] = {
    "a socks proxy": {"ALL_PROXY": "socks5://me:MARKED-0123@127.0.0.1:9"},
    "a proxy that is not there": {"HTTP_PROXY": "http://me:MARKED-0123@127.0.0.1:1", "NO_PROXY": ""},
    "an answer with the key": {},
    "a refusal with the key": {},
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_whole_run_keeps_what_it_meets_to_itself(name: str, tmp_path: Path) -> None:
    """With W&B, the most talkative log level, and a server that says the key back."""
    fault = {"an answer with the key": "echo_key_in_answer", "a refusal with the key": "echo_key"}.get(
        name, ""
    )
    unset = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    environment = {k: v for k, v in os.environ.items() if k.upper() not in unset and k != "WANDB_MODE"}
    environment |= {"ANTHROPIC_API_KEY": KEY, "LORE_DEBUG": "1", "ANTHROPIC_LOG": "debug"} | SURROUNDINGS[
        name
    ]
    with serve() as server:
        options = [
            *runs.TINY,
            "agent=prior",
            "llm=anthropic",
            f"llm.base_url={server.url(fault)}",
            f"llm.cache={tmp_path / 'answers.sqlite'}",
            "llm.triggers=false",
            "llm.cooldown_steps=1",
            "llm.breaker_failures=100",
            "logger.wandb=offline",
            "logger.terminal=plain",
            "run.steps=60",
            "run.eval_every=60",
            f"run.dir={tmp_path / 'run'}",
        ]
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from lore.cli.train import main; sys.exit(main())", *options],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert "MARKED" not in done.stdout + done.stderr
    asks = [json.loads(line) for line in (tmp_path / "run" / "llm.jsonl").read_text().splitlines()]
    assert asks
    assert left_behind(tmp_path) == []
    if SURROUNDINGS[name]:
        said = (done.stdout + done.stderr).count("no_client: ")
        assert said == (name == "a socks proxy")
        assert all(ask["usd"] == 0.0 for ask in asks)

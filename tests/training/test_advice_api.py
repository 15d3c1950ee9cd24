"""lore-train with an adviser behind a real socket: the whole command, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests import runs
from tests.llm.messages_server import KEY, Server, serve

MARK = b"MARKED"
COMMAND = ["-c", "import sys; from lore.cli.train import main; sys.exit(main())"]
OPTIONS = [
    "agent=prior",
    "llm=anthropic",
    "env=doorkey5",
    "env.max_steps=30",
    "logger.wandb=offline",
    "logger.terminal=plain",
    "run.steps=120",
    "run.eval_every=60",
    "run.eval_episodes=3",
    "run.log_every=20",
    "run.save_every=60",
    "llm.triggers=false",
    "llm.api_retries=0",
    "llm.budget_usd=5",
]


def start(folder: Path, server: Server, *overrides: str) -> subprocess.Popen[bytes]:
    where = [
        f"run.dir={folder / 'run'}",
        f"llm.cache={folder / 'answers.sqlite'}",
        f"llm.base_url={server.url()}",
    ]
    return subprocess.Popen(
        [sys.executable, *COMMAND, *OPTIONS, *where, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"ANTHROPIC_API_KEY": KEY, "LORE_DEBUG": "1"},
    )


def asks(folder: Path) -> list[dict]:
    path = folder / "run" / "llm.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_is_advised_over_a_real_socket_and_the_key_is_nowhere(tmp_path: Path) -> None:
    with serve() as server:
        child = start(tmp_path, server)
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0, output.decode()
        seen = [one for one in server.seen() if one["path"].startswith("/v1/messages")]
    told = asks(tmp_path)
    summary = runs.summary(tmp_path / "run")
    assert summary["llm_calls_used"] == len(told) == len(seen) > 5
    last = [row for row in runs.rows(tmp_path / "run") if "llm/tokens" in row][-1]
    assert last["llm/tokens"] == sum(one["tokens"] for one in told) > 100 * len(told)
    assert summary["llm_cost_usd"] == last["llm/cost_usd"] > 0
    assert last["llm/source/answer"] > 0.5  # the server advises the first action, and that was followed
    assert last["policy/action_histogram"][0] > 0.5
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert MARK not in output
    assert [path for path in files if MARK in path.read_bytes()] == []


def test_a_server_that_dies_half_way_costs_its_advice_and_no_more(tmp_path: Path) -> None:
    with serve() as server:
        child = start(tmp_path, server, "llm.breaker_failures=3", "llm.breaker_pause=20")
        until = time.monotonic() + 200
        while len(asks(tmp_path)) < 4 and time.monotonic() < until:
            time.sleep(0.01)
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 0, output.decode()
    last = [row for row in runs.rows(tmp_path / "run") if "llm/tokens" in row][-1]
    assert last["env_step"] == 120
    assert last["llm/failure/connection_refused"] >= 3
    assert last["llm/outcome/breaker"] > 0
    assert b"[ERROR] LLM request failed: connection_refused" in output
    assert MARK not in output

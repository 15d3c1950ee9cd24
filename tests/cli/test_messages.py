"""What a newcomer types wrong: one line that names the key and a remedy, exit status 2, nothing written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {f"lore-{name}": f"lore.cli.{name}" for name in ("train", "eval", "bench", "probe", "record")}

TABLE = [
    # command line, key, a part of the remedy
    ("lore-train size=99", "size", "tiny"),
    ("lore-train env=doorkey7", "env", "doorkey8"),
    ("lore-train gate=fixde", "gate", "did you mean fixed"),
    ("lore-train llm=antropic", "llm", "did you mean anthropic"),
    ("lore-train llm.provider=antropic", "llm.provider", "did you mean anthropic"),
    ("lore-train gate.name=fixd", "gate.name", "did you mean fixed"),
    ("lore-train +preset=debgu", "preset", "did you mean debug"),
    ("lore-train preset=debug", "preset", "+preset=NAME"),
    ("lore-train experiment=half_wrong", "experiment", "+experiment=NAME"),
    ("lore-train +experiment=none_such", "experiment", "--config-dir"),
    ("lore-train evn=doorkey5", "evn", "did you mean env=NAME"),
    ("lore-train ablaton=D", "ablaton", "+ablation=NAME"),
    ("lore-train +evn=doorkey5", "evn", "did you mean env=NAME"),
    ("lore-train seeed=1", "seeed", "did you mean seed"),
    ("lore-train steps=100", "steps", "run.steps"),
    ("lore-train run.stps=100", "run.stps", "run.steps"),
    ("lore-train llm.comptence=1", "llm.comptence", "llm.competence"),
    ("lore-train run.steps", "run.steps", "run.steps=VALUE"),
    ("lore-train run.steps=1.5", "run.steps", "whole number"),
    ("lore-train run.steps=many", "run.steps", "whole number, not 'many'"),
    ("lore-train run.steps=1e-3", "run.steps", "whole number"),
    ("lore-train agent.lr=fast", "agent.lr", "a number"),
    ("lore-train logger.tags=one", "logger.tags", "[first,second]"),
    ("lore-train -m seed=0,1 hydra.launcher.n_jobs=2", "hydra.launcher.n_jobs", "hydra/launcher=parallel"),
    ("lore-eval run=latest", "run", "there is no run in 'outputs'"),
    ("lore-train resume=", "resume", "resume=RUN_DIR"),
    ("lore-train resume=nowhere", "resume", "nowhere"),
    ("lore-train resume=~nobody-here/run", "resume", "write the path out"),
    ("lore-train -m resume=x", "resume", "leave out -m"),
    ("lore-train replay.capacity=10", "replay.capacity", "replay.capacity=264"),
    ("lore-train replay.capacity=200", "agent.batch_size", "agent.batch_size=6"),
    ("lore-train agent.seq_len=1", "agent.seq_len", "at least 2"),
    ("lore-train gate=none prior_net.enabled=true", "prior_net.enabled", "gate=lore"),
    ("lore-train seed=0,1", "seed", "-m"),
    ("lore-train env=doorkey5,doorkey8", "env", "-m"),
    ("lore-train run.dir=", "run.dir", "run.dir=runs/first"),
    ("lore-train run.dir=null", "run.dir", "text"),
    ("lore-train run.dir=a\nb", "run.dir", "control character"),
    ("lore-train run.dir=~nobody-here/x", "run.dir", "write the path out"),
    ("lore-train run.dir=${nothing}", "run.dir", "names nothing"),
    ("lore-train -m seed=0,1 run.dir=here", "run.dir", "hydra.sweep.dir=FOLDER"),
    ("lore-train -m seed=0,1 size=99", "size", "tiny"),
    ("lore-train -m agent.batch_size=4,10000", "agent.batch_size", "replay.capacity"),
    ("lore-train =3", "command line", "KEY=VALUE"),
    ("lore-train +", "command line", "KEY=VALUE"),
    ("lore-train doorkey8", "doorkey8", "did you mean env=doorkey8"),
    ("lore-train debug", "debug", "did you mean +preset=debug"),
    ("lore-train llm=null", "llm", "llm=NAME"),
    ("lore-train env=", "env", "env=NAME"),
    ("lore-train +gate=none", "gate", "without +"),
    ("lore-train +preset=debug +preset=debug", "preset", "given twice"),
    ("lore-train llm.prices.input=1", "llm.prices.input", "--config-dir=FOLDER llm=NAME"),
    ("lore-train llm.prices={input:1}", "llm.prices", "--config-dir=FOLDER llm=NAME"),
    ("lore-train hydra.searchpath=[x]", "hydra.searchpath", "--config-dir"),
    ("lore-train hydra/launcher=paralel", "hydra/launcher", "did you mean parallel"),
    ("lore-train seed=1e99", "seed", "below"),
    ("lore-train --config-name=foo", "--config-name", "+experiment=NAME"),
    ("lore-train --config-path=foo", "--config-path", "--config-dir"),
    ("lore-train -cn foo", "-cn", "+experiment=NAME"),
    ("lore-train --config-dir=nowhere", "--config-dir", "folder"),
    ("lore-train --config-dir", "--config-dir", "needs a folder"),
    ("lore-train --info", "--info", "--cfg job"),
    ("lore-train --hydra-help", "--hydra-help", "--help"),
    ("lore-train --experimental-rerun=x", "--experimental-rerun", "resume=RUN_DIR"),
    ("lore-train --shell-completion", "--shell-completion", "there is none"),
    ("lore-train --cfg=all", "--cfg", "--cfg job"),
    ("lore-train --mutlirun", "--mutlirun", "did you mean --multirun"),
    ("lore-train --seed=3", "--seed", "seed=VALUE"),
    ("lore-train --run.steps 3", "--run.steps", "run.steps=VALUE"),
    ("lore-bench agent=random", "agent", "agent=dreamer"),
    ("lore-bench env=doorkey5", "env", "does not read it"),
    ("lore-bench run.steps=3", "run.steps", "does not read it"),
    ("lore-bench logger.wandb=auto", "logger.wandb", "does not read it"),
    ("lore-bench -m seed=0,1", "-m", "takes --config-dir"),
    ("lore-bench profil=true", "profil", "did you mean profile"),
    ("lore-bench profile=maybe", "profile", "true or false, not 'maybe'"),
    ("lore-probe run.steps=3", "run.steps", "does not read it"),
    ("lore-probe gate=none", "gate", "does not read it"),
    ("lore-probe situtions=3", "situtions", "did you mean situations"),
    ("lore-probe llm=nobody", "llm", "scripted"),
    ("lore-record", "command", "export"),
    ("lore-record exprt", "exprt", "export"),
    ("lore-record export agent.lr=1", "agent.lr", "does not read it"),
    ("lore-record stats datset=x", "datset", "did you mean dataset"),
    ("lore-record import env=doorkey5", "env", "prompts"),
    ("lore-eval", "run", "run=outputs"),
    ("lore-eval run=nowhere", "run", "not a run folder"),
    ("lore-eval run=nowhere episodes=few", "episodes", "whole number, not 'few'"),
    ("lore-eval rnu=x", "rnu", "did you mean run"),
    ("lore-eval run=nowhere seed=1 env=doorkey5", "env", "lore-eval takes"),
    ("lore-eval -m run=nowhere", "-m", "takes --help"),
]


def start(command: str, *arguments: str, cwd: Path, then: str = "") -> subprocess.CompletedProcess[str]:
    """A command as a process of its own; then: what it checks before it leaves."""
    code = f"import sys, {MODULES[command]} as c; s = c.main(); {then or 'pass'}; sys.exit(s)"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HOME": str(cwd), "LORE_DEBUG": "0"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LORE_DEBUG", raising=False)
    return tmp_path


@pytest.mark.parametrize(("line", "key", "remedy"), TABLE, ids=[repr(row[0]) for row in TABLE])
def test_a_mistake_names_its_key_and_the_remedy(
    main: Path, capsys: pytest.CaptureFixture[str], line: str, key: str, remedy: str
) -> None:
    from importlib import import_module

    command, *arguments = line.split(" ")
    assert import_module(MODULES[command]).main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and captured.out == "", captured
    said = re.fullmatch(rf"{command}: (command line|\S+): (.*)", lines[0])
    assert said and said[1] == key, lines[0]
    assert remedy in said[2]
    assert not list(main.rglob("*"))


def test_no_mistake_of_the_table_needs_torch(tmp_path: Path) -> None:
    """All lines in one process, so that this stays quick: nothing that any of them imports is torch."""
    code = (
        "import sys, importlib, json\n"
        "for line in json.load(sys.stdin):\n"
        "    command, *arguments = line.split(' ')\n"
        "    module = importlib.import_module('lore.cli.' + command.removeprefix('lore-'))\n"
        "    assert module.main(arguments) == 2, line\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    import json

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([row[0] for row in TABLE]),
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stderr.splitlines()) == len(TABLE) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("typed", ["env.id=MiniGrid-Foo-v0", "llm=recorded", "+ablation=E llm=anthropic"])
def test_a_run_that_is_refused_is_not_announced(
    typed: str, main: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lore.cli.train import main as train

    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    assert train(["+preset=debug", *typed.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1, captured
    assert not list(main.iterdir())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("stats dataset=nowhere", "dataset: 'nowhere' cannot be used: No such file"),
        ("import prompts=a answers=b out=c license=MIT", "prompts: 'a' cannot be used: No such file"),
    ],
)
def test_a_missing_file_is_told_in_words(
    typed: str, said: str, main: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lore.cli.record import main as record

    assert record(typed.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"lore-record: {said}") and "Errno" not in captured.err, captured


def test_flags_may_stand_anywhere(main: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lore.cli.train import main as train

    for arguments in (
        ["--cfg", "job", "-m", "seed=3,4", "size=tiny"],
        ["seed=3,4", "-m", "size=tiny", "--cfg=job"],
        ["seed=3,4", "size=tiny", "--cfg", "job", "--multirun"],
    ):
        assert train(arguments) == 0
        out = capsys.readouterr().out
        assert [line for line in out.splitlines() if line.startswith("seed:")] == ["seed: 3", "seed: 4"]
    assert not list(main.iterdir())


def test_the_short_way_to_a_sweep_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "ablation"
    for typed, remedy in {
        "--config A D": "did you mean --configs",
        "--configs": "--configs A D",
        "--seed 3": "did you mean --seeds",
        "--parallel two": "a number from 1, not 'two'",
        "--sort": "--help lists them",
        "-m A": "leave it out",
    }.items():
        done = subprocess.run([str(script), *typed.split()], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "") and remedy in done.stderr, done
    assert not list(tmp_path.iterdir())

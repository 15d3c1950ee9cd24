"""Where a run goes: ~ and odd names in every option that names a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from lore.cli import train as cli
from lore.config.compose import compose
from lore.config.options import Config
from lore.config.stored import load_stored

TINY = ["+preset=debug", "env=empty5", "logger=quiet", "llm.cache=null"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, a working folder beside it, and no training."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    module = ModuleType("lore.training.trainer")
    module.__dict__["train"] = lambda cfg, run_dir: "finished"
    monkeypatch.setitem(sys.modules, "lore.training.trainer", module)
    return tmp_path / "home"


@pytest.mark.parametrize(
    "name",
    ["a b", "x=1", "it's", 'say "so"', "研究/実験", "50%,(1)[2]{3}", "a:b", "back\\slash", "#1 & co; $HOME"],
)
def test_a_run_folder_of_any_name(home: Path, name: str) -> None:
    assert cli.main([*TINY, f"run.dir={name}"]) == 0
    assert (Path.cwd() / name / "config.yaml").is_file()
    assert load_stored(Path.cwd() / name).run.dir == str(Path.cwd() / name)
    assert cli.main([f"resume={name}", "run.steps=1k"]) == 0
    assert load_stored(Path.cwd() / name).run.steps == 1000


def test_the_home_folder_is_never_a_folder_of_that_name(home: Path) -> None:
    assert cli.main([*TINY, "run.dir=~/runs/first"]) == 0
    assert cli.main([*TINY, "hydra.run.dir=~/runs/second"]) == 0
    assert cli.main(["-m", *TINY, "hydra.sweep.dir=~/sweep", "hydra.sweep.subdir=s${seed}", "seed=0,1"]) == 0
    assert cli.main(["resume=~/runs/first"]) == 0
    own = home / "conf" / "experiment"
    own.mkdir(parents=True)
    (own / "third.yaml").write_text("# @package _global_\nrun:\n  dir: ~/runs/third\n")
    assert cli.main([*TINY, "--config-dir=~/conf", "+experiment=third"]) == 0
    found = {str(path.parent.relative_to(home)) for path in home.rglob("config.yaml")}
    assert found == {"runs/first", "runs/second", "runs/third", "sweep/s0", "sweep/s1"}
    assert not list(Path.cwd().iterdir())


def test_the_home_folder_in_what_a_run_reads(home: Path) -> None:
    """Cache and ledger are made below the home folder, and a data set is looked for there."""
    from lore.base.errors import BadInput
    from lore.envs.make import make_vec
    from lore.llm.providers import build_provider
    from lore.training.build_adviser import build_adviser

    cfg: Config = compose(["llm.cache=~/answers.sqlite", "llm.ledger=~/calls.jsonl", "llm.ledger_limit=3"])
    build_adviser(cfg, make_vec(cfg.env, cfg.obs, 1, 0, split="train"), home, print)
    assert (home / "answers.sqlite").exists() and (home / "calls.jsonl").exists()
    assert not list(Path.cwd().iterdir())
    with pytest.raises(BadInput, match=r"llm\.dataset: .*home/data|llm\.dataset: .*~/data"):
        build_provider(compose(["llm=recorded", "llm.dataset=~/data"]).llm)


def test_a_sweep_says_how_its_folders_are_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-m", *TINY, "seed=0,1", "run.dir=here"]) == 2
    assert "hydra.sweep.dir=FOLDER" in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())

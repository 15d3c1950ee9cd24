"""Another family of worlds is one module of the user's: trained, advised and evaluated, or refused by key."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from tests.counting import CountingEnv
from tests.runs import TINY, assert_same_run, interrupt_at, rows, summary

from lore.base.errors import BadInput
from lore.cli.eval import main as eval_main
from lore.cli.train import main as train_main
from lore.config.compose import compose
from lore.config.options import EnvOptions
from lore.envs import VectorEnv, make_vec
from lore.training.families import MINIGRID, find_family
from lore.training.trainer import train

GUIDE = Path(__file__).parents[2] / "docs" / "environments.md"
FAMILY = [
    *[override for override in TINY if not override.startswith("env.")],
    *("env.family=corridor", "env.id=short"),
]


@pytest.fixture
def corridor(tmp_path, monkeypatch):
    """The family that docs/environments.md shows, as an installed package."""
    block = GUIDE.read_text(encoding="utf-8").split("## Another family of worlds")[1].split("```python\n")[1]
    plain = "\nBARE = EnvFamily(make)\nUNTIMED = EnvFamily(make, CORRIDOR.wording)\nNOTHING = 7\n"
    (tmp_path / "corridor.py").write_text(block.split("```")[0] + plain)
    info = tmp_path / "corridor-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: corridor\nVersion: 1\n")
    points = (
        "corridor = corridor:CORRIDOR\nbare = corridor:BARE\nuntimed = corridor:UNTIMED\n"
        "nothing = corridor:NOTHING\ngone = gone:GONE\n"
    )
    (info / "entry_points.txt").write_text(f"[lore.env_families]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("corridor", None)


@pytest.mark.parametrize("time", [[], ["env.timeout=terminal", "env.clock=true"]], ids=["plain", "timed"])
def test_it_learns_alone_is_evaluated_and_resumed(corridor, tmp_path, capsys, time):
    options = [*FAMILY, "gate=none", "run.save_every=50", *time]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train_main([*options, f"run.dir={whole}"]) == 0
    cut.mkdir()
    cfg = compose(options)
    with interrupt_at(70):
        assert train(cfg, cut) == "interrupted"
    assert train(cfg, cut) == "finished"
    assert_same_run(whole, cut)
    assert summary(whole)["env_id"] == "short"
    assert not any(name.startswith("minigrid/") for row in rows(whole) for name in row)
    assert eval_main([f"run={whole}", "episodes=3"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["episodes"] == 3
    assert eval_main([f"run={whole}", "episodes=1", "video=true"]) == 2
    assert "env.family=corridor cannot be filmed" in capsys.readouterr().err


@pytest.mark.parametrize("llm", ["uniform", "oracle"])
def test_it_is_advised_in_words_of_its_own(corridor, tmp_path, llm):
    folder = tmp_path / "run"
    advised = ["gate=fixed", f"llm={llm}", "llm.triggers=false", "llm.cooldown_steps=null"]
    assert train_main([*FAMILY, *advised, f"run.dir={folder}"]) == 0
    asked = [json.loads(line)["key"] for line in (folder / "llm.jsonl").read_text().splitlines()]
    assert asked and all(key.startswith("corridor of 5, at ") for key in asked)
    assert len(set(asked)) == len(asked) <= 5
    assert summary(folder)["llm_calls_used"] == len(asked)
    assert summary(folder)["influence"]["prior_share"] > 0.5


@pytest.mark.parametrize(
    ("overrides", "key", "hint"),
    [
        (["env.family=coridor"], "env.family", "minigrid"),
        (["env.family=nothing"], "env.family", "not an EnvFamily"),
        (["env.family=gone"], "env.family", "cannot be loaded"),
        (["env.family=bare"], "llm", "llm=none"),
        (["env.family=bare", "gate=none", "explore.valid_noise=true"], "explore.valid_noise", "use false"),
        (["env.family=untimed", "env.timeout=terminal"], "env.timeout", "no other than truncate"),
        (["env.family=untimed", "env.clock=true"], "env.clock", "use false"),
        (["env.family=corridor", "env.id=wide"], "env.id", "short, long"),
    ],
)
def test_what_a_run_lacks_is_refused_by_its_key(
    corridor, tmp_path, capsys, monkeypatch, overrides, key, hint
):
    folder = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert train_main([*FAMILY, *overrides, f"run.dir={folder}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lore-train: {key}: ") and hint in line and not folder.exists()


def test_its_return_range_is_that_of_its_environment(corridor):
    make = find_family(EnvOptions(family="corridor")).make
    assert make_vec(EnvOptions(id="short"), "symbolic", 2, 0, split="train", make=make).return_range == (0, 1)
    assert VectorEnv([partial(CountingEnv, length=3)], 0, split="train").return_range is None


def test_the_first_family_has_every_part():
    assert find_family(EnvOptions()) is MINIGRID
    assert all(part is not None for part in vars(MINIGRID).values()) and MINIGRID.timed
    with pytest.raises(BadInput, match=r"^env\.family: unknown family 'x'; use one of minigrid"):
        find_family(EnvOptions(family="x"))

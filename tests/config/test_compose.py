"""Options, composition and the one line that answers bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lore.base.errors import BadInput
from lore.config.command_options import EvalOptions
from lore.config.compose import compose, eval_options, to_yaml
from lore.config.options import Config
from lore.config.stored import load_stored

CONF = Path(__file__).parents[2] / "src" / "lore" / "conf"
EVERY = [
    ("+" if group in ("ablation", "experiment", "preset") else "") + f"{group}={path.stem}"
    for group in (
        "ablation",
        "agent",
        "env",
        "experiment",
        "gate",
        "llm",
        "size",
        "logger",
        "preset",
        "teach",
        "trial",
    )
    for path in sorted((CONF / group).glob("*.yaml"))
]
NEEDS = {"gate=hint": "env.hint=true"}
"""Choice -> what it has to be given with; every teacher but none needs PriorNet."""


def refused(*overrides: str) -> str:
    with pytest.raises(BadInput) as error:
        compose(overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_yaml_holds_the_defaults_of_the_dataclasses() -> None:
    cfg = compose()
    assert cfg.run.dir.startswith("outputs/")
    assert dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, dir="")) == Config()


@pytest.mark.parametrize("override", EVERY)
def test_every_config_composes(override: str) -> None:
    needs = ["prior_net.enabled=true"] if override.startswith("teach=") else []
    needs += [NEEDS[override]] if override in NEEDS else []
    assert isinstance(compose([override, *needs]), Config)


def test_official_preset_has_the_published_values() -> None:
    agent = compose(["+preset=official"]).agent
    assert (agent.batch_size, agent.seq_len, agent.train_ratio) == (16, 64, 32)
    assert (agent.lr, agent.warmup, agent.entropy, agent.agc) == (4e-5, 1000, 3e-4, 0.3)


def test_a_choice_on_the_command_line_beats_the_preset() -> None:
    assert compose(["+preset=debug"]).size.deter == 64
    cfg = compose(["+preset=debug", "size=1m", "agent.seq_len=8"])
    assert (cfg.size.deter, cfg.agent.seq_len, cfg.agent.batch_size) == (512, 8, 4)


@pytest.mark.parametrize(
    ("override", "key", "right"),
    [
        ("run.stpes=1", "run.stpes", "run.steps"),
        ("+run.stpes=1", "run.stpes", "run.steps"),
        ("steps=1", "steps", "run.steps"),
        ("gait=none", "gait", "unknown key"),
        ("gate=nun", "gate", "follow"),
        ("preset=official", "preset", "+preset=NAME"),
        ("+preset=offical", "preset", "official"),
        ("size=2m", "size", "12m"),
        ("env=doorkey7", "env", "env.id=ID"),
        ("run.steps=abc", "run.steps", "a whole number"),
        ("run.steps=1.5", "run.steps", "a whole number"),
        ("run.eval_greedy=perhaps", "run.eval_greedy", "true or false"),
        ("env.max_steps=abc", "env.max_steps", "a whole number or null"),
        ("run=5", "run", "run.steps=VALUE"),
        ("run.steps", "run.steps", "run.steps=VALUE"),
        ("seed=1,2", "seed", "-m"),
        ("seed=-1", "seed", "at least 0"),
        ("run.steps=0", "run.steps", "at least 1"),
        ("agent.batch_size=0", "agent.batch_size", "at least 1"),
        ("agent.seq_len=-3", "agent.seq_len", "at least 1"),
        ("agent.lr=nan", "agent.lr", "above 0"),
        ("gate.tau_low=nan", "gate.tau_low", "finite"),
        ("gate.tau_low=-inf", "gate.tau_low", "finite"),
        ("threads=1e6", "threads", "at most 1024"),
        ("llm.timeout_s=1e300", "llm.timeout_s", "at most 86400"),
        ("agent.train_ratio=0", "agent.train_ratio", "above 0"),
        ("agent.lam=1.5", "agent.lam", "between 0 and 1"),
        ("agent.return_low=96", "agent.return_low", "below agent.return_high"),
        ("agent.bins=254", "agent.bins", "odd"),
        ("agent.batch_size=10000", "agent.batch_size", "replay.capacity=330000"),
        ("replay.capacity=32", "replay.capacity", "replay.capacity=264"),
        ("run.envs=16", "run.prefill", "at least 528"),
        ("run.steps=200", "run.prefill", "run.steps"),
        ("size.blocks=7", "size.deter", "multiple of size.blocks"),
        ("~agent.scales.obs", "agent.scales.obs", "missing"),
        ("+agent.scales.colour=1", "agent.scales.colour", "reward"),
        ("agent.scales.obs=-1", "agent.scales.obs", "at least 0"),
        ("dtype=float16", "dtype", "bfloat16, float32"),
        ("obs=pixels", "obs", "symbolic, raw147, rgb64"),
        ("env.actions=some", "env.actions", "all, useful"),
        ("logger.wandb=online", "logger.wandb", "offline"),
        ("device=tpu", "device", "cuda:N"),
        ("env.max_steps=0", "env.max_steps", "null"),
    ],
)
def test_bad_input_names_the_key_and_what_is_right(override: str, key: str, right: str) -> None:
    line = refused(override)
    assert line.startswith(f"{key}: ")
    assert right in line


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused("device=cuda").endswith("use device=cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert compose(["device=cuda:1"]).device == "cuda:1"
    assert "cuda:1" in refused("device=cuda:2")


def test_random_agent_needs_no_sequence() -> None:
    assert compose(["agent=random", "run.steps=50"]).agent.name == "random"


def test_a_stored_config_comes_back(tmp_path: Path) -> None:
    cfg = compose(["seed=7", "env=unlock", "size=tiny", "agent.scales.rep=0.2"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    cfg.run.dir = str(tmp_path)
    assert load_stored(tmp_path) == cfg
    assert load_stored(tmp_path, ["run.steps=20000"]).run.steps == 20_000


@pytest.mark.parametrize(
    ("text", "override", "key"),
    [
        (None, "", "resume"),
        ("", "", "resume"),
        ("[", "", "resume"),
        ("seed: 1\nsede: 1", "", "sede"),
        ("seed: 1", "seed=2", "seed"),
        ("seed: 1", "+preset=debug", "preset"),
        ("seed: 1", "run.steps=many", "run.steps"),
    ],
)
def test_a_stored_config_that_cannot_go_on(tmp_path: Path, text: str | None, override: str, key: str) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(BadInput) as error:
        load_stored(tmp_path, [override] if override else [])
    assert error.value.key == key


def test_eval_options() -> None:
    given = eval_options(["run=a b", "episodes=5", "video=true", "out=films"])
    assert given == EvalOptions(run="a b", episodes=5, video=True, out="films")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ([], "run"),
        (["run=x", "episode=5"], "episode"),
        (["run=x", "episodes"], "episodes"),
        (["run=x", "episodes=few"], "episodes"),
        (["run=x", "episodes=0"], "episodes"),
        (["run=x", "policy=best"], "policy"),
        (["run=x", "video_format=avi"], "video_format"),
    ],
)
def test_bad_eval_options(arguments: list[str], key: str) -> None:
    with pytest.raises(BadInput) as error:
        eval_options(arguments)
    assert error.value.key == key

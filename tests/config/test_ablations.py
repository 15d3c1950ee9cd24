"""Each arm switches what its letter says, in the config and in what a run does.

python tests/config/test_ablations.py writes the table of docs/ablations.md anew.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests import runs

from lore.base.errors import BadInput
from lore.cli import train as cli
from lore.cli.guard import BAD_INPUT, DONE, FAILED
from lore.config.ablations import ANY_NUMBER, ARMS, allows, arm_name
from lore.config.compose import compose

DOC = Path(__file__).parents[2] / "docs" / "ablations.md"
LETTERS = "ABCDEF"
SWITCHES = (
    "gate.name",
    "gate.kl.mode",
    "llm.triggers",
    "llm.latch",
    "llm.cooldown_steps",
    "llm.success_cooldown_steps",
    "llm.budget_total",
    "prior_net.enabled",
)


def flat(arm: str | None, *overrides: str) -> dict[str, Any]:
    """Every option of an arm by its dotted key."""

    def walk(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in node.items():
            out |= walk(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return out

    cfg = compose([*([] if arm is None else [f"+ablation={arm}"]), "run.dir=here", *overrides])
    return walk(dataclasses.asdict(cfg))


def changed(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {key for key in one | other if one.get(key) != other.get(key)} - {"ablation"}


def table() -> str:
    """The switches of every arm, as docs/ablations.md shows them."""
    configs = {arm: flat(arm) for arm in ARMS}
    names = [*SWITCHES, *sorted({key for arm in ARMS for key in ARMS[arm]} - set(SWITCHES))]
    lines = [f"| switch | {' | '.join(ARMS)} |", "|---" * (len(ARMS) + 1) + "|"]
    for key in names:
        cells = []
        for arm, config in configs.items():
            if key not in ARMS[arm]:
                cells.append("")
            elif ARMS[arm][key] is ANY_NUMBER:
                cells.append(f"any ({config[key]})")
            else:
                cells.append(json.dumps(config[key]).strip('"'))
        lines.append(f"| `{key}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_documented_switches_are_those_of_the_configs() -> None:
    assert table() in DOC.read_text(encoding="utf-8"), "run python tests/config/test_ablations.py"


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_composes_and_bears_its_name(arm: str) -> None:
    cfg = compose([f"+ablation={arm}"])
    assert cfg.ablation == arm == arm_name(cfg)


def test_without_a_letter_it_is_e_with_the_scripted_adviser_on_doorkey_5x5() -> None:
    bare = flat(None)
    assert changed(bare, flat("E")) == set()
    assert arm_name(compose()) == "E"
    assert (bare["llm.provider"], bare["env.id"]) == ("scripted", "MiniGrid-DoorKey-5x5-v0")


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ("A", "B", {"gate.name", *(key for key in SWITCHES if key.startswith("llm."))}),
        ("B", "C", {"gate.kl.mode"}),
        ("C", "D", {"gate.name"}),
        ("D", "E", {key for key in SWITCHES if key.startswith("llm.")}),
        ("E", "F", {"prior_net.enabled"}),
        ("A", "static_mask", {"env.actions"}),
        ("A", "A_time", {"env.timeout", "env.clock"}),
        ("G", "G_trusting", {"trial.name"}),
        ("G_trusting", "entropy", {"teach.name", "agent.entropy"}),
        ("G_trusting", "clone", {"teach.name", "prior_net.enabled", "replay.success_bias"}),
    ],
)
def test_two_arms_differ_in_their_switches_and_nothing_else(one: str, other: str, keys: set[str]) -> None:
    assert changed(flat(one), flat(other)) == keys


def test_an_arm_stays_itself_whatever_else_is_chosen() -> None:
    """A letter owns its switches over any task, size, adviser and preset."""
    others = [
        "env=doorkey8",
        "size=12m",
        "llm=oracle",
        "+preset=seed",
        "gate.beta_max=1",
        "llm.cooldown_steps=7",
    ]
    for arm in "EF":
        config = flat(arm, *others)
        assert all(allows(wanted, config[key]) for key, wanted in ARMS[arm].items())
    assert arm_name(compose(["+ablation=E", *others])) == "E-oracle"


OTHER = {"useful": "all", "truncate": "terminal", "terminal": "truncate"}
NAMES = {"gate.name": ("follow", "lore"), "teach.name": ("clone", "mix"), "trial.name": ("coin", "paired")}
NAMES |= {"gate.beta": ("0.1", "0.2"), "agent.entropy": ("0.1", "0.2")}
"""Switch -> two values: where an arm has the first, the second contradicts it."""
CONTRADICTIONS = [
    (arm, key, wrong)
    for arm in ARMS
    for key, value in ARMS[arm].items()
    for wrong in [
        "null"
        if value is ANY_NUMBER
        else "project"
        if key == "gate.kl.mode"
        else next(name for name in NAMES[key] if name != value)
        if key in NAMES
        else {True: "false", False: "true", None: "5", **OTHER}[value]
    ]
]


@pytest.mark.parametrize(("arm", "key", "wrong"), CONTRADICTIONS)
def test_overriding_a_switch_that_an_arm_owns_is_refused(arm: str, key: str, wrong: str) -> None:
    override = f"{key.removesuffix('.name')}={wrong}"
    with pytest.raises(BadInput) as refused:
        compose([f"+ablation={arm}", override])
    assert f"+ablation={arm} owns it" in str(refused.value)
    assert refused.value.key == key.removesuffix(".name")


def test_a_contradiction_ends_the_command_with_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["+ablation=D", "gate=none"]) == BAD_INPUT
    line = capfd.readouterr().err.strip()
    assert line.startswith("lore-train: gate: +ablation=D owns it") and "\n" not in line
    assert not list(tmp_path.iterdir())


def test_an_unknown_gate_or_provider_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for override, right in (
        ("gate.name=nobody", "fixed, follow, hint, lore"),
        ("llm.provider=nobody", "anthropic"),
    ):
        assert cli.main([override]) == BAD_INPUT
        line = capfd.readouterr().err.strip()
        assert line.startswith(f"lore-train: {override.split('=')[0]}: unknown") and right in line
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["ablation=D"], "ablation"),
        (["+ablation=Q"], "ablation"),
        (["agent=random", "llm=scripted"], "llm"),
        (["agent=random", "gate=lore"], "gate"),
        (["agent=prior", "gate=lore"], "gate"),
        (["agent=prior", "prior_net.enabled=true"], "prior_net.enabled"),
        (["gate.mix_in_imagination=true"], "gate.mix_in_imagination"),
        (["gate=follow", "gate.kl.mode=penalty"], "gate.kl.mode"),
        (["gate=follow", "agent.replay_value=weight"], "agent.replay_value"),
        (["gate.tau_low=0.7"], "gate.tau_low"),
        (["+gate.weights.luck=1"], "gate.weights.luck"),
        (["gate.weights.entropy=-1"], "gate.weights.entropy"),
        (["~gate.weights.entropy"], "gate.weights.entropy"),
        (["gate.temperature=hot"], "gate.temperature"),
        (["gate.kl.mode=strict"], "gate.kl.mode"),
        (["gate.members=1"], "gate.members"),
        (["agent.replay_value=all"], "agent.replay_value"),
        (["replay.success_bias=2"], "replay.success_bias"),
        (["explore.epsilon_start=1.5"], "explore.epsilon_start"),
        (["explore.temperature_end=0"], "explore.temperature_end"),
    ],
)
def test_what_cannot_go_together_is_refused_by_key(overrides: list[str], key: str) -> None:
    with pytest.raises(BadInput) as refused:
        compose(overrides)
    assert refused.value.key == key


TRAIN = ["env=doorkey5", "env.actions=all", "env.max_steps=60", "run.steps=400", "replay.capacity=500"]
TRAIN += ["gate.warmup_steps=100", "gate.norm_updates=20", "run.eval_every=0", "agent.train_ratio=8"]


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Metrics rows of a short run of every letter."""
    out = {}
    for letter in LETTERS:
        folder = tmp_path_factory.mktemp(letter)
        extra = ["prior_net.max_entropy=1", "prior_net.max_disagreement=1"] if letter == "F" else []
        # a target that can be passed, so that the multiplier has something to do
        extra += ["gate.kl.delta_target=0.005"] if letter in "CD" else []
        out[letter] = runs.rows(runs.run(folder, *TRAIN, f"+ablation={letter}", *extra))
    return out


def column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


@pytest.mark.slow
def test_each_letter_behaves_as_it_says(last: dict[str, list[dict[str, Any]]]) -> None:
    assert not any(name.startswith(("llm/", "uncertainty_gate/")) for row in last["A"] for name in row)
    for letter in "BC":  # a constant beta
        assert column(last[letter], "uncertainty_gate/avg_beta") == pytest.approx([0.3] * len(last[letter]))
        assert max(column(last[letter], "uncertainty_gate/beta_std")) < 1e-6
    for letter in "DEF":
        assert len(set(column(last[letter], "uncertainty_gate/avg_beta"))) > 3
    assert set(column(last["B"], "uncertainty_gate/lambda_kl")) == {0.0}
    for letter in "CD":  # E and F ask so seldom here that few rows are advised
        assert max(column(last[letter], "uncertainty_gate/lambda_kl")) > 0
    stopped = ("quiet", "latch", "cooldown", "success_cooldown", "budget")
    for letter in "BCD":
        assert not any(f"llm/outcome/{name}" in row for row in last[letter] for name in stopped)
        assert "llm/budget_remaining" not in last[letter][-1]
    assert last["E"][-1]["llm/outcome/cooldown"] > 0
    assert last["E"][-1]["llm/calls_used"] < last["D"][-1]["llm/calls_used"]
    assert last["F"][-1]["llm/outcome/prior_net"] > 0
    for letter in "BCDE":
        assert "llm/outcome/prior_net" not in last[letter][-1]


def test_a_study_puts_every_job_into_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs side by side, and one that fails: it stops no other, and the command says which it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    arguments = ["-m", "hydra/launcher=parallel", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=study"]
    arguments += [*runs.TINY, "run.steps=40", "run.eval_every=0", "+ablation=A,D", "seed=0,1"]
    assert cli.main(arguments) == DONE
    names = {path.name for path in (tmp_path / "study").iterdir() if path.is_dir()}
    assert {re.sub(r"^\d+_", "", name) for name in names} == {
        f"MiniGrid-Empty-Random-5x5-v0_{arm}_seed{seed}" for arm in "AD" for seed in (0, 1)
    }
    for name in names:
        assert runs.summary(tmp_path / "study" / name)["status"] == "finished"
        config = (tmp_path / "study" / name / "config.yaml").read_text()
        assert "group: study" in config


def test_a_job_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from lore.training.trainer import Trainer

    real = Trainer.learn

    def learn(trainer: Trainer) -> None:
        if trainer.cfg.seed == 1 and trainer.env_step > 35:
            raise RuntimeError("out of luck")
        real(trainer)

    monkeypatch.setattr(Trainer, "learn", learn)
    monkeypatch.chdir(tmp_path)
    arguments = ["-m", "hydra.sweep.dir=study", *runs.TINY, "run.steps=40", "run.eval_every=0", "seed=0,1,2"]
    assert cli.main(arguments) == FAILED
    status = {p.name[-1]: runs.summary(p)["status"] for p in (tmp_path / "study").iterdir() if p.is_dir()}
    assert status == {"0": "finished", "1": "failed", "2": "finished"}
    assert "failed: 1_MiniGrid-Empty-Random-5x5-v0_E_seed1" in capfd.readouterr().err


if __name__ == "__main__":
    text = DOC.read_text(encoding="utf-8")
    head = text[: text.index("`any` is a number of your choice.")]
    DOC.write_text(f"{head}`any` is a number of your choice.\n\n{table()}\n", encoding="utf-8")

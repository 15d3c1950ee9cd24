"""env=, gate= and llm= find names of installed packages and of --config-dir; +experiment=NAME adds values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lore.base.errors import BadInput
from lore.config.compose import as_overrides, compose, compose_jobs
from lore.config.options import Config

ENTRY_POINTS = """\
[lore.envs]
fake_lab = fake_lore_package:Lab
[lore.gates]
fake_gate = fake_lore_package:Gate
[lore.providers]
fake_adviser = fake_lore_package:Adviser
[lore.configs]
fake = fake_lore_package.conf
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with an entry point of each group; its module is empty: no name needs more."""
    info = tmp_path / "fake_lore_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-lore-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    conf = tmp_path / "fake_lore_package" / "conf"
    for group, text in {
        "llm/fake_cheap": "provider: fake_adviser\nmax_tokens: 77\n",
        "env/fake_maze": "id: fake_lore_package:Maze-v0\nmax_steps: 9\n",
        "experiment/fake_study": "# @package _global_\ndefaults:\n  - override /llm: fake_adviser\nseed: 5\n",
    }.items():
        (conf / group).parent.mkdir(parents=True, exist_ok=True)
        (conf / f"{group}.yaml").write_text(text)
    (tmp_path / "fake_lore_package" / "__init__.py").write_text("")
    (conf / "__init__.py").write_text("")
    for module in ("fake_lore_package", "fake_lore_package.conf"):  # of another test's folder
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_names_of_an_installed_package(package: Path) -> None:
    cfg = compose(["env=fake_lab", "gate=fake_gate", "llm=fake_adviser"])
    assert (cfg.env.id, cfg.gate.name, cfg.llm.provider) == ("fake_lab", "fake_gate", "fake_adviser")
    default = Config()
    default.env.id, default.gate.name, default.llm.provider = "fake_lab", "fake_gate", "fake_adviser"
    default.run.dir = cfg.run.dir
    assert cfg == default


def test_configs_of_an_installed_package(package: Path) -> None:
    assert compose(["llm=fake_cheap"]).llm.max_tokens == 77
    assert compose(["env=fake_maze"]).env.max_steps == 9
    cfg = compose(["+experiment=fake_study"])
    assert (cfg.seed, cfg.llm.provider) == (5, "fake_adviser")
    swept = as_overrides(["llm=scripted,fake_adviser,fake_cheap"], sweep=True)
    assert [cfg.llm.provider for cfg in compose_jobs(swept, sweep=True)] == [
        "scripted",
        *["fake_adviser"] * 2,
    ]
    with pytest.raises(BadInput, match="did you mean fake_adviser"):
        compose(["llm=fake_advisr"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("where", ["package", "folder"])
@pytest.mark.parametrize("group", ["env", "gate", "llm"])
def test_a_file_goes_before_an_entry_point_of_its_name(package: Path, group: str, where: str) -> None:
    name, values = {
        "env": ("fake_lab", "id: fake_lab\nmax_steps: 9\n"),
        "gate": ("fake_gate", "name: fake_gate\nbeta: 0.25\n"),
        "llm": ("fake_adviser", "provider: fake_adviser\nmax_tokens: 77\n"),
    }[group]
    compose([f"{group}={name}"])
    folder = package / ("fake_lore_package/conf" if where == "package" else "mine")
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(values)
    cfg = compose([f"{group}={name}"], str(folder) if where == "folder" else None)
    found = {"env": cfg.env.max_steps == 9, "gate": cfg.gate.beta == 0.25, "llm": cfg.llm.max_tokens == 77}
    assert found[group]


def test_names_of_a_folder_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "it's my, conf=1"
    for group, text in {
        "env/lab": "id: MiniGrid-Empty-6x6-v0\nmax_steps: 12\n",
        "llm/half": "provider: scripted\ncompetence: 0.5\n",
        "gate/soft": "name: fixed\nbeta: 0.1\n",
        "experiment/mine": "# @package _global_\ndefaults:\n  - override /env: lab\n"
        "  - override /size: tiny\nrun:\n  steps: 4000\n",
    }.items():
        (own / group).parent.mkdir(parents=True, exist_ok=True)
        (own / f"{group}.yaml").write_text(text)
    cfg = compose(["+experiment=mine", "llm=half", "gate=soft"], str(own))
    assert (cfg.env.id, cfg.env.max_steps, cfg.size.deter) == ("MiniGrid-Empty-6x6-v0", 12, 64)
    assert (cfg.run.steps, cfg.llm.competence, cfg.gate.beta) == (4000, 0.5, 0.1)
    assert compose(["+experiment=mine", "run.steps=5k"], str(own)).run.steps == 5000
    with pytest.raises(BadInput, match=r"^env: no 'lab' here"):
        compose(["env=lab"])


GLOBAL = "# @package _global_\n"


@pytest.mark.parametrize(
    ("file", "text", "key", "remedy"),
    [
        ("env/own", "maxsteps: 3\n", "env.maxsteps", "did you mean env.max_steps"),
        ("env/own", "max_steps: many\n", "env.max_steps", "a whole number or null (in env/own.yaml)"),
        ("env/own", "id: [\n", "config file", "own.yaml"),
        ("llm/own", "provider: [a]\n", "llm.provider", "text (in llm/own.yaml)"),
        ("experiment/own", GLOBAL + "run:\n  stpes: 3\n", "run.stpes", "did you mean run.steps"),
        ("experiment/own", GLOBAL + "run:\n  steps: x\n", "run.steps", "(in experiment/own.yaml)"),
        ("experiment/own", "run:\n  steps: 3\n", "experiment/own", "# @package _global_"),
        ("experiment/own", GLOBAL + "defaults:\n  - override /env: nix\n", "env", "doorkey5"),
        ("experiment/own", GLOBAL + "defaults:\n  - override /evn: x\n", "experiment/own", "env=NAME"),
        ("experiment/own", GLOBAL + "gate: none\n", "experiment/own", "`defaults:`"),
        ("experiment/own", GLOBAL + "size:\n  deter: 65\n", "size.deter", "multiple"),
    ],
)
def test_a_mistake_in_a_file_of_ones_own(tmp_path: Path, file: str, text: str, key: str, remedy: str) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / f"{file}.yaml").write_text(text)
    group = file.partition("/")[0]
    with pytest.raises(BadInput) as error:
        compose([f"{'+' if group == 'experiment' else ''}{group}=own"], str(tmp_path))
    assert error.value.key == key and remedy in str(error.value) and "\n" not in str(error.value)


def test_the_worked_experiment(tmp_path: Path) -> None:
    cfg = compose(["+experiment=half_wrong"])
    assert (cfg.llm.competence, cfg.logger.tags, cfg.run.steps) == (0.5, ["half_wrong"], 6000)
    assert compose(["+experiment=half_wrong", "llm.competence=1"]).llm.competence == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processor affinity")
def test_a_parallel_sweep_takes_the_cores_that_are_allotted() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import lore.config.compose\n"
        "from omegaconf import OmegaConf\n"
        "print(OmegaConf.create({'n': '${lore.cores:}'}).n)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"

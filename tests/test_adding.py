"""docs/adding.md is true: its examples are applied to a copy of the package, counted, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.runs import TINY

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?P<own>In your package, )?(?:[Nn]ew )?`(?P<file>[^`]+)`(?:, below `(?P<line>[^`]+)`)?:\n\n"
    r"```(?:python|yaml)\n(?P<text>.*?)```",
    re.DOTALL,
)
MOST = {
    "an option": 3,
    "a loss": 3,
    "an arm of a study": 3,
    "a gate in the repository": 3,
    "a teacher": 3,
    "a provider in the repository": 3,
    "a gate or a provider as a plug-in": 1,
}
"""What it may take at most."""


@dataclass
class Example:
    """A section of the page. files: file -> the blocks of it. run: the command's overrides."""

    title: str
    text: str
    files: dict[str, list[re.Match[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for block in BLOCK.finditer(self.text):
            self.files.setdefault(block["file"], []).append(block)

    @property
    def run(self) -> list[str]:
        (command,) = re.findall(r"```sh\nlore-train (.*)\n```", self.text)
        return command.split()

    def apply(self, package: Path, own: Path) -> None:
        """Write the blocks into a copy of src/lore, and into a folder for packages of one's own."""
        for name, blocks in self.files.items():
            for block in blocks:
                path = (own if block["own"] else package) / name
                if block["line"] is None:
                    assert not path.exists() and path.parent.is_dir(), name
                    path.write_text(block["text"], encoding="utf-8")
                else:
                    insert_below(path, block["line"], block["text"])
        for project in re.findall(r"```toml\n(.*?)```", self.text, re.DOTALL):
            install(own, tomllib.loads(project)["project"]["entry-points"])


def insert_below(path: Path, part: str, text: str) -> None:
    """Put `text` below the one line of a file that holds `part`."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [i for i, line in enumerate(lines) if part in line]
    assert len(found) == 1, f"{path.name}: {len(found)} lines hold {part!r}"
    lines.insert(found[0] + 1, text)
    path.write_text("".join(lines), encoding="utf-8")


def install(own: Path, groups: dict[str, dict[str, str]]) -> None:
    """What pip writes of a project's entry points."""
    info = own / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n{name} = {value}\n" for group, all_ in groups.items() for name, value in all_.items()
    ]
    (info / "entry_points.txt").write_text("".join(lines))


EXAMPLES = {
    title[0].lower() + title[1:]: Example(title, text)
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}
DRIVER = """
import json, sys
from lore.cli.train import main
for overrides in json.loads(sys.argv[1]):
    print(main(overrides), flush=True)
"""


@dataclass
class Runs:
    """Of the copy with every example applied. status: example -> what its command came to."""

    folder: Path
    status: dict[str, str]
    output: str

    def rows(self, example: str) -> list[dict[str, Any]]:
        assert self.status[example] == "0", self.output
        text = (self.folder / example / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def summary(self, example: str) -> dict[str, Any]:
        return json.loads((self.folder / example / "summary.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All examples in one copy of the package, each run with its command for a few steps, in one process."""
    folder = tmp_path_factory.mktemp("adding")
    package, own = folder / "src" / "lore", folder / "own"
    shutil.copytree(ROOT / "src" / "lore", package, ignore=shutil.ignore_patterns("__pycache__"))
    own.mkdir()
    for example in EXAMPLES.values():
        example.apply(package, own)
    few = [override for override in TINY if not override.startswith(("+preset", "env.id", "env.actions"))]
    few += ["run.steps=60", "run.eval_every=0"]
    commands = [[*example.run, *few, f"run.dir={folder / name}"] for name, example in EXAMPLES.items()]
    commands.append([*EXAMPLES["an option"].run[:-1], "gate.beta_min=-1", *few, f"run.dir={folder / 'no'}"])
    child = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder / 'src'}{os.pathsep}{own}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    codes = [line for line in child.stdout.splitlines() if line in ("0", "1", "2")]
    return Runs(folder, dict(zip([*EXAMPLES, "refused"], codes, strict=True)), child.stderr)


def test_the_table_counts_the_files_and_none_is_too_many() -> None:
    table = {name: int(count) for name, count in re.findall(r"^\| (an? .+?) \| (\d+) \|", PAGE, re.MULTILINE)}
    assert table == {name: len(example.files) for name, example in EXAMPLES.items()}
    assert table.keys() == MOST.keys()
    assert all(table[name] <= most for name, most in MOST.items()), table


def test_the_page_of_the_house_has_the_same_counts() -> None:
    house = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name, example in EXAMPLES.items():
        assert f"| {name} | {len(example.files)} |" in house


def test_an_option_acts_and_its_range_is_checked(done: Runs) -> None:
    betas = [row["uncertainty_gate/avg_beta"] for row in done.rows("an option")]
    assert betas and min(betas) >= 0.2499  # the ramp begins at 0, so without the option every beta is lower
    assert "beta_min: 0.25" in (done.folder / "an option" / "config.yaml").read_text()
    assert done.status["refused"] == "2"
    assert "gate.beta_min: -1.0 must be at least 0" in done.output and not (done.folder / "no").exists()


def test_a_loss_is_learned_and_logged(done: Runs) -> None:
    losses = [row["loss/inverse"] for row in done.rows("a loss") if "loss/inverse" in row]
    assert len(losses) > 1 and all(loss > 0 for loss in losses)


def test_an_arm_composes_and_bears_its_name(done: Runs) -> None:
    assert any("uncertainty_gate/imagined_kl" in row for row in done.rows("an arm of a study"))
    assert done.summary("an arm of a study")["arm"] == "imagined"


def test_a_gate_decides_where_advice_acts(done: Runs) -> None:
    betas = [row["uncertainty_gate/avg_beta"] for row in done.rows("a gate in the repository")]
    assert betas == pytest.approx([0.3] * len(betas))  # an untrained policy is nearly uniform


def test_a_teacher_takes_the_place_of_the_entropy_bonus(done: Runs) -> None:
    etas = [row["teach/eta"] for row in done.rows("a teacher") if "teach/eta" in row]
    assert len(etas) > 1 and all(3e-4 < eta <= 9e-4 for eta in etas)
    assert done.summary("a teacher")["teach"] == "curious"


def test_a_provider_is_asked(done: Runs) -> None:
    last = done.rows("a provider in the repository")[-1]
    assert last["llm/provider_calls"] > 0 and last["llm/prior_share"] > 0
    assert "goto(goal)" in (done.folder / "a provider in the repository" / "llm.jsonl").read_text()


def test_a_plug_in_needs_nothing_of_this_package(done: Runs) -> None:
    betas = [row["uncertainty_gate/avg_beta"] for row in done.rows("a gate or a provider as a plug-in")]
    assert betas and max(betas) == pytest.approx(0.03, abs=0.01)  # 0.3 at one step in ten

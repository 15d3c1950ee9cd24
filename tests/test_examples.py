"""The examples run as their first lines say, as a user's programs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests import runs

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = [option for option in runs.TINY if not option.startswith("+")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with every plug-in among the examples, installed by pip."""
    folder = tmp_path_factory.mktemp("plug-ins")
    plugins = sorted(str(path.parent) for path in EXAMPLES.glob("*/pyproject.toml"))
    assert len(plugins) >= 2
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder), *plugins], check=True)
    return folder


def python(*arguments: str, cwd: Path, plugins: Path | None = None) -> str:
    """What a program prints that ends with 0."""
    path = os.pathsep.join([str(runs.ROOT / "src"), *([str(plugins)] if plugins else [])])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lore_train(folder: Path, plugins: Path, *overrides: str) -> Path:
    command = "import sys; from lore.cli.train import main; sys.exit(main())"
    run = folder / "run"
    python("-c", command, *runs.TINY, *overrides, f"run.dir={run}", cwd=folder, plugins=plugins)
    return run


def test_a_gate_and_an_adviser_of_ones_own_by_their_names(installed: Path, tmp_path: Path) -> None:
    names = ["gate=fading", "llm=compass", "gate.beta=2", "env.max_steps=18", "env=empty5"]
    run = lore_train(tmp_path, installed, *names)
    betas = [row["uncertainty_gate/avg_beta"] for row in runs.training_rows(run)]
    assert betas == sorted(betas, reverse=True) and 2 >= betas[0] > betas[-1] > 1.5
    asks = [json.loads(line) for line in (run / "llm.jsonl").read_text().splitlines()]
    assert asks and "compass rule 1" in json.dumps(asks)
    assert runs.summary(run)["influence"]["prior_share"] > 0


def test_a_run_from_python_leaves_a_run_folder_that_can_be_resumed(tmp_path: Path) -> None:
    program = str(EXAMPLES / "run_from_python.py")
    out = python(program, "run", *TINY, cwd=tmp_path)
    assert out.startswith("status: finished\nstep 40: evaluation success ") and "last returns: [" in out
    command = "import sys; from lore.cli.train import main; sys.exit(main())"
    python("-c", command, "resume=run", "run.steps=130", cwd=tmp_path)
    assert runs.summary(tmp_path / "run")["env_steps"] == 130


def test_the_page_of_examples_names_them_all() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or f"`{path.name}" in page, path.name
    for path in EXAMPLES.glob("*/pyproject.toml"):
        (group,) = tomllib.loads(path.read_text())["project"]["entry-points"].values()
        (name,) = group
        assert f"={name}" in page, name

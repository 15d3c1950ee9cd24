"""The scripts' first use, with a stand-in for Python, and what a package of this repository holds."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import lore

ROOT = Path(__file__).parents[1]
# Stands in for python3: `-m venv` copies itself, `-m pip install` notes the call and adds a lore-train.
FAKE_PYTHON = """#!/bin/bash
log="$FAKE_LOG"
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip")
    echo install >>"$log"; sleep "${FAKE_SECONDS:-0}"
    [[ -z ${FAKE_FAILS:-} ]] || exit 1
    printf '#!/bin/bash\\necho "train in $PWD:" "$@"\\n' >.venv/bin/lore-train
    chmod +x .venv/bin/lore-train ;;
  "-c "*) [[ -z ${FAKE_OLD:-} ]] ;;
esac
"""


class Clone:
    """A fresh copy of the scripts in a path with spaces, and a fake Python for them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a fresh clone"
        (self.root / "scripts").mkdir(parents=True)
        for name in ("scripts/train", "scripts/setup.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root / name)
        self.log = folder / "log"
        self.elsewhere = folder / "else where"
        self.elsewhere.mkdir()
        python = folder / "python3"
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)
        self.env = {**os.environ, "LORE_PYTHON": str(python), "FAKE_LOG": str(self.log)}

    def start(self, *arguments: str, script: Path | None = None, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(script or self.root / "scripts" / "train"), *arguments],
            cwd=self.elsewhere,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, script: Path | None = None, **env: str) -> tuple[int, str, str]:
        process = self.start(*arguments, script=script, **env)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def tools_only(self) -> str:
        """A PATH with what the scripts call: no Python, no flock."""
        tools = self.elsewhere / "bin"
        tools.mkdir()
        commands = (
            "bash",
            "dirname",
            "readlink",
            "cat",
            "cksum",
            "rm",
            "mkdir",
            "mv",
            "sleep",
            "cp",
            "chmod",
        )
        for name in commands:
            (tools / name).symlink_to(shutil.which(name) or "")
        return str(tools)

    @property
    def installs(self) -> int:
        return self.log.read_text().count("install") if self.log.exists() else 0


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_first_use_installs_once_and_runs_where_it_was_called(clone: Clone) -> None:
    status, out, err = clone.run("a=1", "b=c d")
    assert (status, out) == (0, f"train in {clone.elsewhere}: a=1 b=c d\n")
    assert "first use" in err
    link = clone.elsewhere / "link"
    link.symlink_to(os.path.relpath(clone.root / "scripts" / "train", clone.elsewhere))
    assert clone.run("x", script=link) == (0, f"train in {clone.elsewhere}: x\n", "")
    assert clone.installs == 1


def test_afterwards_the_wrapper_is_quick(clone: Clone) -> None:
    clone.run()
    before = os.times()
    for _ in range(5):
        clone.run()
    after = os.times()  # processor time: another test may run beside this one
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert 0 < spent / 5 < 0.2


@pytest.mark.parametrize("lock", ["flock", "mkdir"])
def test_two_first_starts_install_once(clone: Clone, lock: str) -> None:
    path = os.environ["PATH"] if lock == "flock" else clone.tools_only()
    both = [clone.start(name, FAKE_SECONDS="1", PATH=path) for name in ("one", "two")]
    assert [process.communicate(timeout=60)[0].split(": ")[1] for process in both] == ["one\n", "two\n"]
    assert clone.installs == 1


def test_a_broken_installation_is_redone(clone: Clone) -> None:
    status, out, err = clone.run(FAKE_FAILS="1")
    assert status == 1 and not out and "next start tries again" in err
    process = clone.start(FAKE_SECONDS="30")
    while clone.installs < 2:
        time.sleep(0.02)
    os.killpg(process.pid, 9)
    process.communicate(timeout=60)
    assert clone.run("x")[0] == 0 and clone.installs == 3


def test_changed_dependencies_and_a_moved_repository_install_again(clone: Clone) -> None:
    clone.run()
    with (clone.root / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert "dependencies changed" in clone.run()[2]
    clone.root = clone.root.rename(clone.root.with_name("moved"))
    assert "first use" in clone.run()[2]
    assert clone.run()[2] == "" and clone.installs == 3


def test_an_old_python_is_told(clone: Clone) -> None:
    status, _, err = clone.run(FAKE_OLD="1", PATH=clone.tools_only())
    assert status == 1 and "Python 3.11 or newer" in err


def test_import_is_instant_and_exports_load_late() -> None:
    code = "import sys, lore; assert not {'torch', 'hydra', 'numpy'} & sys.modules.keys(); lore.Config()"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
    )
    assert all(getattr(lore, name) is not None for name in lore.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = lore.Nothing


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in wanted}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    assert names <= {line.split("==")[0] for line in lines}
    assert "torch==2.13.0" in lines and "hydra-core==1.3.8" in lines


def test_the_version_stands_in_one_place_and_leads_the_changelog() -> None:
    """The changelog's newest heading is the version of the package, and no other file states one."""
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == lore.__version__ and headings == sorted(headings, reverse=True)
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_root_link_shows_the_configs() -> None:
    link = ROOT / "conf"
    assert link.is_symlink() and link.resolve() == ROOT / "src" / "lore" / "conf"


def test_github_runs_what_ci_runs_and_every_form_is_whole() -> None:
    """The workflow's only command of this repository is .ci/run; each form has a name and questions."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.stem for form in forms] == ["bug", "feature", "question"]
    for form in map(yaml.safe_load, (path.read_text() for path in forms)):
        assert form["name"] and form["description"]
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids) > 0 and all(part["attributes"]["label"] for part in form["body"])


@pytest.mark.slow
def test_wheel_from_the_sdist_holds_every_config_and_recorded_answer(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert "pyproject.toml" in inside and "LICENSE" in inside and "scripts/train" in inside
    assert not [name for name in inside if name.startswith("conf")]
    (wheel,) = tmp_path.glob("*.whl")
    answers = [path for path in (ROOT / "src" / "lore" / "llm" / "datasets").rglob("*") if path.is_file()]
    assert len(answers) == 13 * 3  # prompts, answers and a card of each task
    source = {str(path.relative_to(ROOT / "src")) for path in [*(ROOT / "src").rglob("*.yaml"), *answers]}
    assert source <= set(zipfile.ZipFile(wheel).namelist())

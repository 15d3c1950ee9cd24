"""Which room may import which: docs/architecture.md draws it, this holds it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lore

ROOT = Path(lore.__file__).parent
BELOW: dict[str, set[str]] = {
    "base": set(),
    "config": {"base"},
    "nn": {"base"},
    "dreamer": {"nn", "config", "base"},
    "gate": {"nn", "config", "base"},
    "llm": {"nn", "config", "base"},
    "envs": {"nn", "config", "base"},
    "metrics": {"nn", "config", "base"},
    "training": {"dreamer", "gate", "llm", "envs", "metrics", "nn", "config", "base"},
    "studies": {"training", "dreamer", "gate", "llm", "envs", "metrics", "nn", "config", "base"},
    "cli": {"studies", "training", "dreamer", "gate", "llm", "envs", "metrics", "nn", "config", "base"},
}
"""Room -> the rooms that it may import."""
OF_CONFIG = {
    "lore.config.options",
    "lore.config.plugins",
}  # what of config/ the rooms between it and training/ may know
MAY_IMPORT_HYDRA = {"cli/train.py", "config/compose.py", "config/explain.py", "config/stored.py"}
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
IN_ROOMS = [module for module in MODULES if "/" in module and not module.startswith("conf/")]


def imports(module: str) -> set[str]:
    """Full names that a module of this package imports, those below an `if TYPE_CHECKING` included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}: relative imports hide where a name lives"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(name: str) -> str:
    """A module, as a file of this package, that holds an imported name."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        path = "/".join(parts[:end])
        if (ROOT / f"{path}.py").is_file():
            return f"{path}.py"
        if (ROOT / path / "__init__.py").is_file():
            return f"{path}/__init__.py"
    return "__init__.py"


def test_the_top_holds_rooms_and_little_else() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*BELOW, "conf"} and len(folders) <= 12
    assert len([path for path in ROOT.iterdir() if path.is_file()]) <= 3


@pytest.mark.parametrize("module", IN_ROOMS)
def test_a_room_imports_only_rooms_below_it(module: str) -> None:
    room = module.split("/")[0]
    ours = {name for name in imports(module) if name.split(".")[0] == "lore"}
    rooms = {name.split(".")[1] for name in ours if len(name.split(".")) > 1} - {room}
    assert rooms <= BELOW[room], f"{module} imports {rooms - BELOW[room]}"


@pytest.mark.parametrize("module", IN_ROOMS)
def test_only_commands_and_training_read_more_of_config_than_options(module: str) -> None:
    if module.split("/")[0] in ("config", "training", "studies", "cli"):
        return
    of_config = {name for name in imports(module) if name.startswith("lore.config")}
    assert all(name.rpartition(".")[0] in OF_CONFIG for name in of_config), of_config


def test_no_circle_of_modules() -> None:
    graph = {module: {module_of(n) for n in imports(module) if n.startswith("lore.")} for module in MODULES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module] - {module}):
                visit(other, (*trail, module))
            done.add(module)

    for module in MODULES:
        if module != "__init__.py":  # its names load on first use
            visit(module, ())


def test_only_the_command_line_imports_hydra() -> None:
    wrong = {
        module
        for module in MODULES
        if module not in MAY_IMPORT_HYDRA
        and any(name.startswith(("hydra", "omegaconf")) for name in imports(module))
    }
    assert not wrong


def test_one_room_reads_the_true_state_of_a_world() -> None:
    reads = re.compile(r"^[^#`]*\.unwrapped\b(?!`)", re.MULTILINE)
    readers = {m for m in MODULES if reads.search((ROOT / m).read_text(encoding="utf-8"))}
    assert readers == {"envs/privileged/truth.py"}


def test_every_room_says_what_it_is() -> None:
    inits = [module for module in MODULES if module.endswith("/__init__.py")]
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")} - {"."}
    assert {module.rpartition("/")[0] for module in inits} == packages
    assert all(ast.get_docstring(ast.parse((ROOT / m).read_text(encoding="utf-8"))) for m in inits)

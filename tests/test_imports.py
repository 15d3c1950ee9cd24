"""Which room may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import lore

ROOT = Path(lore.__file__).parent
ROOMS = {"dreamer", "envs", "gate", "llm"}
MAY_IMPORT_HYDRA = {"cli.py", "config.py"}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_rooms_never_import_one_another() -> None:
    wrong = [
        (str(path), name)
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for name in _imports(path)
        for other in ROOMS - {room}
        if name.startswith(f"lore.{other}")
    ]
    assert not wrong


def test_mathematics_knows_neither_rooms_nor_loop() -> None:
    allowed = ("lore.nn", "lore.types")
    wrong = [
        (path.name, name)
        for path in (ROOT / "nn").rglob("*.py")
        for name in _imports(path)
        if name.startswith("lore") and not name.startswith(allowed)
    ]
    assert not wrong


def test_only_cli_and_config_import_hydra() -> None:
    wrong = [
        path.name
        for path in ROOT.rglob("*.py")
        if path.name not in MAY_IMPORT_HYDRA
        and any(name.startswith(("hydra", "omegaconf")) for name in _imports(path))
    ]
    assert not wrong

"""For MkDocs: pages of the Python interface name every module; links out of docs/ become plain text."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s:]+)(#[^)]*)?\)")
ROOM = re.compile(r"^::: lore\.(\w+)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Prepare a page.

    Args:
        markdown: the page's text. `::: lore.ROOM` stands for all modules of the room.
        page: its file knows where in docs/ it lies.
        config: the site's options.

    Returns:
        The text with every module of its room, and without links to files outside docs/ (a notebook, an
        example) or to raw data: the site has no pages for them.

    Raises:
        FileNotFoundError: a link leads to no file of the repository.
    """
    here = Path(config["docs_dir"]) / PurePosixPath(page.file.src_uri).parent

    def text_of(link: re.Match[str]) -> str:
        target = (here / link[2]).resolve()
        if target.suffix in (".md", ".png") and target.is_relative_to(config["docs_dir"]):
            return link[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri}: {link[2]} does not exist")
        return link[1]

    return LINK.sub(text_of, ROOM.sub(lambda room: _modules(room[1]), markdown))


def _modules(room: str) -> str:
    """Write a heading and a directive for every module of a room, as Markdown."""
    source = Path(__file__).parents[1] / "src"
    paths = sorted(path for path in (source / "lore" / room).rglob("*.py") if path.name != "__init__.py")
    names = [".".join(path.relative_to(source).with_suffix("").parts) for path in paths]
    return "\n\n".join(f"## {name}\n\n::: {name}" for name in names)

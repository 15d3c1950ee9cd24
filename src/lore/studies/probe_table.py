"""What lore-probe found, as a table for people: drawn on a terminal, in Markdown elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

HEAD = ("adviser", "task", "wording", "action", "subgoal", "calls", "dollars")
Results = Mapping[str, Mapping[str, Any]]
"""Label of an adviser -> the result of its probe."""


def print_table(results: Results, piped: bool = True) -> None:
    """Print a row for each yardstick of a task, and for each adviser and wording.

    Args:
        results: What to show; advisers of one task share its yardsticks.
        piped: Whether there is a table, in Markdown, where the output is no terminal.
    """
    if sys.stdout.isatty():
        for env_id in dict.fromkeys(result["env_id"] for result in results.values()):
            title = f"{env_id}: accuracy with its 95 % interval"
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
            for name in (HEAD[0], *HEAD[2:]):
                table.add_column(name, no_wrap=name in ("action", "subgoal"))
            for name, task, *cells in list_rows(results):
                if task == env_id:
                    table.add_row(name, *cells, style=None if cells[0] else "dim")
            Console().print(table)
    elif piped:
        print(as_markdown(results), flush=True)


def as_markdown(results: Results) -> str:
    """Return the table as Markdown; the names of yardsticks are set in italics.

    Args:
        results: What to show.
    """
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for name, *cells in list_rows(results):
        lines.append(f"| {' | '.join([name if cells[1] else f'*{name}*', *cells])} |")
    return "\n".join(lines)


def list_rows(results: Results) -> Iterator[tuple[str, ...]]:
    """List the cells of each row, as HEAD names them; a yardstick has no wording and costs nothing.

    Args:
        results: What to show; advisers of one task share its yardsticks.

    Yields:
        The cells of one row.
    """
    for env_id in dict.fromkeys(result["env_id"] for result in results.values()):
        here = {label: result for label, result in results.items() if result["env_id"] == env_id}
        marks = next(iter(here.values()))["yardsticks"]
        for name in marks["action"]:
            yield name, env_id, "", _cell(marks["action"][name]), _cell(marks["subgoal"].get(name)), "", ""
        for label, result in here.items():
            for wording, scores in result["wordings"].items():
                accuracy = [_cell(scores[what]["accuracy"]) for what in ("action", "subgoal")]
                yield label, env_id, wording, *accuracy, str(result["calls"]), f"{result['cost_usd']:.4f}"


def _cell(triple: Sequence[float] | None) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*triple) if triple else "-"

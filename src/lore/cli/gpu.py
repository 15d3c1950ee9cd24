"""scripts/gpu: everything that is worth knowing from a graphics card, in one go."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lore.base.errors import BadInput
from lore.cli.guard import BAD_INPUT, DONE, FAILED, guard

GPU = "scripts/gpu"
HELP = """
scripts/gpu tries a graphics card in under eight minutes: the tests that need one, the time of a gradient
step at 1m, 12m and 50m with the share of it in which the card works, three and ten seeds side by side, and a
run of 2000 steps. Each result is a row of FOLDER/rows.jsonl with the card's name.

  scripts/gpu FOLDER          FOLDER is $OUT where it is left out
  scripts/gpu --cpu FOLDER    the same parts in tiny sizes without a card: does the script work here?
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run scripts/gpu: try a graphics card.

    Args:
        argv: Arguments of the command; None: those of this process.

    Returns:
        The exit status: 0 done, 1 where a part failed, 2 without a card or a folder, 130 interrupted.
    """
    return guard(GPU, argv, lambda: HELP, _try)


def _try(arguments: list[str]) -> int:
    rehearsal = "--cpu" in arguments
    folders = [a for a in arguments if a != "--cpu"] or [os.environ.get("OUT", "")]
    if len(folders) != 1 or not folders[0] or folders[0].startswith("-"):
        raise BadInput("FOLDER", "name one folder for the rows, or set OUT; options: --cpu")
    import torch

    from lore.studies.card import CARD, REHEARSAL, ROWS, try_card

    if not rehearsal and not torch.cuda.is_available():
        print(f"{GPU}: no graphics card that torch can use; --cpu tries the script without", file=sys.stderr)
        return BAD_INPUT
    out = Path(folders[0]).expanduser().resolve()
    good = try_card(REHEARSAL if rehearsal else CARD, out)
    print(out / ROWS)
    return DONE if good else FAILED


if __name__ == "__main__":
    sys.exit(main())

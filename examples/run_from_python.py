"""A run from Python: choose options, train, read the record.

    python examples/run_from_python.py FOLDER [KEY=VALUE ...]

It writes the same run folder as lore-train does, so `lore-train resume=FOLDER` and `lore-eval run=FOLDER`
work on it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from lore.config.compose import compose, to_yaml
from lore.training.run_folder import claim, write_start
from lore.training.trainer import train


def main(folder: Path, overrides: list[str]) -> None:
    """Train in `folder` with lore-train's arguments and print the evaluation curve and the last episodes."""
    torch.set_num_threads(1)  # one thread: the same seed gives the same numbers
    cfg = compose(["env=empty5", "size=tiny", f"run.dir={folder}", *overrides])
    with claim(folder):  # ours until the end: no other process trains in it
        write_start(folder, to_yaml(cfg), cfg, sys.argv)
        print("status:", train(cfg, folder))

    summary = json.loads((folder / "summary.json").read_text())
    for env_step, success in summary["eval_curve"]:
        print(f"step {env_step}: evaluation success {success:.2f}")
    episodes = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    print("last returns:", [round(episode["return"], 2) for episode in episodes[-5:]])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

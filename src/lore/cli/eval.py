"""lore-eval: held-out episodes with a stored checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lore.base.errors import BadInput
from lore.cli.arguments import read
from lore.cli.guard import guard
from lore.cli.help import page
from lore.config import compose as config
from lore.config.command_options import EvalOptions
from lore.config.options import Config
from lore.config.stored import load_to_evaluate
from lore.training.run_folder import latest

EVAL = "lore-eval"
HELP = """
lore-eval evaluates a checkpoint on held-out episodes. Its last line is one JSON object.

  lore-eval run=outputs/DATE/NAME episodes=100 policy=sampled
  lore-eval run=latest                          the latest run in outputs/
  lore-eval run=outputs/DATE/NAME episodes=4 video=true video_format=gif
  lore-eval run=outputs/DATE/NAME env.id=my_package:MyLab-v0    a run in a world of your own package names it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run lore-eval: evaluate a stored checkpoint on held-out episodes.

    Args:
        argv: Arguments of the command; None: those of this process.

    Returns:
        The exit status: 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    return guard(EVAL, argv, lambda: page(HELP, own=[EvalOptions]), _eval)


def _eval(arguments: list[str]) -> None:
    typed = read(EVAL, arguments, ()).arguments
    repeated = [argument for argument in typed if argument.startswith("env.id=")]
    options = config.eval_options([argument for argument in typed if argument not in repeated])
    if options.run == "latest":
        options.run = str(latest(Path("outputs"), "run"))
    if not (Path(options.run) / "config.yaml").is_file():
        raise BadInput("run", f"{options.run!r} is not a run folder: it has no config.yaml")
    print(f"{EVAL}: {options.episodes} episodes, {options.policy} policy, {options.run}", flush=True)
    cfg = _stored(Path(options.run), repeated)
    from lore.studies.checkpoint_evaluation import evaluate_checkpoint

    evaluate_checkpoint(options, cfg)


def _stored(run_dir: Path, repeated: Sequence[str]) -> Config:
    """Read the options of the run to evaluate, for the CPU where its device is missing. Raises BadInput."""
    try:
        return load_to_evaluate(run_dir, repeated)
    except BadInput as error:
        if error.key == "resume":
            raise BadInput("run", str(error).removeprefix("resume: ")) from error
        if error.key != "device":
            raise
    print(f"{EVAL}: the run's device is not available here; evaluating on the cpu", flush=True)
    return load_to_evaluate(run_dir, repeated, device="cpu")

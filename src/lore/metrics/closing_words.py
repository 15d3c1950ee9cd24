"""What a run came to, in a sentence for each point, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lore.base.commands import command_line
from lore.metrics.sinks.terminal_view import duration, share

HELD_OUT = "held-out episodes"
LATEST = 3  # changes of phase that are told


def closing_text(
    summary: Mapping[str, Any], steps: int, agent: str = "dreamer", adviser: str = "none"
) -> list[str]:
    """Say how a run ended, what it learned, what the adviser did, and what the trial of advice came to.

    Args:
        summary: As `make_summary` returns it. For a run that has no summary yet, the keys status, env_steps,
            wall_s (seconds) and llm_calls_used are enough.
        steps: Environment steps that the run was to make.
        agent: Option agent.name: "dreamer", "random" or "prior".
        adviser: Name of the provider that was asked; "none" for nobody.

    Returns:
        Four sentences, one for each of these points; three without a trial.
    """
    ended = f"{summary['status'].capitalize()} at step {summary['env_steps']} of {steps}"
    return [
        f"{ended} after {duration(summary['wall_s'])}.",
        _learned(summary, agent),
        _advised(summary, agent, adviser),
        *_tried(summary.get("trial")),
    ]


def next_command(agent: str, run_dir: Path) -> str:
    """Suggest the command to try on a finished run. Only an agent that learns has something to film.

    Args:
        agent: Option agent.name; films are suggested for "dreamer" alone.
        run_dir: The run folder.

    Returns:
        A command line, quoted for a shell.
    """
    return command_line("lore-eval", f"run={run_dir}", *(["video=true"] if agent == "dreamer" else []))


def _learned(summary: Mapping[str, Any], agent: str) -> str:
    success, advised = summary.get("eval_success"), summary.get("eval_success_advised")
    if agent == "dreamer" and not (summary.get("influence") or {}).get("prior_share"):
        advised = None  # no advice was given, so the evaluation with advice is a second one without
    greedy, reached = summary.get("eval_success_greedy"), summary.get("steps_to_90")
    if success is None:
        return "It was not evaluated."
    if agent == "prior" and advised is not None:
        return f"Following advice, it solves {share(advised)} of the {HELD_OUT}; without, {share(success)}."
    if agent != "dreamer":
        return f"By chance it solves {share(success)} of the {HELD_OUT}."
    also = [] if greedy is None else [f"greedy {share(greedy)}"]
    also += [] if advised is None else [f"with advice {share(advised)}"]
    more = f" ({', '.join(also)})" if also else ""
    when = "" if reached is None else f"; 90 % was reached at step {reached}"
    return f"With the LLM off it solves {share(success)} of the {HELD_OUT}{more}{when}."


def _advised(summary: Mapping[str, Any], agent: str, adviser: str) -> str:
    if adviser == "none":
        return "No adviser took part."
    influence, asks = summary.get("influence"), summary["llm_calls_used"]
    said = f"The adviser ({adviser}) was asked {asks} time{'' if asks == 1 else 's'}"
    if influence is None:
        return f"{said}."
    if not influence["prior_share"]:
        return f"{said} and had no advice to give, for {_dollars(summary['llm_cost_usd'])}."
    said += f" and had advice at {share(influence['prior_share'])} of the steps"
    if agent != "prior":
        said += f", with a mean KL of {max(0.0, influence['mean_kl']):.2g} nats"
        changed = influence.get("clear_change_share")  # unknown in a summary of an older version
        if changed is not None:
            said += f"; it clearly changed the likeliest action at {share(changed)} of all steps"
    return f"{said}, for {_dollars(summary['llm_cost_usd'])}."


def _tried(trial: Mapping[str, Any] | None) -> list[str]:
    """What the trial came to, and the latest changes of its phase; nothing without a trial."""
    if not trial:
        return []
    acted = f"might act at {share(trial['advised_share'])} of the steps"
    if trial["benefit_e"] is None:
        return [f"Without a test, advice was trusted from the start; it {acted}."]
    came_to = f"no verdict (evidence of benefit {trial['benefit_e']:.2g}, of harm {trial['harm_e']:.2g})"
    if trial["verdicts"]:
        came_to = ", ".join(f"{phase} at step {step}" for step, phase in trial["verdicts"][-LATEST:])
    return [f"The trial of advice: {came_to}; advice {acted}."]


def _dollars(usd: float) -> str:
    return f"${usd:.2f}" if usd == 0 or usd >= 0.01 else f"${usd:.2g}"

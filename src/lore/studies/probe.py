"""lore-probe: how good is an adviser, before it touches training?

It is asked about labelled situations of a task, with each wording of the prompt and with several sets of
examples, drawn from other episodes, because the choice of examples alone moves a small model's accuracy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lore.base.errors import BadInput
from lore.base.files import as_file_name
from lore.base.types import GridState
from lore.config.command_options import ProbeOptions
from lore.config.options import EnvOptions, LLMOptions
from lore.envs.make import make_env
from lore.llm.answer import Answer, BadAnswer, parse_answer
from lore.llm.plans.executor import find_first_moves
from lore.llm.prompt import GRID_WORDING, describe
from lore.llm.providers import Provider, ProviderError, Request, build_provider
from lore.llm.providers.local import CUES
from lore.llm.request import Wording
from lore.studies.labelled_situations import Situation, TooFew, collect, find_subgoal, score_actions
from lore.studies.probe_report import Row, figure, measure, require_matplotlib, yardsticks
from lore.studies.probe_table import print_table

_SHORT = """\
You advise an agent in a grid world. Answer with one JSON object:
{"why": "a few words", "plan": "pickup(key); toggle(locked door)", "policy": null, "confidence": 0.9}
A plan is steps joined by ";": goto(T), pickup(T), toggle(T), explore.
T is [color] [locked] door, key, ball, box or goal."""


def _brief(state: GridState) -> str:
    """`describe` without surroundings, unexplored places and steps left."""
    dropped = ("Around", "Unexplored", "Steps left")
    return "\n".join(line for line in describe(state).splitlines() if not line.startswith(dropped))


WORDINGS = {
    "full": GRID_WORDING,
    "short": replace(GRID_WORDING, system=lambda _: _SHORT, describe=_brief),
}
"""full: what training sends. short: a third of it."""


Material = tuple[list[Situation], list[list[Situation]]]
"""Situations to ask about, and sets of examples."""


def probe_adviser(
    options: ProbeOptions, env: EnvOptions, llm: LLMOptions, materials: dict[str, Material] | None = None
) -> dict[str, Any]:
    """Probe one adviser on one task.

    A terminal shows a table; the last line printed is the result as one JSON object.

    Args:
        options: How much is asked. With `out`, the raw answers, the situations and a figure are left there.
        env: The task.
        llm: The options of the adviser.
        materials: What earlier probes collected, by task; it is added to.

    Returns:
        The result.

    Raises:
        BadInput: Names the option that cannot be met.
    """
    if env.family != "minigrid":
        raise BadInput("env.family", "lore-probe labels situations of env.family=minigrid alone")
    _check(options)
    provider, started = build_provider(llm, options.seed), time.monotonic()
    if provider.paid and options.budget_usd is None:
        raise BadInput("budget_usd", f"{provider.name} costs money; say how much it may cost at most")
    task = repr((env, options.situations, options.example_sets, options.examples, options.seed))
    materials = {} if materials is None else materials
    if task not in materials:
        materials[task] = _material(options, env)
    situations, sets = materials[task]
    print(f"lore-probe: {provider.identity()} in {env.id}, {len(situations)} situations", flush=True)
    rows = list(_ask_all(options, provider, situations, sets))
    result = {
        "llm": provider.name,
        "identity": provider.identity(),
        "env_id": env.id,
        **{name: vars(options)[name] for name in ("situations", "example_sets", "examples", "seed")},
        "yardsticks": yardsticks(situations),
        "wordings": {name: measure([row for row in rows if row.wording == name]) for name in WORDINGS},
        **_costs(rows),
        "wall_s": round(time.monotonic() - started, 1),
    }
    if options.out is not None:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "situations.jsonl", [_public(situation) for situation in situations])
        _write(out / "answers.jsonl", [asdict(row) for row in rows])
        _write(out / "result.jsonl", [result])
        figure({provider.name: result}, out / "probe.png")
    print_table({provider.name: result}, piped=False)
    print(json.dumps(result), flush=True)
    return result


def draw_figures(results: dict[str, dict[str, Any]], folder: Path) -> None:
    """Draw a figure of each task, with all advisers that were probed on it, into a folder.

    Args:
        results: Label of an adviser -> its result.
        folder: An existing folder.

    Raises:
        BadInput: matplotlib is not installed.
    """
    for env_id in {result["env_id"] for result in results.values()}:
        here = {label: result for label, result in results.items() if result["env_id"] == env_id}
        figure(here, folder / f"{as_file_name(env_id)}.png")


def _check(options: ProbeOptions) -> None:
    for name, least in {"situations": 2, "example_sets": 1, "examples": 0, "max_tokens": 1}.items():
        if vars(options)[name] < least:
            raise BadInput(name, f"{vars(options)[name]} is too few; at least {least}")
    if options.out is not None:
        require_matplotlib()


def _material(options: ProbeOptions, env: EnvOptions) -> Material:
    """The situations to ask about, and the sets of examples; one empty set without examples."""
    world = make_env(env, "symbolic", remember=True)
    try:
        situations = collect(world, options.situations, options.seed, "probe/situations")
    except TooFew as error:
        raise BadInput("situations", f"{env.id}: {error}") from error
    if not options.examples:
        return situations, [[]]
    keys, n = [situation.key for situation in situations], options.examples
    try:
        pool = collect(world, options.example_sets * n, options.seed, "probe/examples", keys)
    except TooFew as error:
        raise BadInput("examples", f"{env.id}: {error}, beside the situations") from error
    return situations, [pool[at : at + n] for at in range(0, len(pool), n)]


def _ask_all(
    options: ProbeOptions,
    provider: Provider,
    situations: Sequence[Situation],
    sets: Sequence[Sequence[Situation]],
) -> Iterator[Row]:
    names = tuple(situations[0].env.action_names)
    left = np.inf if options.budget_usd is None else options.budget_usd
    for title, wording in WORDINGS.items():
        for number, examples in enumerate(sets):
            system = wording.system(names) + _examples(examples, wording)
            for index, situation in enumerate(situations):
                row, state = Row(title, number, index), situation.state
                optimal = partial(sorted, situation.optimal) if provider.privileged else None
                request = wording.make_request(state, names, options.max_tokens, optimal)
                request = replace(request, system=system)
                most = provider.max_cost_usd(request)
                if most > left:
                    row.failure = "budget"
                else:
                    left -= _ask(provider, request, situation, row)
                yield row


def _examples(examples: Sequence[Situation], wording: Wording) -> str:
    """In words; the lines with what is right begin as those that a scoring model is asked to end."""
    texts = [
        f"{wording.describe(s.state)}\n{CUES['subgoal']} {s.subgoal}\n{CUES['action']} {min(s.optimal)}\n"
        f"{CUES['plan']} {s.plan}"
        for s in examples
    ]
    return "\n\n".join(["\n\nSituations, and what is right in them", *texts]) if texts else ""


def _ask(provider: Provider, request: Request, situation: Situation, row: Row) -> float:
    """Ask once and fill in the row. Returns what to count against the budget."""
    try:
        reply = provider.ask(request)
    except ProviderError as error:
        row.failure = error.kind
        return provider.max_cost_usd(request)
    for name in ("input_tokens", "output_tokens", "cached_tokens", "cost_usd", "latency_s"):
        setattr(row, name, vars(reply)[name])
    row.answer = reply.text[:500]
    try:
        _judge(parse_answer(reply.text, request.actions), situation, row)
    except BadAnswer as error:
        row.failure = error.kind
    return reply.cost_usd


def _judge(answer: Answer, situation: Situation, row: Row) -> None:
    shares = dict(zip(situation.env.action_names, answer.weights or (), strict=False))
    row.confidence = answer.confidence
    if answer.plan is not None:
        shares = find_first_moves(answer.plan, situation.state, tuple(situation.env.action_names))
        row.executable = bool(shares)
        row.subgoal = float(find_subgoal(answer.plan, situation) == situation.subgoal)
    row.action = score_actions(shares, situation)


def _costs(rows: Sequence[Row]) -> dict[str, Any]:
    latency = [row.latency_s for row in rows if row.latency_s]
    tokens = ("input_tokens", "output_tokens", "cached_tokens")
    return {
        "calls": sum(row.failure != "budget" for row in rows),
        **{name: sum(vars(row)[name] for row in rows) for name in tokens},
        "cost_usd": round(sum(row.cost_usd for row in rows), 6),
        "latency_s": {
            name: round(float(np.quantile(latency, q)), 4) if latency else 0.0
            for name, q in (("median", 0.5), ("p95", 0.95))
        },
    }


def _public(situation: Situation) -> dict[str, Any]:
    return {
        "seed": situation.seed,
        "actions": situation.actions,
        "prompt": describe(situation.state),
        "optimal": sorted(situation.optimal),
        "subgoal": situation.subgoal,
        "plan": situation.plan,
    }


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

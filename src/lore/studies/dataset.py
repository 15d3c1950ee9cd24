"""lore-record: the way a real model's answers become a data set that anyone can replay without a key.

    export   play a task, write the distinct prompts that it needs
    import   check the answers that a model gave to them, write a data set
    stats    what is in a data set

Between the first two somebody asks the model, with whatever tool: one line {"id", "text", "model"} a prompt.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lore.base.errors import BadInput
from lore.base.files import write_atomic
from lore.config.command_options import ExportOptions, ImportOptions, StatsOptions
from lore.envs.vector import EpisodicEnv
from lore.llm.answer import ANSWER_VERSION, BadAnswer, parse_answer
from lore.llm.prompt import PROMPT_VERSION
from lore.llm.providers.recorded_files import (
    ANSWERS,
    CARD,
    FORMAT,
    PROMPTS,
    BadLine,
    DataSet,
    Header,
    RecordedAnswer,
    check_answer,
    lines,
    load,
    read_line,
    read_prompts,
)
from lore.llm.request import Provider
from lore.studies.prompt_collection import Exploration, most_useful

BINS = 10  # of the histogram of confidence
LONGEST_NOTE = 2000  # characters
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+() -]{0,99}")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~])")
_CARD = """\
---
{head}
---

# Answers of {model} on {env_id}

{answers} answers to {prompts} prompts, as the model wrote them.
To replay them: `llm=recorded llm.dataset=FOLDER`.

{tables}

## How it was made

`lore-record export` played the task by a mixture of random steps and advice and kept the distinct prompts.
The model answered each once. `lore-record import` checked the answers and wrote this folder.

{made}
- asking: {note}
- actions: {actions}
"""


def export(options: ExportOptions, env: EpisodicEnv, env_id: str, provider: Provider) -> dict[str, Any]:
    """Explore a task and write its prompts, those first that answer most.

    Args:
        options: What the command was given.
        env: The task; it remembers.
        env_id: Name of the task.
        provider: The adviser that the exploration follows.

    Returns:
        Counts, as values that JSON can hold.

    Raises:
        BadInput: The file exists or cannot be written, a count is below 1, or the provider must not explore
            because it costs money or sees more than the agent.
    """
    out = Path(options.out)
    if not options.out or out.exists():
        raise BadInput("out", f"{options.out!r} must name a new file")
    for key in ("steps", "prompts"):
        if getattr(options, key) < 1:
            raise BadInput(key, f"{getattr(options, key)} must be at least 1")
    if provider.paid or provider.privileged:
        what = "costs money" if provider.paid else "sees more than the agent"
        raise BadInput("llm.provider", f"{provider.name!r} {what}; explore with a free one, such as scripted")
    found = Exploration(env, provider, options.seed)
    found.play(options.steps)
    chosen = most_useful(list(found.prompts.values()), options.prompts)
    made = {"steps": options.steps, "seed": options.seed, **found.counts(), "adviser": provider.identity()}
    header = Header(
        format=FORMAT,
        env_id=env_id,
        actions=list(found.actions),
        system=found.system,
        prompt_version=PROMPT_VERSION,
        answer_version=ANSWER_VERSION,
        plan_keys=dict(found.plan_keys.most_common()),
        made=made,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, _jsonl([header, *chosen]))
    except OSError as error:
        raise BadInput("out", f"{options.out!r} cannot be written: {_reason(error)}") from error
    return {"written": len(chosen), "written_plan_keys": len({p.plan_key for p in chosen}), **made}


@dataclass(frozen=True)
class Trouble:
    """A line of the answers that is not as it should be.

    Attributes:
        number: Number of the line, from 1.
        kind: Kind of the BadLine or of the BadAnswer.
        message: What is wrong.
    """

    number: int
    kind: str
    message: str


def read_answers(
    prompts: Path, answers: Path
) -> tuple[dict[str, RecordedAnswer], list[Trouble], list[Trouble]]:
    """Read the answers to prompts, and sort out those that cannot be used.

    Args:
        prompts: File that `export` wrote.
        answers: File with a line for each answer.

    Returns:
        Answers in the order of the prompts, by the id of the prompt; lines that are no answer to the prompts;
        answers that are unusable.

    Raises:
        BadInput: A file cannot be read, or the prompts are damaged or of another version.
    """
    try:
        header, known = read_prompts(prompts)
    except (OSError, BadLine) as error:
        raise BadInput("prompts", f"{str(prompts)!r} cannot be used: {_reason(error)}") from error
    try:
        numbered = list(lines(answers))
    except (OSError, BadLine) as error:
        raise BadInput("answers", f"{str(answers)!r} cannot be read: {_reason(error)}") from error
    found: dict[str, RecordedAnswer] = {}
    refused: list[Trouble] = []
    unusable: list[Trouble] = []
    for number, line in numbered:
        try:
            answer = read_line(RecordedAnswer, number, line)
            check_answer(number, answer, known, found)
        except BadLine as error:
            refused.append(Trouble(number, error.kind, str(error)))
            continue
        found[answer.id] = answer
        try:
            parse_answer(answer.text, tuple(header.actions))
        except BadAnswer as error:
            unusable.append(Trouble(number, error.kind, f"line {number}: {error}"))
    return {name: found[name] for name in known if name in found}, refused, unusable


def import_answers(options: ImportOptions) -> Path:
    """Write the next version of a data set, whole or not at all; say of each bad line what is wrong.

    Unusable answers stay in: they are what the model says, and are counted on the card.

    Args:
        options: What the command was given.

    Returns:
        Folder of the new version.

    Raises:
        BadInput: An option is missing or wrong, a line is no answer to these prompts, or the folder cannot be
            written.
    """
    for field in fields(options):
        if not getattr(options, field.name) and field.name != "note":
            raise BadInput(field.name, "is missing")
    if not _SPDX.fullmatch(options.license):
        raise BadInput(
            "license", "must be an SPDX name or expression, such as CC-BY-4.0 or MIT OR Apache-2.0"
        )
    if not options.note.isprintable() or len(options.note) > LONGEST_NOTE:
        raise BadInput("note", f"must be one line of at most {LONGEST_NOTE} printable characters")
    found, refused, unusable = read_answers(Path(options.prompts), Path(options.answers))
    for trouble in sorted(refused + unusable, key=lambda t: t.number):
        print(f"lore-record: {options.answers}: {trouble.message}", flush=True)
    if refused:
        raise BadInput("answers", f"{len(refused)} lines are no answers to these prompts; nothing is written")
    if not found:
        raise BadInput("answers", "there is not one in the file")
    out = Path(options.out)
    part = out / f".part-{os.getpid()}"
    try:
        part.mkdir(parents=True)
        write_atomic(part / PROMPTS, Path(options.prompts).read_text(encoding="utf-8"))
        write_atomic(part / ANSWERS, _jsonl(list(found.values())))
        version = 1 + max((int(p.name[1:]) for p in out.glob("v*") if p.name[1:].isdecimal()), default=0)
        write_atomic(part / CARD, card(load(part), options, version))
        return part.rename(out / f"v{version}")
    except OSError as error:
        raise BadInput("out", f"{options.out!r} cannot be written: {_reason(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _reason(error: OSError | BadLine) -> str:
    """Say why a file cannot be used, without the number of the system's error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def stats(data: DataSet) -> dict[str, Any]:
    """Count what is in a data set.

    Args:
        data: The data set.

    Returns:
        Values that JSON can hold. coverage: share of the prompts that have an answer; of all explored plan
        keys that have a plan; of all explored steps that would be served, by their very prompt or with plans
        shared.
        kinds: plan, policy, or why an answer is unusable. confidence: usable answers in BINS equal bins from
            0
        to 1.
    """
    parsed = {name: data.parsed(name) for name in data.prompts}
    kinds: Counter[str] = Counter()
    confidence = [0] * BINS
    covered: set[str] = set()
    for name, answer in parsed.items():
        if isinstance(answer, BadAnswer):
            kinds[answer.kind] += 1
        elif answer is not None:
            kinds["policy" if answer.plan is None else "plan"] += 1
            confidence[min(int(answer.confidence * BINS), BINS - 1)] += 1
            if answer.plan is not None:
                covered.add(data.prompts[name].plan_key)
    plan_keys = data.header.plan_keys
    steps = sum(plan_keys.values())
    answered = [data.prompts[name] for name in data.answers]
    exact = sum(p.visits for p in answered)
    alone = sum(p.visits for p in answered if p.plan_key not in covered)
    shared = alone + sum(plan_keys[kind] for kind in covered)
    answers = data.answers.values()
    return {
        "env_id": data.header.env_id,
        "model": data.model,
        "sha256": data.digest,
        "prompts": len(data.prompts),
        "plan_keys": len(plan_keys),
        "answers": len(answers),
        "coverage": {
            "prompts": len(answers) / len(parsed),
            "plan_keys": len(covered) / len(plan_keys),
            "steps": exact / steps,
            "steps_sharing_plans": shared / steps,
        },
        "kinds": dict(kinds.most_common()),
        "confidence": confidence,
        "input_tokens": sum(a.input_tokens for a in answers),
        "output_tokens": sum(a.output_tokens for a in answers),
        "cost_usd": sum(a.cost_usd for a in answers),
    }


def stats_main(options: StatsOptions) -> None:
    """Print what is in a data set: a page for people, and one JSON line at the end.

    Args:
        options: What the command was given.

    Raises:
        BadInput: The data set cannot be used.
    """
    try:
        data = load(Path(options.dataset))
    except (OSError, BadLine) as error:
        raise BadInput("dataset", f"{options.dataset!r} cannot be used: {_reason(error)}") from error
    found = stats(data)
    print(_tables(found))
    print(json.dumps(found), flush=True)


def card(data: DataSet, options: ImportOptions, version: int) -> str:
    """Write the data card, in Markdown with a YAML head; every value in the head is JSON, which is YAML.

    Args:
        data: The data set.
        options: What the command was given: license and note.
        version: Number of this version of the data set, from 1.
    """
    header, found = data.header, stats(data)
    head = {
        "license": options.license,
        "model": data.model,
        "task": header.env_id,
        "version": version,
        "date": datetime.now(UTC).date().isoformat(),
        "prompt_version": header.prompt_version,
        "answer_version": header.answer_version,
        "sha256": data.digest,
    }
    return _CARD.format(
        head="\n".join(f"{name}: {json.dumps(value)}" for name, value in head.items()),
        model=_plain(data.model),
        env_id=_plain(header.env_id),
        answers=found["answers"],
        prompts=found["prompts"],
        tables=_tables(found),
        made="\n".join(f"- {_plain(name)}: {json.dumps(value)}" for name, value in header.made.items()),
        note=_plain(options.note) or "not said",
        actions=_plain(", ".join(header.actions)),
    )


def _plain(text: str) -> str:
    """One line of text that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\1", text)


def _tables(found: dict[str, Any]) -> str:
    """Coverage, kinds and confidence as Markdown tables."""
    coverage = [f"| {name} | {share:.1%} |" for name, share in found["coverage"].items()]
    kinds = [f"| {kind} | {n} | {n / found['answers']:.1%} |" for kind, n in found["kinds"].items()]
    bins = [f"| {i / BINS:.1f} to {(i + 1) / BINS:.1f} | {n} |" for i, n in enumerate(found["confidence"])]
    tables = [
        ["| answered | share |", "|---|---|", *coverage],
        ["| answers | count | share |", "|---|---|---|", *kinds],
        ["| confidence | usable answers |", "|---|---|", *bins],
    ]
    return "\n\n".join("\n".join(rows) for rows in tables)


def _jsonl(records: list[Any]) -> str:
    return "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in records)

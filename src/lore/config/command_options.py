"""Options of the commands beside lore-train, as plain dataclasses: type, default and one comment a field."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EvalOptions:
    """Options of lore-eval."""

    run: str = ""  # run folder
    checkpoint: str = "latest"  # latest, or the name of one in RUN/checkpoints
    episodes: int = 100  # held-out episodes
    policy: str = "sampled"  # sampled | greedy
    video: bool = False  # write films of episodes and of what the world model imagines
    video_format: str = "mp4"  # mp4 | gif
    seed: int = 0  # seed of the policy's sampling; the episodes are always the held-out ones
    out: str | None = None  # folder for films; null: RUN/eval


@dataclass
class BenchOptions:
    """Options of lore-bench beside those of the agent."""

    profile: bool = False  # print a table by region as well, and write a trace into the current folder


@dataclass
class ProbeOptions:
    """Options of lore-probe beside those of the task and the adviser."""

    situations: int = 64  # labelled situations, each from an episode of its own
    example_sets: int = 5  # sets of examples that are tried; asks = situations x sets x 2 wordings
    examples: int = 4  # examples in a set; 0: no examples, as in training, and one set
    seed: int = 0  # of situations and examples
    max_tokens: int = 600  # of an answer
    budget_usd: float | None = None  # limit of a paid adviser, which must have one
    out: str | None = None  # folder for the raw answers and the figure; null: neither


@dataclass
class ExportOptions:
    """Options of lore-record export; the task and the adviser of the exploration are lore-train's."""

    out: str = ""  # file to write; must not exist
    steps: int = 20_000  # environment steps of exploration
    prompts: int = 1000  # at most so many are written: one of each plan key before a second of any
    seed: int = 0  # of the layouts and of the random play


@dataclass
class ImportOptions:
    """Options of lore-record import."""

    prompts: str = ""  # file of lore-record export
    answers: str = ""  # JSONL of {"id", "text", "model"} and, where known, tokens, cost_usd, latency_s, stop
    out: str = ""  # folder of all versions of the data set; this import becomes its next one, v1, v2, ...
    license: str = ""  # under which the answers may be used, as an SPDX name
    note: str = ""  # how the model was asked: settings, date, by whom


@dataclass
class StatsOptions:
    """Options of lore-record stats."""

    dataset: str = ""  # folder of one version of a data set


PATHS = ("run", "out", "answers", "prompts", "dataset")  # options that hold a path where they hold text

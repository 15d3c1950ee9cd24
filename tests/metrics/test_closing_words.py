import io
from pathlib import Path
from typing import Any

import pytest

from lore.metrics.closing_words import closing_text, next_command
from lore.metrics.sinks.terminal import Terminal
from lore.metrics.sinks.terminal_view import View, advice_text
from lore.metrics.summary import make_summary

ADVICE = {
    "llm/calls_used": 143.0,
    "llm/cost_usd": 0.0042,
    "llm/prior_share": 0.62,
    "llm/influence_kl": 0.0123,
    "llm/argmax_flip_share": 0.72,
    "llm/clear_change_share": 0.08,
}


def summary(**more: Any) -> dict[str, Any]:
    values = {
        "env_id": "E", "arm": "E", "seed": 0, "timeout": "truncate", "clock": False, "teach": "none",
        "env_steps": 10_000, "gradient_steps": 6000, "wall_s": 380.0,
        "status": "finished", "eval_curve": [[9500, 0.95], [10_000, 0.97]], "eval_success_greedy": 1.0,
        "eval_success_advised": 0.98, "advice": ADVICE,
    }  # fmt: skip
    return make_summary(**{**values, **more})


def test_a_learner_with_an_adviser() -> None:
    assert closing_text(summary(), 10_000, "dreamer", "scripted") == [
        "Finished at step 10000 of 10000 after 6:20.",
        "With the LLM off it solves 97 % of the held-out episodes (greedy 100 %, with advice 98 %); "
        "90 % was reached at step 9500.",
        "The adviser (scripted) was asked 143 times and had advice at 62 % of the steps, with a mean KL of "
        "0.012 nats; it clearly changed the likeliest action at 8 % of all steps, for $0.0042.",
    ]


TRIAL = {
    "phase": "on trial",
    "trust": 0.0,
    "benefit_e": 3.14,
    "harm_e": 0.2,
    "advised_share": 0.19,
    "verdicts": [],
}
VERDICTS = [[5, "benefit shown"], [1300, "on trial"], [2500, "benefit shown"], [5200, "graduated"]]
ACTED = "advice might act at 19 % of the steps."
TOLD = f"The trial of advice: no verdict (evidence of benefit 3.1, of harm 0.2); {ACTED}"
LATEST = f"on trial at step 1300, benefit shown at step 2500, graduated at step 5200; {ACTED}"
TRUSTED = "Without a test, advice was trusted from the start; it might act at 19 % of the steps."


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (None, []),
        (TRIAL, [TOLD]),
        (TRIAL | {"verdicts": VERDICTS}, [f"The trial of advice: {LATEST}"]),
        (TRIAL | {"phase": "untested", "trust": 1.0, "benefit_e": None, "harm_e": None}, [TRUSTED]),
    ],
)
def test_what_the_trial_came_to(trial: dict[str, Any] | None, said: list[str]) -> None:
    assert closing_text(summary(trial=trial), 10_000, "dreamer", "scripted")[3:] == said


def test_without_advice_nothing_is_said_of_success_with_it() -> None:
    silent = summary(advice={**ADVICE, "llm/prior_share": 0.0})
    _, learned, advised = closing_text(silent, 10_000, "dreamer", "none")
    assert "with advice" not in learned and "greedy 100 %" in learned
    advised = closing_text(silent, 10_000, "dreamer", "compass")[2]
    assert advised.startswith("The adviser (compass) was asked 143 times and had no advice to give")


def test_a_kl_that_rounding_made_negative_is_shown_as_0() -> None:
    rounded = summary(advice={**ADVICE, "llm/influence_kl": -5.2e-08})
    assert "a mean KL of 0 nats" in closing_text(rounded, 10_000, "dreamer", "scripted")[2]
    view = View("E", Path("runs/a"), 1000)
    view.row({"uncertainty_gate/avg_kl": -5.2e-08})
    assert "KL 0" in advice_text(view) and "-" not in advice_text(view)


def test_a_summary_of_an_older_version_says_nothing_of_changed_actions() -> None:
    old = summary()
    del old["influence"]["clear_change_share"]
    assert closing_text(old, 10_000, "dreamer", "scripted")[2].endswith("KL of 0.012 nats, for $0.0042.")


def test_a_learner_alone() -> None:
    alone = summary(
        status="interrupted", env_steps=700, wall_s=3661.0, eval_curve=[[500, 0.04]], advice={},
        eval_success_greedy=None, eval_success_advised=None,
    )  # fmt: skip
    assert closing_text(alone, 10_000) == [
        "Interrupted at step 700 of 10000 after 1:01:01.",
        "With the LLM off it solves 4 % of the held-out episodes.",
        "No adviser took part.",
    ]


def test_the_adviser_alone_is_judged_with_its_advice() -> None:
    values = summary(eval_curve=[[10_000, 0.04]], eval_success_advised=0.6)
    _, learned, advised = closing_text(values, 10_000, "prior", "anthropic")
    assert learned == "Following advice, it solves 60 % of the held-out episodes; without, 4 %."
    assert advised == (
        "The adviser (anthropic) was asked 143 times and had advice at 62 % of the steps, for $0.0042."
    )


def test_chance() -> None:
    values = summary(eval_curve=[[10_000, 0.04]], eval_success_advised=None, advice={})
    assert closing_text(values, 10_000, "random")[1] == "By chance it solves 4 % of the held-out episodes."


def test_a_run_that_ends_before_its_first_summary() -> None:
    view = View("E", Path("runs/a"), 1000, 30, now=1.0)
    view.row({"llm/calls_used": 2.0})
    assert closing_text(view.ending("failed"), 1000, "dreamer", "scripted") == [
        "Failed at step 30 of 1000 after 0:01.",
        "It was not evaluated.",
        "The adviser (scripted) was asked 2 times.",
    ]


@pytest.mark.parametrize(
    ("usd", "text"), [(0.0, "$0.00"), (0.01, "$0.01"), (12.345, "$12.35"), (2e-5, "$2e-05")]
)
def test_cost(usd: float, text: str) -> None:
    advice = {**ADVICE, "llm/cost_usd": usd, "llm/calls_used": 1.0}
    last = closing_text(summary(advice=advice), 1, "dreamer", "local")[2]
    assert last.endswith(f"for {text}.") and "asked 1 time and" in last


def test_only_a_learner_is_filmed() -> None:
    assert next_command("dreamer", Path("a b")) == "lore-eval run='a b' video=true"
    assert (
        next_command("prior", Path("runs/a"))
        == next_command("random", Path("runs/a"))
        == "lore-eval run=runs/a"
    )


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("columns", [0, 60])
def test_the_terminal_tells_it_at_the_end(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """columns: of the terminal; 0 for a file."""
    stream, clock = io.StringIO(), Clock()
    if columns:
        monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
    view = View("E", Path("runs") / ("long" * 20), 10_000, adviser="scripted")
    terminal = Terminal("plain", view, stream, clock)
    terminal.summary(summary(status="running", env_steps=500, wall_s=100.0))
    clock.now = 7.0  # seconds after that summary
    terminal.metrics(600, {})
    start = len(stream.getvalue())
    terminal.close("interrupted", "lore-train resume=" + "long" * 20, {"low_entropy": 2, "llm_failure": 1})
    lines = stream.getvalue()[start:].splitlines()
    assert lines[0] == "Interrupted at step 600 of 10000 after 1:47."
    assert lines[-3:] == [
        "alerts: low_entropy 2, llm_failure 1 (in alerts.jsonl, with causes)",
        "folder: runs/" + "long" * 20,
        "next: lore-train resume=" + "long" * 20,
    ]
    assert len(lines) == 6 if not columns else all(len(line) <= columns for line in lines[:-3])

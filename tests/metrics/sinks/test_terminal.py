import io
import re
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from tests import runs

from lore.base.types import Episode
from lore.metrics.sinks import terminal as terminal_module
from lore.metrics.sinks.terminal import Terminal, panel
from lore.metrics.sinks.terminal_view import View, advice_text, duration, plain_line, sparkline, trial_text


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    def write(self, s: str) -> int:
        raise BrokenPipeError("gone")


def view(env_step: int = 0) -> View:
    return View("MiniGrid-DoorKey-5x5-v0", Path("runs/a"), 10_000, env_step)


def episode(step: int, success: bool) -> Episode:
    return Episode(step, 0, 0, 1, "ab", float(success), 10, success, float(success))


def test_auto_is_live_on_a_terminal_and_plain_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert Terminal("auto", view(), Tty()).mode == "live"
    assert Terminal("auto", view(), io.StringIO()).mode == "plain"
    monkeypatch.setenv("TERM", "dumb")
    assert Terminal("auto", view(), Tty()).mode == "plain"
    with pytest.raises(ValueError, match=r"logger\.terminal=fancy"):
        Terminal("fancy", view())


def test_plain_lines_every_few_seconds_and_at_each_evaluation() -> None:
    stream, clock = io.StringIO(), Clock()
    terminal = Terminal("plain", view(), stream, clock)
    for i in range(100):
        clock.now = i * 0.1
        terminal.metrics(i * 10, {"gradient_steps": i * 5})
    assert len(stream.getvalue().splitlines()) == 2  # at 0 s and 5 s
    terminal.episode(episode(1000, True))
    terminal.evaluation(1000, 0.5, 0.75)
    time_of_day, _, last = stream.getvalue().splitlines()[-1].partition(" ")
    assert re.fullmatch(r"\d\d:\d\d:\d\d", time_of_day)
    assert last.startswith(
        "step 1000/10000 | success 100 % (last 1 episodes) | evaluation 50 % sampled, 75 % greedy"
    )
    assert "gradient steps/s" in last and "left 1:29" in last and "saved: not yet" in last


def test_live_draws_at_most_four_times_a_second_and_says_everything() -> None:
    stream, clock = Tty(), Clock()
    terminal = Terminal("live", view(), stream, clock)
    draws: list[float] = []
    draw = terminal._draw_live
    terminal._draw_live = lambda: (draws.append(clock.now), draw())[1]  # type: ignore[method-assign]
    for i in range(200):
        clock.now = i * 0.01
        terminal.metrics(i, {})
    assert len(draws) == 8
    terminal.evaluation(200, 0.25, None)
    terminal.saved()
    terminal.say("[a] line")
    terminal.close("finished", "lore-eval runs/a")
    text = stream.getvalue()
    for words in (
        "MiniGrid-DoorKey-5x5-v0",
        "200 / 10000",
        "25 % sampled",
        "[a] line",
        "next: lore-eval runs/a",
    ):
        assert words in text
    assert "Finished at step 200 of 10000" in text
    terminal.metrics(300, {})
    assert stream.getvalue() == text


def test_plain_lines_do_not_repeat_themselves_and_tell_of_an_evaluation() -> None:
    stream, clock = io.StringIO(), Clock()
    terminal = Terminal("plain", view(), stream, clock)
    for second in range(0, 100, 10):
        clock.now = float(second)
        terminal.saved()
        terminal.metrics(100, {"gradient_steps": 7})
    for over in (0, 0, 3, 3):
        clock.now += 10.0
        terminal.evaluating(over, 8)
    lines = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    assert len(lines) == 4 and len(set(lines)) == 4
    assert "evaluation - (0 of 8 episodes)" in lines[2] and "evaluation - (3 of 8 episodes)" in lines[3]


def lines_drawn(stream: io.StringIO) -> int:
    return stream.getvalue().count("MiniGrid-DoorKey")


def test_the_live_view_moves_while_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As within a long evaluation: its clock goes on, until the view is closed."""
    monkeypatch.setattr(terminal_module, "IDLE_S", 0.02)
    stream, before = Tty(), threading.active_count()
    terminal = Terminal("live", view(), stream)
    terminal.evaluating(1, 100)
    drawn = lines_drawn(stream)
    until = time.monotonic() + 20
    while lines_drawn(stream) < drawn + 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert lines_drawn(stream) >= drawn + 3 and "(1 of 100 episodes)" in stream.getvalue()
    terminal.close("finished")
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_resized_terminal_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clear, stream = "\x1b[2J", Tty()
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal("live", view(), stream)
    terminal.evaluation(1, 1.0, None)
    terminal.evaluation(2, 1.0, None)
    assert clear not in stream.getvalue()
    terminal._live.console.width = 60  # type: ignore[union-attr]
    terminal.evaluation(3, 1.0, None)
    terminal.evaluation(4, 1.0, None)
    assert stream.getvalue().count(clear) == 1
    terminal.close("finished")


def test_the_live_view_leaves_the_numbers_of_a_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_module, "IDLE_S", 0.001)
    monkeypatch.setattr(sys, "stderr", Tty())
    shown = runs.run(tmp_path / "shown", "logger.terminal=live")
    assert "episodes)" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    runs.assert_same_run(shown, runs.run(tmp_path / "silent"))


def test_off_shows_only_what_is_said() -> None:
    stream = io.StringIO()
    terminal = Terminal("off", view(), stream)
    terminal.metrics(1, {})
    terminal.evaluation(1, 1.0, 1.0)
    terminal.say("W&B: failed")
    terminal.close("finished", "next")
    assert stream.getvalue() == "W&B: failed\n"


@pytest.mark.parametrize("mode", ["plain", "live"])
def test_a_stream_that_is_gone_turns_the_view_off(mode: str) -> None:
    streams = sys.stdout, sys.stderr
    terminal = Terminal(mode, view(), Gone())
    terminal.evaluation(1, 1.0, 1.0)
    assert (sys.stdout, sys.stderr) == streams
    assert terminal.mode == "off"
    terminal.evaluation(2, 1.0, 1.0)
    terminal.close("finished")
    assert terminal.mode == "off"


def test_a_stream_that_goes_away_under_the_live_view() -> None:
    streams, stream = (sys.stdout, sys.stderr), Tty()
    terminal = Terminal("live", view(), stream)
    terminal.evaluation(1, 1.0, 1.0)
    stream.write = Gone().write  # type: ignore[method-assign]
    terminal.evaluation(2, 1.0, 1.0)
    assert (sys.stdout, sys.stderr) == streams
    assert terminal.mode == "off"


def test_speed_is_that_of_the_last_minute_and_of_this_session() -> None:
    seen = view()
    seen.load_state_dict(
        {"env_step": 5000, "gradient_steps": 900, "episodes": [True] * 30, "evaluations": [[500, 0.1, None]]}
    )
    assert len(seen.episodes) == 20 and seen.saved_step == 5000
    assert seen.speed == (0.0, 0.0) and seen.seconds_left is None
    for second in range(1, 101):
        seen.tick(float(second), 5000 + second * 10, 900 + second * 20)
    assert seen.speed == pytest.approx((10.0, 20.0))
    for second in range(101, 201):
        seen.tick(float(second), 6000 + (second - 100) * 20, 2900)
    assert seen.speed == pytest.approx((20.0, 0.0))
    assert seen.seconds_left == pytest.approx(100.0)


def test_state_of_the_view_comes_back() -> None:
    first, second = view(700), view()
    first.episodes.extend([True, False])
    first.evaluations.append([500, 0.5, 0.6])
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() and second.success == 0.5


def test_words() -> None:
    assert [duration(s) for s in (None, 0, 61, 3661)] == ["-", "0:00", "1:01", "1:01:01"]
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█" and len(sparkline([1.0] * 100)) == 40
    assert "success - (last 0 episodes) | evaluation" in plain_line(view())
    assert "advice" not in drawn(view())


def drawn(seen: View) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(panel(seen))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({}, ""),
        ({"trial/trust": 1.0}, "trust 1, 12 of 24 episodes advised"),
        ({"trial/phase": 0, "trial/trust": 0.0}, "on trial, trust 0, 12 of 24 episodes advised"),
        ({"trial/phase": 1, "trial/trust": 1.0}, "benefit shown, trust 1, 12 of 24 episodes advised"),
        ({"trial/phase": 2, "trial/trust": 0.333}, "graduated, trust 0.33, 12 of 24 episodes advised"),
        ({"trial/phase": 4, "trial/trust": 0.0}, "harmful, trust 0, 12 of 24 episodes advised"),
    ],
)
def test_where_the_trial_stands(row: dict[str, float], text: str) -> None:
    seen = view()
    seen.adviser = "scripted"
    assert "trial" not in plain_line(seen) and "trial" not in drawn(seen)
    if row:
        seen.row(row | {"trial/episodes_advised": 12, "trial/episodes_unaided": 12})
    seen.row({"eval/success": 0.5})  # an evaluation says nothing of it
    assert trial_text(seen) == text
    if text:
        assert f"| advice: - | trial: {text} | evaluation" in plain_line(seen)
        assert re.search(rf"trial +{text}", drawn(seen))


def test_how_strongly_advice_acts_and_what_is_left_of_the_budget() -> None:
    seen = view()
    seen.adviser = "scripted"
    assert "success - (last 0 episodes) | advice: - | evaluation" in plain_line(seen)
    terminal = Terminal("off", seen, io.StringIO())
    terminal.metrics(
        100,
        {
            "uncertainty_gate/avg_beta": 0.1234,
            "uncertainty_gate/avg_kl": 0.00314,
            "llm/budget_remaining": 143.0,
        },
    )
    terminal.metrics(200, {"uncertainty_gate/avg_beta": None, "eval/success": 0.5})  # an evaluation has none
    text = "beta 0.12, KL 0.0031, 143 asks left"
    assert f"advice: {text} |" in plain_line(seen)
    assert f"advice      {text}" in drawn(seen)
    free = view()
    free.row({"llm/calls_used": 57.0, "uncertainty_gate/avg_beta": 0.3})
    assert advice_text(free) == "beta 0.3, 57 asks, no limit"


def test_the_panel_fits_80_columns() -> None:
    seen = view(12_345)
    seen.steps, seen.adviser, seen.run_dir = 100_000, "scripted", Path("outputs/2026-01-01/run")
    seen.evaluations = [[i * 500, i / 50, i / 50] for i in range(50)]
    seen.marks.extend([(0.0, 0, 0), (1.0, 1, 1)])
    seen.now = 60.0
    lines = drawn(seen).splitlines()
    assert len(lines) == 9 and all(len(line.rstrip()) <= 80 for line in lines)

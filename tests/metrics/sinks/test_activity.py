import io
import time

import pytest

from lore.metrics.sinks.activity import Activity


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_a_line_every_ten_seconds() -> None:
    now, stream = [0.0], io.StringIO()
    with Activity(stream, lambda: now[0]) as activity:
        for second in range(35):
            now[0] = float(second)
            activity.show(f"{second} of 35")
    told = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    assert told == ["10 of 35", "20 of 35", "30 of 35"]


def test_on_a_terminal_the_line_moves_by_itself_and_goes_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Tty()
    with Activity(stream) as activity:
        activity.show("3 of 100 episodes")
        until = time.monotonic() + 20
        while stream.getvalue().count("3 of 100 episodes") < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert stream.getvalue().count("3 of 100 episodes") >= 3
    assert stream.getvalue().endswith("\x1b[2K")  # the line is erased

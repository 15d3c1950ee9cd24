import subprocess
import sys
import threading
import time

import pytest

from lore.llm.asking import deadline
from lore.llm.asking.deadline import MAX_THREADS, call
from lore.llm.request import ProviderError


@pytest.fixture
def gate():
    """An event that lets waiting calls end; afterwards none is left."""
    event = threading.Event()
    yield event
    event.set()
    wait_until(lambda: waiting() == 0)


def waiting():
    return sum(thread.name == "lore-ask" for thread in threading.enumerate())


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_returns_what_the_function_returns():
    assert call(lambda: threading.current_thread().name, 5) == "lore-ask"
    assert call(lambda: None, 5) is None


@pytest.mark.parametrize(
    "error", [ProviderError("http_401"), KeyError("x"), TimeoutError("its own"), SystemExit(3)]
)
def test_raises_what_the_function_raises(error):
    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        call(fail, 5)
    assert caught.value is error


def test_gives_up_at_the_deadline_and_drops_the_late_result(gate):
    late = []

    def slow():
        gate.wait(10)
        late.append("came")
        return "late"

    started = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        call(slow, 0.2)
    assert 0.2 <= time.monotonic() - started < 3
    assert caught.value.kind == "timeout" and caught.value.retryable
    gate.set()
    wait_until(lambda: late == ["came"])
    assert call(lambda: "next", 5) == "next"


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_no_time_left_starts_nothing(timeout_s):
    started = []
    with pytest.raises(ProviderError, match="timeout"):
        call(lambda: started.append(1), timeout_s)
    assert started == []


def test_threads_are_bounded_and_come_back(gate):
    for _ in range(MAX_THREADS):
        with pytest.raises(ProviderError, match="timeout"):
            call(lambda: gate.wait(10), 0.001)
    assert waiting() == MAX_THREADS
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(ProviderError) as caught:
            call(lambda: "never", 5)
        assert caught.value.kind == "stuck" and time.monotonic() - started < 1
    assert waiting() == MAX_THREADS
    gate.set()
    wait_until(lambda: waiting() == 0)
    for i in range(3 * MAX_THREADS):
        assert call(lambda i=i: i, 5) == i


def test_a_call_given_up_on_does_not_keep_the_process_alive():
    program = (
        "import time\n"
        "from lore.llm.asking.deadline import call\n"
        "from lore.llm.request import ProviderError\n"
        "try:\n    call(lambda: time.sleep(60), 0.1)\n"
        "except ProviderError as error:\n    print(error.kind)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "timeout", "")


def test_cost_of_a_call():
    """A thread for each call is cheap beside anything worth a deadline."""
    call(lambda: None, 5)
    best = min(_seconds(lambda: call(lambda: None, 5)) for _ in range(50))
    assert best < 0.005
    assert deadline._free.acquire(blocking=False)
    deadline._free.release()


def _seconds(fn):
    started = time.perf_counter()
    fn()
    return time.perf_counter() - started

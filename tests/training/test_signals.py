"""A run that is asked to stop, by any signal and anywhere, saves at once; its rest is exact."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import runs
from tests.counting import CountingEnv

from lore.envs import VectorEnv
from lore.training.evaluation import Evaluator
from lore.training.random_agent import RandomAgent
from lore.training.signals import NAMES, Stop, Stopped, interrupt_on_signals, stop_on_signals
from lore.training.trainer import Trainer, train

OPTIONS = ["env.id=MiniGrid-DoorKey-5x5-v0", "env.actions=all", "env.max_steps=20", "llm.cooldown_steps=3"]
OPTIONS += ["run.envs=2", "agent.train_ratio=16"]


@pytest.fixture(autouse=True)
def hangup_heard() -> Iterator[None]:
    """Whoever runs the tests may have switched SIGHUP off."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.run(tmp_path_factory.mktemp("whole"), *OPTIONS)


class Raise:
    """Within it, `number` is raised at the `call`th call of `owner.name`, then every `again` calls."""

    def __init__(self, owner: Any, name: str, call: int, number: int) -> None:
        self.owner, self.name, self.left, self.number = owner, name, call, number
        self.calls_after = 0

    def __enter__(self) -> Raise:
        self.real: Callable[..., Any] = getattr(self.owner, self.name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            self.calls_after += self.left < 0
            if self.left == 0:
                signal.raise_signal(self.number)
            return self.real(*args, **kwargs)

        setattr(self.owner, self.name, call)
        return self

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.name, self.real)


def stopped_at(folder: Path, owner: Any, name: str, call: int, number: int) -> Raise:
    """A run, or its rest, that gets a signal at that call; it must do at most one more of the kind."""
    from lore.config.compose import compose

    folder.mkdir(exist_ok=True)
    with Raise(owner, name, call, number) as raised:
        status = train(compose([*runs.TINY, *OPTIONS]), folder)
    assert status == ("interrupted" if raised.left <= 0 else "finished")
    return raised


POINTS = {
    "acting": (VectorEnv, "step", 20, 0),
    "gradient step": ("learner", "update", 30, 0),
    "evaluation": (Trainer, "_between", 25, 0),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_signal_at_any_point_is_heeded_before_the_next_step_and_the_rest_is_exact(
    point: str, whole: Path, tmp_path: Path
) -> None:
    """Several stops a run, at drawn calls and by drawn signals, each followed by a resume."""
    from lore.dreamer.agent import DreamerV3Agent

    owner, name, calls, allowed = POINTS[point]
    owner = DreamerV3Agent if owner == "learner" else owner
    draw = random.Random(point)
    stops = 0
    for _ in range(5):
        raised = stopped_at(
            tmp_path / "parts", owner, name, draw.randint(1, calls), signal.Signals[draw.choice(NAMES)]
        )
        assert raised.calls_after <= allowed
        stops += raised.left <= 0
        if raised.left > 0:
            break
        assert runs.summary(tmp_path / "parts")["status"] == "interrupted"
    assert stops >= 2
    runs.run(tmp_path / "parts", *OPTIONS)
    runs.assert_same_run(whole, tmp_path / "parts")


def test_an_interrupted_evaluation_is_repeated_with_the_same_numbers(whole: Path, tmp_path: Path) -> None:
    """The stop falls into the evaluation of step 40: it leaves no row, and resume makes it before it acts."""
    evaluations = [0]
    real = Trainer.evaluate

    def evaluate(trainer: Trainer) -> None:
        evaluations[0] += 1
        with Raise(Trainer, "_between", 12, signal.SIGTERM):
            real(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "evaluate", evaluate)
        from lore.config.compose import compose

        (tmp_path / "parts").mkdir()
        assert train(compose([*runs.TINY, *OPTIONS]), tmp_path / "parts") == "interrupted"
    assert evaluations == [1]
    assert not any("eval/success" in row for row in runs.rows(tmp_path / "parts"))
    assert runs.state(tmp_path / "parts")["progress"]["todo"][0] == "evaluate"
    runs.run(tmp_path / "parts", *OPTIONS)
    runs.assert_same_run(whole, tmp_path / "parts")


@pytest.mark.parametrize("allowed", range(1, 9))
def test_a_stop_in_an_evaluation_costs_no_further_step(allowed: int) -> None:
    """It is asked before each environment is made and reset, and before each step of all of them."""
    calls = steps = 0

    class Counted(CountingEnv):
        def step(self, action: int) -> Any:
            nonlocal steps
            steps += 1
            return super().step(action)

    def between(over: int, episodes: int) -> None:
        nonlocal calls
        calls += 1
        if calls > allowed:
            raise Stopped

    agent = RandomAgent(len(CountingEnv().action_names), "cpu")
    with pytest.raises(Stopped):
        Evaluator(Counted, 3, seed=0).run(agent, 0, between=between)
    assert calls == allowed + 1 and steps == 3 * max(0, allowed - 6)


@pytest.mark.parametrize("name", NAMES)
def test_every_signal_asks_for_a_stop_once_and_is_given_back(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        stop.check()
        signal.raise_signal(number)
        with pytest.raises(Stopped, match=name):
            stop.check()
        for other in set(NAMES) - {"SIGINT"}:
            signal.raise_signal(signal.Signals[other])
        assert stop.signal == name
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) == before
    with pytest.raises(KeyboardInterrupt), interrupt_on_signals():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            stop.check()
            signal.raise_signal(signal.SIGUSR1)
            assert stop.signal == "SIGUSR1"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_the_main_thread_there_is_nothing_to_hear() -> None:
    seen: list[Stop] = []

    def work() -> None:
        with stop_on_signals() as stop, interrupt_on_signals():
            seen.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[0].signal == ""

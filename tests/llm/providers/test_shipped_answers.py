"""The answers of a strong model that come with the package, also when the prompt changes one day."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests import runs
from tests.llm.follow import follow

from lore.base.errors import BadInput
from lore.cli import probe
from lore.config.compose import compose
from lore.config.options import EnvOptions, LLMOptions
from lore.envs.make import make_env
from lore.llm import prompt
from lore.llm.answer import Answer
from lore.llm.prompt import GRID_WORDING, PROMPT_VERSION, WORDINGS
from lore.llm.providers import Provider, ProviderError, Reply, build_provider, recorded
from lore.llm.providers.recorded import SHIPPED_FOLDER
from lore.llm.providers.recorded_files import CARD, load
from lore.llm.request import Request, Wording
from lore.training import families
from lore.training.build_adviser import check_plugins

CLAUDE = SHIPPED_FOLDER / "claude"
TASKS = sorted(path.name for path in CLAUDE.iterdir())
DOORKEY = "MiniGrid-DoorKey-5x5-v0"
ALONE = ["agent=prior", "llm=recorded_claude", f"env.id={DOORKEY}", "env.actions=all", "env.max_steps=60"]


def test_every_answer_of_every_task_is_whole_and_usable() -> None:
    """Each folder is named after its task, and has its own card; all 535 answers are advice."""
    answers = 0
    for task in TASKS:
        data = load(CLAUDE / task)
        assert (data.header.env_id, data.header.prompt_version, data.model) == (task, "1", "claude")
        assert all(isinstance(data.parsed(name), Answer) for name in data.prompts)
        card = (CLAUDE / task / CARD).read_text()
        assert 'license: "CC-BY-4.0"' in card and f'sha256: "{data.digest}"' in card and task in card
        assert r"Claude \(Anthropic\), asked on 2026-11-27" in card and 'adviser: "scripted' in card
        answers += len(data.answers)
    assert (len(TASKS), answers) == (13, 535)


def test_it_finds_the_data_set_of_the_task_and_is_called_recorded() -> None:
    cfg = compose(["llm=recorded_claude", "env=doorkey8", "+ablation=D"])
    assert (cfg.llm.provider, cfg.llm.dataset) == ("recorded", "lore:claude/MiniGrid-DoorKey-8x8-v0")
    provider = build_provider(cfg.llm)
    assert (
        provider.name == "recorded" and load(CLAUDE / "MiniGrid-DoorKey-8x8-v0").digest in provider.identity()
    )
    assert "D-recorded" in cfg.run.dir


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["llm=recorded_claude", "env=doorkey6"],
            f"not asked about MiniGrid-DoorKey-6x6-v0, only about {TASKS[0]}",
        ),
        (["llm=recorded_claude", "env=doorkey6"], "take llm=scripted, or make a data set with lore-record"),
        (["llm=recorded", "llm.dataset=lore:nobody/x"], "this package has claude"),
        (["llm=recorded", "llm.dataset=lore:claude"], "not asked about a task without a name"),
        (["llm=recorded", "llm.dataset=lore:claude/."], "not asked about ."),
        (["llm=recorded", f"llm.dataset=lore:claude/../claude/{DOORKEY}"], "not asked about .."),
    ],
)
def test_a_task_without_answers_is_refused_before_anything_is_built(arguments: list[str], says: str) -> None:
    with pytest.raises(BadInput) as refused:
        check_plugins(compose(arguments))
    assert refused.value.key == "llm.dataset" and says in str(refused.value)


def test_followed_alone_they_solve_the_task() -> None:
    provider = build_provider(LLMOptions("recorded", dataset=f"lore:claude/{DOORKEY}"))
    assert follow(DOORKEY, provider, episodes=20).rate == 1.0


def test_a_run_and_its_journal_say_recorded(tmp_path: Path) -> None:
    folder = runs.run(tmp_path, *ALONE)
    asks = runs.rows(folder, "llm.jsonl")
    assert asks and all(ask["provider"].startswith("recorded ") and not ask["failures"] for ask in asks)
    assert all(episode["adviser"] == "recorded" for episode in runs.rows(folder, "episodes.jsonl"))
    assert runs.summary(folder)["arm"] == "recorded"


def test_the_probe_gets_the_same_answers_to_each_wording(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["situations=6", "example_sets=2", "examples=2"]
    assert probe.main(["llm=recorded_claude", "env=doorkey5", *few]) == 0
    wordings = json.loads(capsys.readouterr().out.splitlines()[-1])["wordings"]
    for name in ("full", "short"):
        assert wordings[name]["failures"] == {} and wordings[name]["action"]["accuracy"][0] == 1.0


def reworded() -> Wording:
    """A later version of the words, and of the keys."""
    return Wording(
        system=lambda actions: "You are asked in other words.",
        describe=lambda state: f"The mission, in other words: {state.mission}",
        plan_key=lambda state: f"version 2|{GRID_WORDING.plan_key(state)}",
        policy_key=lambda state: f"version 2|{GRID_WORDING.policy_key(state)}",
    )


def test_the_words_of_this_version_and_of_the_shipped_answers_are_kept() -> None:
    assert WORDINGS[PROMPT_VERSION] is GRID_WORDING and "1" in WORDINGS


def test_a_run_of_a_later_prompt_version_gets_the_same_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version, other words, other keys: each ask is answered alike, each episode is the same."""
    now = runs.run(tmp_path / "now", *ALONE)
    asked: list[Request] = []
    ask = recorded.RecordedAnswersProvider.ask
    monkeypatch.setattr(recorded.RecordedAnswersProvider, "ask", lambda s, r: (asked.append(r), ask(s, r))[1])
    for module in (prompt, recorded):
        monkeypatch.setattr(module, "PROMPT_VERSION", "2")
    monkeypatch.setattr(families, "MINIGRID", replace(families.MINIGRID, wording=reworded()))
    later = runs.run(tmp_path / "later", *ALONE)
    assert asked and all(request.system == "You are asked in other words." for request in asked)
    assert all(request.plan_key.startswith("version 2|") for request in asked)
    assert runs.rows(later, "episodes.jsonl") == runs.rows(now, "episodes.jsonl")


@pytest.mark.parametrize("share_plans", [True, False])
def test_an_older_prompt_is_written_again_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, share_plans: bool
) -> None:
    """Without shared plans too: the very prompt of version 1 is found, and a state without one is missing."""
    options = LLMOptions("recorded", dataset=f"lore:claude/{DOORKEY}", share_plans=share_plans)
    provider, env = build_provider(options), make_env(EnvOptions(id=DOORKEY), "symbolic", remember=True)
    states = []
    for seed in range(40):
        env.reset(seed=seed)
        states.append(env.state)
    actions = tuple(env.action_names)
    first = [said(provider, GRID_WORDING.make_request(state, actions, 512)) for state in states]
    monkeypatch.setattr(recorded, "PROMPT_VERSION", "2")
    assert [said(provider, reworded().make_request(state, actions, 512)) for state in states] == first
    stops = {None if reply is None else reply.stop for reply in first}
    assert stops == {"recorded", "recorded_plan" if share_plans else None}


def said(provider: Provider, request: Request) -> Reply | None:
    try:
        return provider.ask(request)
    except ProviderError as error:
        assert error.kind == "missing"
        return None

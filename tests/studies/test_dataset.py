import json
import random
from collections import Counter
from pathlib import Path

import pytest

from lore.base.errors import BadInput
from lore.config.options import EnvOptions, LLMOptions
from lore.envs.make import make_env
from lore.envs.vector import episode_seed
from lore.llm.answer import Answer, BadAnswer, parse_answer
from lore.llm.prompt import describe, plan_key, write_system
from lore.llm.providers import ProviderError, Reply, Request
from lore.llm.providers import recorded_files as recorded
from lore.llm.providers.recorded import RecordedAnswersProvider
from lore.llm.providers.recorded_files import (
    Prompt,
    load,
    prompt_id,
    read_prompts,
)
from lore.studies import dataset
from lore.studies.dataset import (
    ExportOptions,
    ImportOptions,
    StatsOptions,
    export,
    import_answers,
    read_answers,
)
from lore.studies.prompt_collection import Exploration, most_useful

TASK = "MiniGrid-DoorKey-5x5-v0"
PLAN = (
    '{"why": "", "plan": "pickup(key); toggle(locked door); goto(goal)", "policy": null, "confidence": 0.9}'
)
BAD_PLAN = '{"why": "", "plan": "fly(moon)", "policy": null, "confidence": 0.9}'


class Fake:
    """Answers with one text, or fails in one way."""

    name, model, paid, privileged = "fake", "fake", False, False

    def __init__(self, text=PLAN, failure=None):
        self.text, self.failure, self.asked = text, failure, []

    def identity(self):
        return "fake 1"

    def max_cost_usd(self, request):
        return 0.0

    def ask(self, request):
        self.asked.append(request)
        if self.failure:
            raise ProviderError(self.failure)
        return Reply(self.text, 1, 1, 0, 0.0, 0.0, "end")


def doorkey(actions="all"):
    return make_env(EnvOptions(id=TASK, actions=actions), "symbolic", remember=True)


def exported(tmp_path, provider=None, **options):
    out = tmp_path / "prompts.jsonl"
    counts = export(
        ExportOptions(**{"out": str(out), "steps": 600} | options), doorkey(), TASK, provider or Fake()
    )
    return out, counts


def answers_for(path, texts=(PLAN,), **fields):
    """One answer for each prompt of a file, the texts in turn."""
    _, prompts = read_prompts(path)
    return [
        {"id": name, "text": texts[i % len(texts)], "model": "some-model"} | fields
        for i, name in enumerate(prompts)
    ]


def write_lines(path, rows):
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


def imports(tmp_path, prompts, rows, /, **options):
    answers = write_lines(tmp_path / "answers.jsonl", rows)
    fields = {
        "prompts": str(prompts),
        "answers": str(answers),
        "out": str(tmp_path / "data"),
        "license": "CC0-1.0",
    }
    return import_answers(ImportOptions(**fields | options))


# export


def test_export_writes_each_distinct_prompt_once_under_the_id_of_its_content(tmp_path):
    out, counts = exported(tmp_path, prompts=10_000)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    head, prompts = lines[0], lines[1:]
    actions = tuple(head["actions"])
    assert head["system"] == write_system(actions) and head["env_id"] == TASK
    assert all("system" not in line for line in prompts)
    assert len({p["prompt"] for p in prompts}) == len(prompts) == counts["distinct_prompts"] > 20
    assert all(p["id"] == prompt_id(head["system"], p["prompt"], actions) for p in prompts)
    assert sum(p["visits"] for p in prompts) == 600
    assert all(0 <= p["entered"] <= p["visits"] for p in prompts)
    assert all(p["key"].startswith(p["plan_key"]) for p in prompts)
    assert sum(head["plan_keys"].values()) == 600
    assert all(head["plan_keys"][p["plan_key"]] >= p["visits"] for p in prompts)
    assert head["made"]["adviser"] == "fake 1" and head["made"]["successes"] > 0


def test_the_prompts_are_those_that_a_run_would_send(tmp_path):
    out, _ = exported(tmp_path, prompts=10_000)
    _, prompts = read_prompts(out)
    env = doorkey()
    env.reset(seed=episode_seed("train", 0, 1, 0, 0))
    actions = tuple(env.action_names)
    state = env.state
    name = prompt_id(write_system(actions), describe(state), actions)
    assert name in prompts and prompts[name].plan_key == plan_key(state)


def test_the_same_seed_gives_the_same_file_and_another_one_another(tmp_path):
    texts = []
    for i, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(i)
        out, _ = exported(folder, seed=seed)
        texts.append(out.read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_a_short_file_has_one_prompt_of_each_plan_key_before_a_second_of_any(tmp_path):
    out, counts = exported(tmp_path, prompts=10_000)
    _, prompts = read_prompts(out)
    kinds = [p.plan_key for p in prompts.values()]
    count = counts["distinct_plan_keys"]
    assert 3 < count < len(kinds) and len(set(kinds[:count])) == count
    short, less = exported(tmp_path / "short", prompts=count)
    assert less["written"] == less["written_plan_keys"] == count
    assert list(read_prompts(short)[1]) == list(prompts)[:count]


def test_the_prompt_where_a_plan_key_is_entered_most_comes_first():
    def prompt(name, kind, visits, entered):
        return Prompt(name, name, kind, kind, visits, entered)

    prompts = [
        prompt("a", "x", 9, 1),
        prompt("b", "x", 4, 3),
        prompt("c", "y", 20, 0),
        prompt("d", "x", 4, 1),
    ]
    assert [p.id for p in most_useful(prompts, 9)] == ["c", "b", "a", "d"]
    assert [p.id for p in most_useful(prompts, 2)] == ["c", "b"]


def test_play_is_a_mixture_of_chance_and_advice():
    def play(provider):
        found = Exploration(doorkey(), provider, 0)
        found.play(1500)
        return found

    advised, alone = play(Fake()), play(Fake(failure="timeout"))
    # chance alone succeeds in 9 % of episodes, the plan alone in all of them
    assert alone.successes / alone.episodes < 0.25
    assert 0.5 < advised.successes / advised.episodes < 0.99
    assert len(alone.prompts) > 100 and len(advised.prompts) > 100


def test_the_adviser_is_asked_once_for_a_plan_key_while_its_plan_can_run():
    provider = Fake()
    found = Exploration(doorkey(), provider, 0)
    found.play(600)
    assert found.asks == len(provider.asked)
    assert len({r.key for r in provider.asked}) == len(provider.asked)  # never twice about one state
    assert found.asks < 0.2 * len(found.prompts)
    assert {r.system for r in provider.asked} == {found.system}


def test_answers_with_weights_are_followed():
    only_left = dict.fromkeys(doorkey().action_names, 0) | {"left": 1}
    text = json.dumps({"why": "", "plan": None, "policy": only_left, "confidence": 1})
    env, taken = doorkey(), Counter()
    step = env.step

    def watched(action):
        taken[env.action_names[action]] += 1
        return step(action)

    env.step = watched
    Exploration(env, Fake(text), 0).play(400)
    assert taken["left"] > 0.4 * 400 and min(taken.values()) < 0.2 * 400


@pytest.mark.parametrize(
    ("provider", "kind"),
    [(Fake(failure="timeout"), "timeout"), (Fake("no"), "not_json"), (Fake(BAD_PLAN), "bad_plan")],
)
def test_an_adviser_that_fails_is_counted_and_chance_goes_on(tmp_path, provider, kind):
    _, counts = exported(tmp_path, provider)
    assert counts["failures"] == {kind: counts["asks"]} and counts["asks"] > 0
    assert counts["distinct_prompts"] > 20


@pytest.mark.parametrize("what", ["paid", "privileged"])
def test_an_adviser_that_costs_or_sees_too_much_may_not_explore(tmp_path, what):
    provider = Fake()
    setattr(provider, what, True)
    with pytest.raises(BadInput, match=r"llm\.provider"):
        exported(tmp_path, provider)
    assert not provider.asked and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("key", "value"), [("out", ""), ("steps", 0), ("prompts", 0)])
def test_export_refuses_what_makes_no_file(tmp_path, key, value):
    with pytest.raises(BadInput) as caught:
        exported(tmp_path, **{key: value})
    assert caught.value.key == key


def test_export_never_overwrites(tmp_path):
    out, _ = exported(tmp_path)
    before = out.read_bytes()
    with pytest.raises(BadInput, match="new file"):
        exported(tmp_path, seed=1)
    assert out.read_bytes() == before


# import


def test_a_data_set_goes_from_export_to_replay(tmp_path):
    prompts, _ = exported(tmp_path, prompts=50)
    folder = imports(tmp_path, prompts, reversed(answers_for(prompts, input_tokens=10, cost_usd=0.5)))
    assert sorted(p.name for p in folder.iterdir()) == ["answers.jsonl", "card.md", "prompts.jsonl"]
    assert (folder / "prompts.jsonl").read_bytes() == prompts.read_bytes()
    data = load(folder)
    assert list(data.answers) == list(data.prompts)  # in their order, whatever that of the answers was

    provider = RecordedAnswersProvider(LLMOptions("recorded", dataset=str(folder), share_plans=False))
    prompt = next(iter(data.prompts.values()))
    actions = tuple(data.header.actions)
    env = doorkey()
    env.reset(seed=1)
    request = Request(
        write_system(actions), prompt.prompt, env.state, prompt.key, prompt.plan_key, actions, 100
    )
    assert parse_answer(provider.ask(request).text, actions).plan is not None
    found = Exploration(doorkey(), provider, 0)  # a recorded adviser may explore, too
    found.play(200)
    assert found.successes > 0


def test_each_import_is_the_next_version(tmp_path):
    prompts, _ = exported(tmp_path, prompts=5)
    rows = answers_for(prompts)
    assert [imports(tmp_path, prompts, rows).name for _ in range(3)] == ["v1", "v2", "v3"]
    first = (tmp_path / "data" / "v1" / "answers.jsonl").read_bytes()
    assert imports(tmp_path, prompts, rows[:2]).name == "v4"
    assert (tmp_path / "data" / "v1" / "answers.jsonl").read_bytes() == first


def test_the_order_of_the_answers_does_not_make_another_data_set(tmp_path):
    prompts, _ = exported(tmp_path, prompts=10)
    rows = answers_for(prompts, (PLAN, BAD_PLAN))
    assert (
        load(imports(tmp_path, prompts, rows)).digest == load(imports(tmp_path, prompts, rows[::-1])).digest
    )


def test_bad_lines_are_named_by_number_and_kind_and_nothing_is_written(tmp_path, capsys):
    prompts, _ = exported(tmp_path, prompts=10)
    rows = answers_for(prompts)
    rows[1] |= {"id": "f" * 64}
    rows[2] = b"{ not json"
    rows[3] = rows[0]
    rows[4] |= {"model": "another-model"}
    rows[5] |= {"text": BAD_PLAN}
    del rows[6]["text"]
    rows[7] |= {"colour": "red"}
    with pytest.raises(BadInput, match="6 lines") as caught:
        imports(tmp_path, prompts, rows)
    assert caught.value.key == "answers" and not (tmp_path / "data").exists()
    said = capsys.readouterr().out.splitlines()
    want = [
        "unknown_id",
        "not_json",
        "duplicate",
        "other_model",
        "bad_plan",
        "missing_field",
        "unknown_field",
    ]
    assert len(said) == len(want)
    for number, (line, kind) in enumerate(zip(said, want, strict=True), 2):
        assert f"line {number}: {kind}" in line


def test_unusable_answers_stay_and_are_counted(tmp_path, capsys):
    prompts, _ = exported(tmp_path, prompts=8)
    folder = imports(tmp_path, prompts, answers_for(prompts, (PLAN, BAD_PLAN, "", PLAN)))
    said = capsys.readouterr().out
    assert said.count("bad_plan") == 2 and said.count("empty") == 2
    data = load(folder)
    assert len(data.answers) == 8
    assert dataset.stats(data)["kinds"] == {"plan": 4, "bad_plan": 2, "empty": 2}
    kinds = [type(data.parsed(name)) for name in data.prompts]
    assert kinds == [Answer, BadAnswer, BadAnswer, Answer] * 2


def test_read_answers_tells_the_three_apart(tmp_path):
    prompts, _ = exported(tmp_path, prompts=4)
    rows = answers_for(prompts, (PLAN, BAD_PLAN))
    rows[0] = b"?"
    found, refused, unusable = read_answers(prompts, write_lines(tmp_path / "a", rows))
    assert len(found) == 3
    assert [(t.number, t.kind) for t in refused] == [(1, "not_json")]
    assert [(t.number, t.kind) for t in unusable] == [(2, "bad_plan"), (4, "bad_plan")]


@pytest.mark.parametrize("text", ["\x00", "ü\u2028\n", "x" * 100_000])
def test_any_text_of_a_model_comes_back_as_it_was(tmp_path, text):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    data = load(imports(tmp_path, prompts, answers_for(prompts, (text,))))
    assert {answer.text for answer in data.answers.values()} == {text}


ONE_LINE = ("id", "model", "stop")
BAD_WORDS = {
    "newline": "a\n# a heading",
    "carriage return": "a\rb",
    "escape": "a\x1b[31mb",
    "null": "a\x00b",
    "line separator": "a\u2028b",
    "text direction": "a\u202eb",
    "long": "x" * 10_001,
}


@pytest.mark.parametrize("field", ONE_LINE)
@pytest.mark.parametrize("word", BAD_WORDS)
def test_a_word_that_would_get_into_card_or_terminal_is_refused_by_file_line_and_field(
    tmp_path, capsys, field, word
):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    rows = answers_for(prompts)
    rows[1] |= {field: BAD_WORDS[word]}
    with pytest.raises(BadInput, match="1 lines"):
        imports(tmp_path, prompts, rows)
    said = capsys.readouterr().out
    assert f"answers.jsonl: line 2: bad_text: {field} must be one line" in said
    assert said.count("\n") == 1 and said.rstrip("\n").isprintable() and not (tmp_path / "data").exists()


@pytest.mark.parametrize("field", ["id", "text", "model", "stop"])
@pytest.mark.parametrize("half", ["\ud800", "a\udfff b", '{"why": "\udc80"}'])
def test_half_of_a_character_is_refused(tmp_path, capsys, field, half):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    rows = answers_for(prompts)
    rows[2] |= {field: half}
    with pytest.raises(BadInput, match="1 lines"):
        imports(tmp_path, prompts, rows)
    assert f"line 3: bad_text: {field} holds half of a character" in capsys.readouterr().out


def test_a_prompt_file_with_such_words_is_refused_too(tmp_path):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    head, *rest = prompts.read_text().splitlines()
    for changes in ({"env_id": "a\nb"}, {"env_id": " "}, {"made": {"a\nb": 1}}, {"made": {"a": "\ud800"}}):
        bad = tmp_path / "bad.jsonl"
        bad.write_text("\n".join([json.dumps(json.loads(head) | changes), *rest]) + "\n")
        with pytest.raises(BadInput, match=r"bad\.jsonl, line 1: bad_text") as caught:
            imports(tmp_path, bad, answers_for(prompts))
        assert caught.value.key == "prompts"


@pytest.mark.parametrize("which", ["prompts", "answers"])
def test_lines_and_files_have_a_largest_size(tmp_path, monkeypatch, which):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    rows = answers_for(prompts)
    lines = prompts.read_bytes().splitlines(keepends=True)
    fits = b" " * (recorded.LARGEST_LINE - len(lines[2]) + 1)
    many = b"\n" * (recorded.LARGEST_LINE + 2)  # a file of empty lines has no long line
    for extra, words in ((fits, ""), (fits + b" ", "line 3: too_large"), (many, "")):
        changed = [*lines[:2], lines[2].rstrip(b"\n") + extra + b"\n", *lines[3:]]
        if which == "prompts":
            prompts.write_bytes(b"".join(changed))
        else:
            row = json.dumps(rows[2]).encode()
            rows_now = [*rows[:2], row + extra[: len(extra) + len(lines[2]) - 1 - len(row)], *rows[3:]]
            rows_now[2] = rows_now[2] if extra is many else row.ljust(recorded.LARGEST_LINE + bool(words))
        if not words:
            assert imports(tmp_path, prompts, rows if which == "prompts" else rows_now).name.startswith("v")
            continue
        with pytest.raises(BadInput, match=rf"{which}\.jsonl.*{words}") as caught:
            imports(tmp_path, prompts, rows if which == "prompts" else rows_now)
        assert caught.value.key == which
    monkeypatch.setattr(recorded, "LARGEST_FILE", 2000)
    prompts.write_bytes(b"".join(lines))
    with pytest.raises(BadInput, match=r"prompts\.jsonl, line 1: too_large: the file has more than 2000"):
        imports(tmp_path, prompts, rows)


def test_a_file_without_an_end_is_not_read_to_its_end(tmp_path):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    for options in ({"answers": "/dev/zero"}, {"prompts": "/dev/zero"}):
        with pytest.raises(BadInput, match="line 1: too_large"):
            imports(tmp_path, prompts, answers_for(prompts), **options)


@pytest.mark.parametrize("number", [10**17, 10**400, -1, 1.5, True, None, "1", float("nan")])
def test_numbers_that_no_count_is_are_refused(tmp_path, capsys, number):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    rows = answers_for(prompts)
    rows[0] |= {"input_tokens": number}
    with pytest.raises(BadInput, match="1 lines"):
        imports(tmp_path, prompts, rows)
    assert "line 1: wrong_type: input_tokens must be int from 0 to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("license", "MIT\n# a heading"),
        ("license", "MIT: x"),
        ("license", "<b>"),
        ("license", "x" * 101),
        ("note", "a\nb"),
        ("note", "a\x1b[0m"),
        ("note", "x" * 2001),
    ],
)
def test_words_of_the_command_line_get_into_the_card_as_words_or_not_at_all(tmp_path, key, value):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    with pytest.raises(BadInput) as caught:
        imports(tmp_path, prompts, answers_for(prompts), **{key: value})
    assert caught.value.key == key and not (tmp_path / "data").exists()


def test_markdown_in_a_word_is_shown_and_not_rendered(tmp_path):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    name, note = "a_model <img src=x> [b](c)", "*by* hand # 1"
    folder = imports(
        tmp_path, prompts, answers_for(prompts, model=name), note=note, license="MIT OR Apache-2.0"
    )
    body = (folder / "card.md").read_text().split("---\n", 2)[2]
    assert r"# Answers of a\_model \<img src=x\> \[b\]\(c\) on" in body
    assert r"- asking: \*by\* hand \# 1" in body


@pytest.mark.parametrize("trial", range(60))
def test_whatever_the_files_hold_an_import_ends_with_a_data_set_or_a_line(tmp_path, trial):
    """Random bytes are changed, put in, left out or doubled in one of the files; the other stays whole."""
    draw = random.Random(trial)
    prompts, _ = exported(tmp_path, prompts=4, steps=50)
    answers = write_lines(tmp_path / "answers.jsonl", answers_for(prompts))
    path = draw.choice([prompts, answers])
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 3, 30])):
        at = draw.randrange(len(data))
        kind = draw.randrange(4)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at:at] = draw.choice([b"\xff\xfe", b"\x00", b"\n", b"[" * 3000, b"\\ud800", b'"', b"1e999"])
        elif kind == 2:
            del data[at : at + draw.randrange(1, 50)]
        else:
            data[at:at] = data[at : at + draw.randrange(1, 300)]
    path.write_bytes(data)
    options = {"prompts": str(prompts), "answers": str(answers), "out": str(tmp_path / "data")}
    try:
        folder = import_answers(ImportOptions(**options, license="MIT"))
    except BadInput as error:
        assert error.key in ("prompts", "answers") and not (tmp_path / "data").exists()
        assert str(error).isprintable() and len(str(error)) < 600
    else:
        assert load(folder).answers


def test_a_prompt_that_was_changed_after_export_is_refused(tmp_path):
    prompts, _ = exported(tmp_path, prompts=5)
    rows = answers_for(prompts)
    text = prompts.read_text()
    prompts.write_text(text.replace("Steps left: plenty", "Steps left: enough", 1))
    with pytest.raises(BadInput, match="wrong_id") as caught:
        imports(tmp_path, prompts, rows)
    assert caught.value.key == "prompts"


@pytest.mark.parametrize("key", ["prompts", "answers", "out", "license"])
def test_import_needs_every_option_but_the_note(tmp_path, key):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    with pytest.raises(BadInput, match="is missing") as caught:
        imports(tmp_path, prompts, answers_for(prompts), **{key: ""})
    assert caught.value.key == key


@pytest.mark.parametrize("key", ["prompts", "answers"])
def test_a_file_that_is_not_there_is_named(tmp_path, key):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    with pytest.raises(BadInput, match=r"nowhere\.jsonl") as caught:
        imports(tmp_path, prompts, answers_for(prompts), **{key: "nowhere.jsonl"})
    assert caught.value.key == key


def test_no_answers_make_no_data_set(tmp_path):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    with pytest.raises(BadInput, match="not one"):
        imports(tmp_path, prompts, [])
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_an_import_that_dies_leaves_no_part_of_a_data_set(tmp_path, monkeypatch, moment):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)

    def full(*_):
        raise OSError(28, "No space left on device")

    if moment == "write":
        monkeypatch.setattr(dataset, "card", full)
    else:
        monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(BadInput, match="No space"):
        imports(tmp_path, prompts, answers_for(prompts))
    assert not list((tmp_path / "data").iterdir())


def test_out_that_cannot_be_written_is_named(tmp_path):
    prompts, _ = exported(tmp_path, prompts=3, steps=50)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written") as caught:
        imports(tmp_path, prompts, answers_for(prompts), out=str(tmp_path / "file" / "data"))
    assert caught.value.key == "out"


# card and stats


def test_the_card_says_what_it_is_and_how_it_was_made(tmp_path):
    yaml = pytest.importorskip("yaml")
    prompts, counts = exported(tmp_path, prompts=10)
    folder = imports(tmp_path, prompts, answers_for(prompts, (PLAN, BAD_PLAN)), note="effort low, batch")
    _, head, body = (folder / "card.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["sha256"] == load(folder).digest and fields["version"] == 1
    assert (fields["license"], fields["model"], fields["task"]) == ("CC0-1.0", "some-model", TASK)
    assert len(fields["date"]) == 10
    assert "10 answers to 10 prompts" in body and "| bad_plan | 5 | 50.0% |" in body
    assert "- asking: effort low, batch" in body and '- adviser: "fake 1"' in body
    assert f"- episodes: {counts['episodes']}" in body


def test_stats_say_how_much_of_the_task_is_answered(tmp_path, capsys):
    everything, _ = exported(tmp_path / "all", prompts=10_000)
    head, explored = read_prompts(everything)
    prompts, _ = exported(tmp_path, prompts=20)  # what was explored and not written counts, too
    policy = dict.fromkeys(doorkey().action_names, 1)
    texts = [PLAN, json.dumps({"why": "", "plan": None, "policy": policy, "confidence": 1.0}), "no"]
    folder = imports(tmp_path, prompts, answers_for(prompts, texts, output_tokens=7)[:3])
    capsys.readouterr()
    dataset.stats_main(StatsOptions(str(folder)))
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    assert (found["answers"], found["prompts"], found["output_tokens"]) == (3, 20, 21)
    assert found["plan_keys"] == len({p.plan_key for p in explored.values()})
    assert found["kinds"] == {"plan": 1, "policy": 1, "not_json": 1}
    assert found["confidence"] == [0] * 9 + [2]
    first, *others = list(explored.values())[:3]
    shared = [p for p in explored.values() if p.plan_key == first.plan_key]
    assert len(shared) > 1 and not set(others) & set(shared)
    coverage = found["coverage"]
    assert coverage["prompts"] == pytest.approx(3 / 20)
    assert coverage["plan_keys"] == pytest.approx(1 / found["plan_keys"])
    assert coverage["steps"] == pytest.approx(sum(p.visits for p in [first, *others]) / 600)
    assert coverage["steps_sharing_plans"] == pytest.approx(sum(p.visits for p in [*shared, *others]) / 600)
    assert head.plan_keys[first.plan_key] == sum(p.visits for p in shared)
    assert "| not_json | 1 | 33.3% |" in out and "| 0.9 to 1.0 | 2 |" in out


def test_stats_of_something_else_are_refused(tmp_path):
    with pytest.raises(BadInput) as caught:
        dataset.stats_main(StatsOptions(str(tmp_path)))
    assert caught.value.key == "dataset"

"""The plan language: what it reads, what it refuses and how it says so."""

import random
import re
import time
from pathlib import Path

import pytest

from lore.llm.plans.language import (
    BAD_PLAN_KINDS,
    COLORS,
    KINDS,
    MAX_CHARS,
    MAX_DEPTH,
    MAX_NODES,
    MAX_REPEAT,
    STATES,
    STEPS,
    TESTS,
    AllOf,
    AnyOf,
    BadPlan,
    ExploreStep,
    If,
    Not,
    Predicate,
    Program,
    Repeat,
    Step,
    Target,
    While,
    children,
    parse,
)

PAGE = Path(__file__).parents[3] / "docs" / "plans.md"
BLOCKS = re.findall(r"^```\n(.*?)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
ROWS = re.findall(r"^\| ([a-z0-9_, ]+) \| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
RECIPES = {name: plan for names, plan in ROWS for name in names.split(", ")}
"""Task -> the plan that the page gives for it."""
KEY, DOOR = Target("key"), Target("door")


def random_target(rng, kinds=KINDS):
    kind = rng.choice(kinds)
    state = rng.choice(("", *STATES)) if kind == "door" else ""
    return Target(kind, rng.choice(("", "", *COLORS)), state)


def random_test(rng, depth):
    shape = rng.random()
    if depth <= 0 or shape < 0.5:
        word = rng.choice(list(TESTS))
        return Predicate(word, random_target(rng, TESTS[word]))
    if shape < 0.65:
        inner = random_test(rng, depth - 1)
        return inner.test if isinstance(inner, Not) else Not(inner)
    kind = rng.choice((AllOf, AnyOf))
    return kind(tuple(random_test(rng, depth - 2) for _ in range(rng.randint(2, 3))))


def random_body(rng, depth):
    return tuple(random_statement(rng, depth) for _ in range(rng.randint(0 if depth < 3 else 1, 3)))


def random_statement(rng, depth):
    shape = rng.random()
    if depth <= 0 or shape < 0.55:
        word = rng.choice(list(STEPS))
        need, kinds = STEPS[word]
        bare = need == "never" or (need == "may" and rng.random() < 0.4)
        return Step(word, None if bare else random_target(rng, kinds))
    if shape < 0.65:
        return ExploreStep(random_test(rng, 2) if rng.random() < 0.7 else None)
    if shape < 0.78:
        return If(random_test(rng, depth), random_body(rng, depth - 1), random_body(rng, depth - 1))
    if shape < 0.92:
        return While(random_test(rng, depth), random_body(rng, depth - 1))
    return Repeat(rng.randint(1, MAX_REPEAT), random_body(rng, depth - 1))


def random_program(rng):
    return Program(random_body(rng, 3))


ODD = [*"{}();!,\"'\\`#$\0\n\t\r\x1b 0123456789é\ud800\u202e", *STEPS, *TESTS, *KINDS, *COLORS, *STATES]
ODD += [
    "if ",
    "else ",
    "while ",
    "until ",
    "repeat ",
    "explore ",
    "not ",
    " and ",
    " or ",
    "&&",
    "||",
    "()",
    "eval",
]


def mutate(text, rng):
    """Break a program in a few places: cut, double, swap or insert."""
    for _ in range(rng.randint(1, 4)):
        i, j = sorted(rng.randint(0, len(text)) for _ in range(2))
        cut = text[i:j]
        text = rng.choice(
            (
                text[:i] + text[j:],
                text[:j] + cut + text[j:],
                text[:i] + rng.choice(ODD) + text[i:],
                text[:i] + rng.choice(ODD) + text[j:],
                text[:i] + cut[::-1] + text[j:],
            )
        )
    return text


def test_a_plan_as_a_model_writes_it():
    program = parse(
        "explore until visible(key); goto(the Yellow KEY); pickup;\n toggle(locked door) ; goto(goal);"
    )
    assert program == Program(
        (
            ExploreStep(Predicate("visible", KEY)),
            Step("goto", Target("key", "yellow")),
            Step("pickup"),
            Step("toggle", Target("door", state="locked")),
            Step("goto", Target("goal")),
        )
    )
    assert str(program) == (
        "explore until visible(key); goto(yellow key); pickup; toggle(locked door); goto(goal)"
    )


@pytest.mark.parametrize(
    ("text", "statement"),
    [
        ("if carrying(key) { drop() }", If(Predicate("carrying", KEY), (Step("drop"),))),
        ("if at(key) { } else { left }", If(Predicate("at", KEY), (), (Step("left"),))),
        (
            "if at(key) {left} else if at(door) {right} else {wait}",
            If(
                Predicate("at", KEY),
                (Step("left"),),
                (If(Predicate("at", DOOR), (Step("right"),), (Step("wait"),)),),
            ),
        ),
        ("while open(door) { forward; }", While(Predicate("open", DOOR), (Step("forward"),))),
        ("until open(door) { forward }", While(Not(Predicate("open", DOOR)), (Step("forward"),))),
        ("until not open(door) { }", While(Predicate("open", DOOR), ())),
        ("repeat 3 { left }", Repeat(3, (Step("left"),))),
        ("explore", ExploreStep()),
        ("explore until not at(key)", ExploreStep(Not(Predicate("at", KEY)))),
        (
            "explore until at(key) or at(door) and not locked(door)",
            ExploreStep(
                AnyOf((Predicate("at", KEY), AllOf((Predicate("at", DOOR), Not(Predicate("locked", DOOR))))))
            ),
        ),
        (
            "explore until (at(key) || at(door)) && !locked(door)",
            ExploreStep(
                AllOf((AnyOf((Predicate("at", KEY), Predicate("at", DOOR))), Not(Predicate("locked", DOOR))))
            ),
        ),
        ("goto(locked red door)", Step("goto", Target("door", "red", "locked"))),
        ("goto(any red locked door)", Step("goto", Target("door", "red", "locked"))),
    ],
)
def test_each_construction(text, statement):
    assert parse(text) == Program((statement,)) == parse(str(parse(text)))


def test_separators_may_be_missing_or_many():
    plain = parse("goto(key); pickup; if at(door) { toggle }; forward")
    assert parse(";;goto(key)\npickup\nif at(door){;toggle;;}forward;;") == plain


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", "empty", "no step"),
        (" ; ;\n", "empty", "no step"),
        ("left;" * MAX_CHARS, "too_long", str(MAX_CHARS)),
        ("if at(key) {" * 40 + "}" * 40, "too_deep", str(MAX_DEPTH)),
        ("left;" * (MAX_NODES + 1), "too_many_nodes", str(MAX_NODES)),
        ("fly", "unknown_word", "'fly'"),
        ("gotto(key)", "unknown_word", "did you mean goto?"),
        ("goto(yelow key)", "unknown_word", "did you mean yellow?"),
        ("if seen(key) { left }", "unknown_word", "'seen'"),
        ("goto", "bad_target", "goto(key)"),
        ("goto()", "bad_target", "goto(key)"),
        ("forward(key)", "bad_target", "no target"),
        ("pickup(door)", "bad_target", "key, ball, box"),
        ("if carrying(door) { left }", "bad_target", "key, ball, box"),
        ("goto(locked key)", "bad_target", "only doors"),
        ("goto(yellow)", "bad_target", "names no thing"),
        ("goto(key door)", "bad_target", "[color] [state] kind"),
        ("goto(red blue key)", "bad_target", "[color] [state] kind"),
        ("repeat 0 { left }", "bad_number", "1 to"),
        (f"repeat {MAX_REPEAT + 1} {{ left }}", "bad_number", "1 to"),
        ("repeat " + "9" * 1900 + " { left }", "bad_number", "1 to"),
        ("goto(key", "syntax", "ends too early"),
        ("if at(key) { left", "syntax", "ends too early"),
        ("goto(key))", "syntax", "')' at character 10"),
        ("__import__('os')", "syntax", "os"),
        ("goto(key) \0", "syntax", "character 11"),
        ("goto(clé)", "syntax", "xe9"),
        ("\ud800", "syntax", "ud800"),
        ("else { left }", "syntax", "else"),
    ],
)
def test_what_is_refused_and_why(text, kind, message):
    with pytest.raises(BadPlan) as refused:
        parse(text)
    assert refused.value.kind == kind in BAD_PLAN_KINDS
    assert message in refused.value.message
    assert len(refused.value.message) < 250 and refused.value.message.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "{" * 100_000,
        "if at(key) {" * 100_000,
        "if " + "(" * 900 + "at(key)" + ")" * 900 + " { left }",
        "if " + "not " * 480 + "at(key) { left }",
        "(" * MAX_CHARS,
        "left " * 400,
        " " * MAX_CHARS,
        ";" * MAX_CHARS,
        "a" * MAX_CHARS,
        "explore until at(key)" + " and at(key)" * 160,
        "if at(key) {left} else " * 86 + "{left}",
        "\0" * MAX_CHARS,
        "\u202e" * MAX_CHARS,
    ],
    ids=lambda text: f"{text[:12]!a}x{len(text)}",
)
def test_hostile_text_costs_milliseconds(text):
    costs = []
    for _ in range(3):  # the best of three: collecting a whole session's garbage may fall into one
        began = time.thread_time()
        try:
            again = str(parse(text))
            assert parse(again) == parse(text)
        except BadPlan as refused:
            assert refused.kind in BAD_PLAN_KINDS
        costs.append(time.thread_time() - began)
    assert min(costs) < 0.15  # three parses; a few milliseconds each on an idle core


def test_random_programs_survive_writing_and_reading():
    rng, parsed = random.Random(0), 0
    for _ in range(1000):
        program = random_program(rng)
        try:
            again = parse(str(program))
        except BadPlan as refused:
            assert refused.kind in ("too_deep", "too_many_nodes", "too_long"), (str(program), refused)
            continue
        assert again == program
        parsed += 1
    assert parsed > 900


def test_the_limits_are_exact():
    assert len(list(children(parse("left;" * (MAX_NODES - 1))))) == MAX_NODES - 1
    with pytest.raises(BadPlan, match="too_many_nodes"):
        parse("left;" * MAX_NODES)
    deep = MAX_DEPTH - 1
    parse("repeat 1 {" * deep + "left" + "}" * deep)
    with pytest.raises(BadPlan, match="too_deep"):
        parse("repeat 1 {" * (deep + 1) + "left" + "}" * (deep + 1))
    steps = MAX_CHARS // len("left;")
    with pytest.raises(BadPlan, match="too_many_nodes"):
        parse("left;" * steps)
    with pytest.raises(BadPlan, match="too_long"):
        parse("left;" * steps + ";")
    longer = "face(purple closed door)" * 83  # written out, with "; " between, it is over the limit
    with pytest.raises(BadPlan, match="too_long"):
        parse(longer)


def test_every_example_on_the_page_is_a_plan():
    assert len(BLOCKS) == 5 and len(RECIPES) == 15
    for text in [*BLOCKS, *RECIPES.values()]:
        assert parse(str(parse(text))) == parse(text)


def test_the_page_names_every_word():
    page = PAGE.read_text(encoding="utf-8")
    for word in (*STEPS, *TESTS, "explore", "if", "else", "while", "until", "repeat", "not", "and", "or"):
        assert re.search(rf"`[^`]*\b{word}\b[^`]*`", page), word
    for word in (*KINDS, *STATES, *BAD_PLAN_KINDS):
        assert re.search(rf"\b{word}\b", page), word
    for number in (MAX_CHARS, MAX_NODES, MAX_DEPTH, MAX_REPEAT):
        assert re.search(rf"\b{number}\b", page), number

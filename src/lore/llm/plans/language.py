"""The language in which an adviser writes a plan: text -> Program, and back by `str`.

    explore until visible(key); goto(key); pickup; toggle(locked door); goto(goal)

`parse` is the only way in. It knows a fixed list of words and never evaluates anything; whatever else it is
given raises BadPlan. What each step does is in `plan_steps.py`; `docs/plans.md` is the page for people.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import NoReturn, cast

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput, UnexpectedToken

from lore.base.types import PORTABLE

MAX_CHARS = 2000
MAX_DEPTH = 16
MAX_NODES = 200
MAX_REPEAT = 100

COLORS = ("red", "green", "blue", "purple", "yellow", "grey")
STATES = ("open", "closed", "locked")
KINDS = ("door", *PORTABLE, "goal", "lava", "wall", "floor")
STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "goto": ("must", KINDS),
    "face": ("must", KINDS),
    "pickup": ("may", PORTABLE),
    "toggle": ("may", ("door", "box")),
    "drop": ("may", KINDS),
    "forward": ("never", ()),
    "left": ("never", ()),
    "right": ("never", ()),
    "wait": ("never", ()),
}
"""Word -> whether it takes a target, and of which kinds."""
TESTS: dict[str, tuple[str, ...]] = {
    "carrying": PORTABLE,
    "visible": KINDS,
    "reachable": KINDS,
    "at": KINDS,
    "open": ("door",),
    "locked": ("door",),
}
"""Word -> the kinds it can be asked of."""
BAD_PLAN_KINDS = (
    "empty",
    "too_long",
    "too_deep",
    "too_many_nodes",
    "syntax",
    "unknown_word",
    "bad_target",
    "bad_number",
)

_ARTICLES = ("a", "an", "the", "any")
_GRAMMAR = r"""
start: ";"* statement*
?statement: (step | explore | if_ | while_ | until | repeat) ";"*
step: WORD ["(" words ")"]
explore: "explore" ["until" test]
if_: "if" test block ["else" (block | if_)]
while_: "while" test block
until: "until" test block
repeat: "repeat" NUMBER block
block: "{" ";"* statement* "}"

?test: all_of | all_of (_or all_of)+ -> any_of
?all_of: one | one (_and one)+
?one: WORD "(" words ")" -> predicate | _not one -> not_ | "(" test ")"
words: WORD*

_or: "or" | "||"
_and: "and" | "&&"
_not: "not" | "!"
WORD: /[a-z_][a-z_0-9]*/
NUMBER: /[0-9]+/
%ignore /\s+/
"""


class BadPlan(Exception):
    """Text that is no program.

    Attributes:
        kind: A word of BAD_PLAN_KINDS, to be counted.
        message: One short line.
    """

    def __init__(self, kind: str, message: str) -> None:
        """Name what is wrong.

        Args:
            kind: A word of BAD_PLAN_KINDS.
            message: What is wrong, for people.
        """
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


@dataclass(frozen=True, slots=True)
class Target:
    """Things of one kind, of any color or state where those are empty text."""

    kind: str
    color: str = ""
    state: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in (self.color, self.state, self.kind) if word)


@dataclass(frozen=True, slots=True)
class Predicate:
    """One fact about the world that can hold or not: a word of TESTS and its target."""

    word: str
    target: Target

    def __str__(self) -> str:
        return f"{self.word}({self.target})"


@dataclass(frozen=True, slots=True)
class Not:
    """A test that holds where another test does not."""

    test: Test

    def __str__(self) -> str:
        return f"not {_bracket(self.test)}"


@dataclass(frozen=True, slots=True)
class AllOf:
    """A test that holds where all of several tests hold."""

    tests: tuple[Test, ...]

    def __str__(self) -> str:
        return " and ".join(_bracket(test) for test in self.tests)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A test that holds where at least one of several tests holds."""

    tests: tuple[Test, ...]

    def __str__(self) -> str:
        return " or ".join(_bracket(test) for test in self.tests)


@dataclass(frozen=True, slots=True)
class Step:
    """A word of STEPS, with its target if it has one."""

    word: str
    target: Target | None = None

    def __str__(self) -> str:
        return self.word if self.target is None else f"{self.word}({self.target})"


@dataclass(frozen=True, slots=True)
class ExploreStep:
    """Look at new places until `until` holds, or, without it, until none is left."""

    until: Test | None = None

    def __str__(self) -> str:
        return "explore" if self.until is None else f"explore until {self.until}"


@dataclass(frozen=True, slots=True)
class If:
    """`if TEST {...} else {...}`."""

    test: Test
    body: tuple[Statement, ...]
    other: tuple[Statement, ...] = ()

    def __str__(self) -> str:
        return f"if {self.test} {_block(self.body)}" + (f" else {_block(self.other)}" if self.other else "")


@dataclass(frozen=True, slots=True)
class While:
    """`while TEST {...}`; `until TEST {...}` is `while not TEST {...}`."""

    test: Test
    body: tuple[Statement, ...]

    def __str__(self) -> str:
        if isinstance(self.test, Not):
            return f"until {self.test.test} {_block(self.body)}"
        return f"while {self.test} {_block(self.body)}"


@dataclass(frozen=True, slots=True)
class Repeat:
    """`repeat COUNT {...}`."""

    count: int
    body: tuple[Statement, ...]

    def __str__(self) -> str:
        return f"repeat {self.count} {_block(self.body)}"


@dataclass(frozen=True, slots=True)
class Program:
    """A plan. `str` gives its canonical text, which parses to an equal program."""

    body: tuple[Statement, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.body))


Test = Predicate | Not | AllOf | AnyOf
Statement = Step | ExploreStep | If | While | Repeat
Node = Program | Statement | Test | Target


def parse(text: str) -> Program:
    """Read a program; case and white space do not matter.

    Args:
        text: What an adviser wrote.

    Returns:
        The program; its `str` parses to an equal one.

    Raises:
        BadPlan: The text is no program.
    """
    if len(text) > MAX_CHARS:
        raise BadPlan("too_long", f"{len(text)} characters; at most {MAX_CHARS}")
    if not text.isascii():
        odd = next(char for char in text if not char.isascii())
        raise BadPlan("syntax", f"unexpected character {odd!a}")
    try:
        program = cast(Program, _parser.parse(text.lower()))
    except UnexpectedInput as error:
        raise BadPlan("syntax", _complaint(error, text)) from None
    if not program.body:
        raise BadPlan("empty", "no step in it")
    _check_size(program)
    return program


def children(node: Node) -> Iterator[Node]:
    """Yield the nodes directly below a node, in the order of the text.

    Args:
        node: A program, statement, test or target.
    """
    for field in fields(node):
        value = getattr(node, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Node):
                yield item


def _check_size(program: Program) -> None:
    count, stack = 0, list[tuple[Node, int]]([(program, 0)])
    while stack:
        node, depth = stack.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise BadPlan("too_deep", f"nested more than {MAX_DEPTH} deep")
        if count > MAX_NODES:
            raise BadPlan("too_many_nodes", f"more than {MAX_NODES} steps, tests and targets")
        stack += [(child, depth + 1) for child in children(node)]
    if len(str(program)) > MAX_CHARS:
        raise BadPlan("too_long", f"{len(str(program))} characters when written out; at most {MAX_CHARS}")


@v_args(inline=True)
class _Build(Transformer):
    """Grammar rules -> nodes; called while the parser runs, so depth costs no recursion."""

    def start(self, *body: Statement) -> Program:
        return Program(body)

    def step(self, word: Token, words: tuple[str, ...] | None = None) -> Step:
        if word not in STEPS:
            _unknown(word, [*STEPS, "explore", "if", "while", "until", "repeat"])
        need, kinds = STEPS[word]
        if not words:
            if need == "must":
                raise BadPlan("bad_target", f"{word} needs a target, as in {word}(key)")
            return Step(str(word))
        if need == "never":
            raise BadPlan("bad_target", f"{word} takes no target")
        return Step(str(word), _target(word, words, kinds))

    def explore(self, until: Test | None = None) -> ExploreStep:
        return ExploreStep(until)

    def if_(
        self, test: Test, body: tuple[Statement, ...], other: tuple[Statement, ...] | If | None = None
    ) -> If:
        return If(test, body, (other,) if isinstance(other, If) else other or ())

    def while_(self, test: Test, body: tuple[Statement, ...]) -> While:
        return While(test, body)

    def until(self, test: Test, body: tuple[Statement, ...]) -> While:
        return While(self.not_(test), body)

    def repeat(self, number: Token, body: tuple[Statement, ...]) -> Repeat:
        if not 1 <= int(number) <= MAX_REPEAT:
            raise BadPlan("bad_number", f"repeat {_short(number)}; 1 to {MAX_REPEAT}")
        return Repeat(int(number), body)

    def block(self, *body: Statement) -> tuple[Statement, ...]:
        return body

    def any_of(self, *tests: Test) -> AnyOf:
        return AnyOf(tests)

    def all_of(self, *tests: Test) -> AllOf:
        return AllOf(tests)

    def not_(self, test: Test) -> Test:
        return test.test if isinstance(test, Not) else Not(test)

    def predicate(self, word: Token, words: tuple[str, ...]) -> Predicate:
        if word not in TESTS:
            _unknown(word, TESTS)
        return Predicate(str(word), _target(word, words, TESTS[word]))

    def words(self, *words: Token) -> tuple[str, ...]:
        return tuple(str(word) for word in words if word not in _ARTICLES)


_parser = Lark(_GRAMMAR, parser="lalr", lexer="basic", transformer=_Build(), maybe_placeholders=False)


def _target(word: str, words: tuple[str, ...], kinds: Collection[str]) -> Target:
    """[color] [state] kind, the adjectives in any order."""
    known = (*KINDS, *COLORS, *STATES)
    for each in words:
        if each not in known:
            _unknown(each, known)
    if not words or words[-1] not in KINDS:
        raise BadPlan(
            "bad_target", f"{word}({_short(' '.join(words))}) names no thing; one of {', '.join(kinds)}"
        )
    *adjectives, kind = words
    color = [each for each in adjectives if each in COLORS]
    state = [each for each in adjectives if each in STATES]
    if len(color) > 1 or len(state) > 1 or len(color) + len(state) < len(adjectives):
        raise BadPlan("bad_target", f"{word}({_short(' '.join(words))}) is not [color] [state] kind")
    if kind not in kinds:
        raise BadPlan("bad_target", f"{word} cannot be used with a {kind}; one of {', '.join(kinds)}")
    if state and kind != "door":
        raise BadPlan("bad_target", f"a {kind} is never {state[0]}; only doors are")
    return Target(kind, "".join(color), "".join(state))


def _unknown(word: str, known: Collection[str]) -> NoReturn:
    close = get_close_matches(word[:40], known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
    raise BadPlan("unknown_word", f"{_short(word)}; {hint}")


def _complaint(error: UnexpectedInput, text: str) -> str:
    at = error.pos_in_stream
    if at is None or (isinstance(error, UnexpectedToken) and error.token.type == "$END"):
        return "it ends too early"
    return f"unexpected {_short(text[at:].split()[0])} at character {at + 1}"


def _short(text: str) -> str:
    return repr(str(text) if len(text) <= 24 else text[:21] + "...")


def _bracket(test: Test) -> str:
    return f"({test})" if isinstance(test, AllOf | AnyOf) else str(test)


def _block(body: tuple[Statement, ...]) -> str:
    return "{ " + "; ".join(map(str, body)) + " }" if body else "{ }"

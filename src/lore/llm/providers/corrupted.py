"""Any adviser, wrong in a chosen share of the kinds of situation: what bad advice costs can then be measured.

    random       each corrupted kind of situation is wrong in a way of its own, drawn among all that change it
    systematic   one wrong rule for the whole run, a word of RULES; where it changes nothing, the next one

Which kinds are corrupted, and how, follows from the seed of the run and the situation alone. So whether an
answer from a cache or a journal is a corrupted one needs no mark on it. A corrupted answer can be read and
followed, is another than the adviser's, and as confident.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from lore.base.types import PORTABLE, GridState
from lore.llm.answer import BadAnswer, parse_answer
from lore.llm.plans.language import COLORS, STATES, BadPlan, Program, Step, parse
from lore.llm.providers.scripted import IDLE, draw, stay_away
from lore.llm.request import Provider, Reply, Request

KINDS = ("random", "systematic")
RULES = ("colors", "sides", "last")
"""Colors permuted, left for right, the last step dropped."""
_THING = re.compile(
    rf"(?:\b(?P<color>{'|'.join(COLORS)}) )?"
    rf"(?P<rest>\b(?:(?:{'|'.join(STATES)}) )?(?P<kind>{'|'.join((*PORTABLE, 'door'))})\b)"
)
_SIDE = re.compile(r"\b(?:left|right)\b")
_OTHER_SIDE = {"left": "right", "right": "left"}
Weights = dict[str, float]
T = TypeVar("T")


class CorruptedProvider:
    """Asks another provider, and spoils its answers in a share of the kinds of situation (plan keys).

    A failure, and an answer that cannot be used, stay what they are.
    """

    def __init__(self, inner: Provider, corruption: float, kind: str, seed: int) -> None:
        """Wrap a provider.

        Args:
            inner: Who is asked.
            corruption: Probability that a kind of situation is corrupted, in [0, 1]. What a smaller one
                corrupts, a larger one corrupts too, and in the same way.
            kind: A word of KINDS.
            seed: Seed of the run.
        """
        self._inner, self._corruption, self._kind, self._seed = inner, corruption, kind, seed
        self.name, self.model = inner.name, inner.model
        self.paid, self.privileged = inner.paid, inner.privileged
        prepare = getattr(inner, "prepare", None)  # a method that a provider may have, see docs/advisers.md
        if prepare is not None:
            self.prepare: Callable[[], None] = prepare
        self.rule = RULES[self._draw("rule") % len(RULES)]

    def identity(self) -> str:
        """See Provider. One that is corrupted otherwise is another adviser."""
        how = f"{self._kind} {self.rule}" if self._kind == "systematic" else self._kind
        return f"{self._inner.identity()} corruption={self._corruption} {how} seed={self._seed}"

    def max_cost_usd(self, request: Request) -> float:
        """See Provider."""
        return self._inner.max_cost_usd(request)

    def corrupts(self, plan_key: str) -> bool:
        """Say whether a kind of situation is corrupted.

        Args:
            plan_key: Its plan key.
        """
        return self._draw("where", plan_key) < self._corruption * 2**64

    def ask(self, request: Request) -> Reply:
        """See Provider. Tokens, dollars and seconds are those of the answer that is spoiled.

        Args:
            request: The question.

        Raises:
            ProviderError: The wrapped provider's ask failed.
        """
        reply = self._inner.ask(request)
        if not self.corrupts(request.plan_key):
            return reply
        try:
            answer = parse_answer(reply.text, request.actions)
        except BadAnswer:
            return reply
        plan = None if answer.plan is None else self._wrong_plan(answer.plan, request)
        policy = None if answer.weights is None else self._wrong_policy(answer.weights, request)
        fields = {"why": answer.why, "plan": plan, "policy": policy, "confidence": answer.confidence}
        return replace(reply, text=json.dumps(fields))

    def _wrong_plan(self, plan: Program, request: Request) -> str:
        state, kind = request.state, request.plan_key
        color = self._draw("color", "" if self._kind == "systematic" else kind)
        ways = {
            "colors": _permute_colors(plan, state, 1 + color % (len(COLORS) - 1)),
            "sides": _SIDE.sub(lambda side: _OTHER_SIDE[side[0]], str(plan)),
            "last": _drop_last(plan),
            "away": stay_away(state, self._draw("away", kind)),
            "later": _skip_first(plan),
        }
        return self._choose({name: way for name, way in ways.items() if _is_another(way, plan)}, kind)

    def _wrong_policy(self, weights: tuple[float, ...], request: Request) -> Weights:
        given = dict(zip(request.actions, weights, strict=True))
        worst = min(given, key=lambda name: given[name])
        ways = {
            "sides": {name: given.get(_OTHER_SIDE.get(name, name), share) for name, share in given.items()},
            "last": {name: float(name == worst) for name in given},  # a policy's last step is its only one
        }
        return self._choose({name: way for name, way in ways.items() if way != given}, request.plan_key)

    def _choose(self, wrong: Mapping[str, T], plan_key: str) -> T:
        """Choose among the ways that change an answer; `last` always does."""
        if self._kind == "random":
            names = list(wrong)
            return wrong[names[self._draw("how", plan_key) % len(names)]]
        first = RULES.index(self.rule)
        return next(wrong[name] for name in (*RULES[first:], *RULES[:first]) if name in wrong)

    def _draw(self, what: str, plan_key: str = "") -> int:
        return draw(f"corrupted {what} {self._seed} {plan_key}")


def _is_another(text: str, plan: Program) -> bool:
    try:
        return parse(text) != plan
    except BadPlan:  # nothing is left of it, or it has become too long
        return False


def _permute_colors(plan: Program, state: GridState, shift: int) -> str:
    """Name another color of each thing; of a thing without one, a color that was not seen on its kind.

    A kind of which nothing was seen stays without a color: any might be right.
    """

    def other(thing: re.Match[str]) -> str:
        kind = thing["kind"]
        seen = sorted(
            {each.color for each in state.cells.values() if each.kind == kind and each.color in COLORS}
        )
        wrong = [_shifted(color, shift) for color in ([thing["color"]] if thing["color"] else seen)]
        wrong = [color for color in wrong if thing["color"] or color not in seen]
        return f"{wrong[0]} {thing['rest']}" if wrong else thing[0]

    return _THING.sub(other, str(plan))


def _shifted(color: str, shift: int) -> str:
    return COLORS[(COLORS.index(color) + shift) % len(COLORS)]


def _drop_last(plan: Program) -> str:
    """Leave the last step out; where it is the only one, turn on the spot."""
    if len(plan.body) > 1:
        return str(Program(plan.body[:-1]))
    return IDLE if str(plan) != IDLE else "explore"


def _skip_first(plan: Program) -> str:
    """Return the plan of a later situation: what comes after the first pickup, drop or toggle."""
    for number, step in enumerate(plan.body, start=1):
        if isinstance(step, Step) and step.word in ("pickup", "drop", "toggle"):
            return str(Program(plan.body[number:]))
    return ""

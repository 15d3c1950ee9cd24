"""Playing a task for the sake of the prompts that an adviser would be asked there."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from lore.base.rng import seed_of
from lore.envs.vector import EpisodicEnv, episode_seed
from lore.llm.answer import Answer, BadAnswer, parse_answer
from lore.llm.follower import Follower
from lore.llm.prompt import GRID_WORDING
from lore.llm.providers.recorded_files import Prompt, prompt_id
from lore.llm.request import Provider, ProviderError, Request, Wording

MAX_TOKENS = 1024  # offered to the adviser


class Exploration:
    """Plays a task for the sake of its prompts.

    Each episode draws a share of random steps, uniform in [0, 1]; the other steps follow the adviser, and are
    random too where it has nothing to say. So all is seen from pure chance to pure advice.
    """

    def __init__(
        self, env: EpisodicEnv, provider: Provider, seed: int, wording: Wording = GRID_WORDING
    ) -> None:
        """Get ready to play.

        Args:
            env: A task that remembers.
            provider: The adviser to follow.
            seed: Seed of the episodes and of the random steps.
            wording: Wording of the family of worlds that the task belongs to.
        """
        self.prompts: dict[str, Prompt] = {}
        self.plan_keys: Counter[str] = Counter()  # steps at each
        self.actions = tuple(env.action_names)
        self.system = wording.system(self.actions)
        self.episodes, self.successes, self.asks = 0, 0, 0
        self.failures: Counter[str] = Counter()
        self._env, self._provider, self._seed, self._wording = env, provider, seed, wording
        self._rng = random.Random(seed_of(seed, "record/export"))
        self._answers: dict[str, Answer] = {}
        self._asked: set[str] = set()  # policy keys
        self._follower = Follower(self.actions)

    def counts(self) -> dict[str, Any]:
        """Count what was done, for the header and the card."""
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
        """Make environment steps; the last episode may stay unfinished.

        Args:
            steps: How many.
        """
        over, before, share, return_ = True, "", 1.0, 0.0
        for _ in range(steps):
            if over:
                self._env.reset(seed=episode_seed("train", self._seed, 1, 0, self.episodes))
                self._follower.running = False
                before, share, return_ = "", self._rng.random(), 0.0
                self.episodes += 1
            request = self._wording.make_request(self._env.state, self.actions, MAX_TOKENS)
            self._note(request, entered=request.plan_key != before)
            before = request.plan_key
            advice = self._advice(request)  # every step: a plan that runs must see every state
            weights = None if self._rng.random() < share else advice
            action = self._rng.choices(range(len(self.actions)), weights)[0]
            _, _, terminated, truncated, info = self._env.step(action)
            return_ += info["raw_reward"]
            over = terminated or truncated
            self.successes += over and return_ > 0

    def _note(self, request: Request, entered: bool) -> None:
        self.plan_keys[request.plan_key] += 1
        name = prompt_id(self.system, request.prompt, self.actions)
        old = self.prompts.get(name)
        visits, entries = (old.visits, old.entered) if old else (0, 0)
        self.prompts[name] = Prompt(
            name, request.prompt, request.key, request.plan_key, visits + 1, entries + entered
        )

    def _advice(self, request: Request) -> Sequence[float] | None:
        """Return the weights of the advice for this step, asked for where nothing covers the state."""
        state, keys = request.state, (request.plan_key, request.key)
        advice = self._follower.follow(state, self._answers, keys)
        if advice is None and request.key not in self._asked:
            self._asked.add(request.key)
            answer = self._ask(request)
            if answer is not None:
                self._answers[request.key] = answer
                if answer.plan is not None:
                    self._answers.setdefault(request.plan_key, answer)
            advice = self._follower.look_up(state, self._answers, keys)
        return None if advice is None else advice.weights

    def _ask(self, request: Request) -> Answer | None:
        self.asks += 1
        try:
            return parse_answer(self._provider.ask(request).text, self.actions)
        except (ProviderError, BadAnswer) as error:
            self.failures[error.kind] += 1
            return None


def most_useful(prompts: list[Prompt], limit: int) -> list[Prompt]:
    """Choose the prompts that answer most.

    A plan answers its whole plan key, and is asked for where a plan key is entered.

    Args:
        prompts: All that were met.
        limit: How many to choose.

    Returns:
        The best prompt of every plan key, then the second best of each, and so on.
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

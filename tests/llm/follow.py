"""Plays held-out episodes by an adviser's word alone: how good its advice is, with no learning in between.

    python -m tests.llm.follow MiniGrid-DoorKey-5x5-v0 --episodes 200 --competence 1

An answer is asked for once, a plan for its plan key, weights for their policy key, and used again in every
later episode. Where neither helps, all actions are equally likely.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import numpy as np

from lore.base.types import GridState
from lore.config.options import EnvOptions, LLMOptions
from lore.envs.adapter import MiniGridAdapter
from lore.envs.make import make_env
from lore.envs.privileged.oracle import optimal_actions
from lore.envs.vector import episode_seed
from lore.llm.answer import Answer, BadAnswer, parse_answer
from lore.llm.plans.executor import Executor
from lore.llm.prompt import GRID_WORDING, plan_key, policy_key
from lore.llm.providers import Provider, build_provider
from lore.training.evaluation import wilson_interval

FLOOR = 0.01  # share of the advised distribution that is spread over all actions


@dataclass
class Played:
    """Of some episodes: which succeeded, how long they were, and what was asked for."""

    success: list[bool] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    asks: int = 0
    uniform: int = 0  # steps without advice
    ended: dict[str, int] = field(default_factory=dict)  # why plans ended -> how often

    @property
    def rate(self) -> float:
        return sum(self.success) / len(self.success)

    def row(self) -> str:
        low, high = wilson_interval(sum(self.success), len(self.success))
        length, steps = np.mean(self.length), sum(self.length)
        return (
            f"{self.rate:.3f} [{low:.3f}, {high:.3f}] of {len(self.success)}, {self.asks} asks, "
            f"mean length {length:.1f}, {self.uniform / steps:.1%} of steps without advice"
        )


class Follower:
    """Follows one provider's advice in one environment."""

    def __init__(self, env: MiniGridAdapter, provider: Provider) -> None:
        self.env, self.provider, self.actions = env, provider, tuple(env.action_names)
        self.played = Played()
        self._answers: dict[str, Answer | None] = {}
        self._executor = Executor()
        self._running = False

    def episode(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.env.reset(seed=seed)
        self._running, steps, over, reward = False, 0, False, 0.0
        while not over:
            action = rng.choice(len(self.actions), p=self._shares(self.env.state))
            _, reward, terminated, truncated, _ = self.env.step(int(action))
            steps, over = steps + 1, terminated or truncated
        self.played.success.append(reward > 0)
        self.played.length.append(steps)

    def _shares(self, state: GridState) -> np.ndarray:
        advice = self._advice(state)
        even = np.full(len(self.actions), 1 / len(self.actions))
        if advice is None:
            self.played.uniform += 1
            return even
        shares = np.array([advice.get(name, 0.0) for name in self.actions])
        return (1 - FLOOR) * shares / shares.sum() + FLOOR * even

    def _advice(self, state: GridState) -> dict[str, float] | None:
        advice = self._go_on(state) if self._running else None
        if advice is not None:
            return advice
        answer = self._look_up(state)
        if answer is None:
            return None
        if answer.weights is not None:
            return dict(zip(self.actions, answer.weights, strict=True))
        assert answer.plan is not None
        self._executor.start(answer.plan, self.actions)
        return self._go_on(state)

    def _go_on(self, state: GridState) -> dict[str, float] | None:
        said = self._executor.advance(state)
        self._running = said.status == "running"
        if not self._running:
            why = f"{state.mission}: {said.status} {said.reason}"
            self.played.ended[why] = self.played.ended.get(why, 0) + 1
        return said.probs

    def _look_up(self, state: GridState) -> Answer | None:
        general, special = plan_key(state), policy_key(state)
        for key in (general, special):
            if key in self._answers:
                return self._answers[key]
        self.played.asks += 1
        see = (lambda: sorted(optimal_actions(self.env) or ())) if self.provider.privileged else None
        request = GRID_WORDING.make_request(state, self.actions, 512, see)
        try:
            answer = parse_answer(self.provider.ask(request).text, self.actions)
        except BadAnswer as error:
            assert error.kind == "no_advice", error
            answer = None
        self._answers[general if answer is None or answer.plan is not None else special] = answer
        return answer


def follow(env_id: str, provider: Provider, episodes: int, actions: str = "all") -> Played:
    """The first held-out episodes of a task, which are the same in every run."""
    follower = Follower(make_env(EnvOptions(id=env_id, actions=actions), "symbolic", remember=True), provider)
    for i in range(episodes):
        follower.episode(episode_seed("eval", 0, 1, 0, i))
    return follower.played


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="+")
    parser.add_argument("--provider", default="scripted")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--competence", type=float, default=1.0)
    parser.add_argument("--failure", default="independent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--actions", default="all")
    parser.add_argument("--why", action="store_true", help="say why plans ended")
    args = parser.parse_args()
    provider = build_provider(
        LLMOptions(args.provider, competence=args.competence, failure=args.failure, seed=args.seed)
    )
    for env_id in args.ids:
        played = follow(env_id, provider, args.episodes, args.actions)
        print(f"{env_id} {provider.identity()}: {played.row()}", flush=True)
        if args.why:
            for why, count in sorted(played.ended.items(), key=lambda each: -each[1])[:12]:
                print(f"    {count:6} {why}")


if __name__ == "__main__":
    main()

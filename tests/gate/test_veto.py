"""The critics' veto: its rule by hand, what the agent imagines for it, and what it does to a step."""

from __future__ import annotations

import statistics

import pytest
import torch
from tests.dreamer.samples import ACTIONS, TINY, rng, shake, shaken_agent

from lore.base.types import Latent
from lore.dreamer.agent import DreamerV3Agent
from lore.gate import vetoed


def by_hand(outcomes: list[list[float]], advised: int) -> bool:
    """One state: outcomes[k][a]."""
    losses = [row[advised] - max(row) for row in outcomes]
    return statistics.fmean(losses) + 1.64 * statistics.stdev(losses) < -0.02


@pytest.mark.parametrize("members", [2, 5])
def test_the_rule_is_what_its_formula_says(members: int) -> None:
    """Differences on the scale of the margin, so that both answers are met."""
    outcomes = 0.03 * torch.randn(members, 400, 4, generator=rng(0)) + 0.05 * torch.randn(
        1, 400, 4, generator=rng(1)
    )
    advised = torch.randint(4, (400,), generator=rng(2))
    got = vetoed(outcomes, advised).tolist()
    want = [by_hand(outcomes[:, n].tolist(), int(advised[n])) for n in range(400)]
    assert got == want and 40 < sum(got) < 360


def test_by_numbers() -> None:
    sure = torch.tensor([[[0.5, 0.0]], [[0.5, 0.01]], [[0.5, 0.02]]])  # -0.49 on the mean, sd 0.01
    assert vetoed(sure, torch.tensor([1])).tolist() == [True]
    assert vetoed(sure, torch.tensor([0])).tolist() == [False]  # the best action is never stopped
    near = torch.tensor([[[0.5, 0.485]], [[0.5, 0.485]]])  # less than the margin
    assert vetoed(near, torch.tensor([1])).tolist() == [False]
    split = torch.tensor([[[0.5, 0.0]], [[0.0, 0.5]]])  # one critic against, one for: mean -0.25, sd 0.35
    assert vetoed(split, torch.tensor([1])).tolist() == [False]


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_critics_that_expect_the_same_of_all_actions_stop_nothing(value: float) -> None:
    outcomes = torch.full((5, 9, 4), value)
    assert not vetoed(outcomes, torch.arange(9) % 4).any()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_critic_that_is_not_finite_stops_nothing(broken: float) -> None:
    outcomes = torch.tensor([[[0.5, 0.0]], [[0.5, 0.0]], [[0.5, broken]]])
    assert vetoed(outcomes, torch.tensor([1])).tolist() == [False]


def agent(shaken: bool = True) -> DreamerV3Agent:
    one = shaken_agent(critic_ensemble=3)
    assert one.critic_ensemble is not None
    if not shaken:
        with torch.no_grad():
            one.critic_ensemble.net.weight_out.zero_()
            one.critic_ensemble.net.bias_out.zero_()
    return one


def features(one: DreamerV3Agent, n: int) -> torch.Tensor:
    stoch = torch.randint(TINY.classes, (n, TINY.stoch), generator=rng(3), dtype=torch.uint8)
    return one.world_model.rssm.feat(Latent(torch.randn(n, TINY.deter, generator=rng(4)), stoch))


@torch.no_grad()
def test_outcomes_are_one_imagined_step_by_each_action_for_each_critic() -> None:
    """Against a step for each state and action by itself, and on the scale of returns."""
    one = agent()
    assert one.critic_ensemble is not None
    one.actor_critic.returns.load_state_dict(
        {
            key: value * 0 + 5.0 if value.dtype.is_floating_point else value
            for key, value in one.actor_critic.returns.state_dict().items()
        }
    )
    feat = features(one, 4)
    got = one.outcomes(feat, rng(7))
    assert got.shape == (3, 4, ACTIONS) and got.isfinite().all()
    rssm, uniform = one.world_model.rssm, torch.rand(4, one.world_model.rssm.stoch, generator=rng(7))
    scale = one.actor_critic.returns.scale
    for n in range(4):
        for action in range(ACTIONS):
            after = rssm.prior_step(
                feat[n : n + 1], torch.tensor([action]), uniform[n : n + 1], rssm.prepare()
            )
            reward, cont = one.world_model.predict(after)
            want = (reward + cont * one.critic_ensemble.values(after)) / scale  # (K, 1)
            torch.testing.assert_close(got[:, n, action], want[:, 0], atol=1e-4, rtol=1e-4)
    assert (got[:, :, :1] - got).abs().max() > 1e-3 and (got[:1] - got).abs().max() > 1e-3


@torch.no_grad()
def test_without_a_reward_that_was_seen_new_critics_stop_nothing() -> None:
    """They all begin at exactly 0, so only predicted rewards differ: none, in a new world model."""
    one = agent(shaken=False)
    shake([one.optimizer.master], 0, size=0.0)
    with torch.no_grad():
        reward = [p for name, p in one.world_model.named_parameters() if "reward" in name]
        assert reward
        for p in reward:
            p.zero_()
    outcomes = one.outcomes(features(one, 6), rng(1))
    assert not vetoed(outcomes, torch.arange(6) % ACTIONS).any()


@torch.no_grad()
def test_outcomes_draw_from_the_stream_that_is_handed_in_alone() -> None:
    one, feat = agent(), features(agent(), 3)
    before = {name: state.clone() for name, state in one.rng.state_dict().items()}
    first, second = one.outcomes(feat, rng(1)), one.outcomes(feat, rng(1))
    assert torch.equal(first, second)
    after = one.rng.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)

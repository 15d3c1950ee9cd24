"""Losses of actor and critic against numpy, from hand-made rollouts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.dreamer import samples as ref
from tests.dreamer.samples import ACTIONS, TINY, make_batch, rng, shake

from lore.config.options import AgentOptions
from lore.dreamer.actor_critic import ActorCritic
from lore.dreamer.rssm import Imagined

FEATURES = TINY.deter + TINY.stoch * TINY.classes
H, N, BINS = 4, 6, 41


def make(shaken=True, dtype=torch.float32, **options):
    made = ActorCritic(FEATURES, ACTIONS, AgentOptions(bins=BINS, **options), TINY, 0, dtype)
    if shaken:
        shake([*made.actor.parameters(), *made.critic.parameters()], size=0.3)
        shake(made.slow.masters, seed=1, size=0.3)
        made.slow.load_state_dict(made.slow.state_dict())
    return made


def rollout():
    feat = torch.randn(H + 1, N, FEATURES, generator=rng(1))
    action = torch.randint(ACTIONS, (H + 1, N), generator=rng(2))
    reward = torch.randn(H + 1, N, generator=rng(3))
    cont = torch.rand(H + 1, N, generator=rng(4))
    cont[2, 0] = 0.0
    return Imagined(feat, action), reward, cont


def bin_values():
    steps = np.linspace(-20, 20, BINS)
    return np.sign(steps) * np.expm1(np.abs(steps))


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def network(weights, feat):
    """Log-softmax of an MLP written out in float64."""
    return log_softmax(ref.mlp(weights, feat.detach().double()).detach().numpy())


def slow_weights(made):
    names = [k for k, _ in made.critic.named_parameters()]
    return {k: m.double() for k, m in zip(names, made.slow.masters, strict=True)}


def two_hot_nll(log_probs, x):
    """log_probs (..., bins), x (...)."""
    bins = bin_values()
    below = (np.searchsorted(bins, x, side="right") - 1).clip(0, BINS - 2)
    share = (x - bins[below]) / (bins[below + 1] - bins[below])
    low = np.take_along_axis(log_probs, below[..., None], -1)[..., 0]
    high = np.take_along_axis(log_probs, below[..., None] + 1, -1)[..., 0]
    return -(1 - share) * low - share * high


def expected(made, scale_before=(0.0, 0.0)):
    """Actor loss (N,), critic loss (N,), returns (H, N) and new percentiles from the published formulas."""
    (imagined, reward, cont), o = rollout(), made.options
    log_value = network(ref.doubles(made.critic), imagined.feat)
    value = np.exp(log_value) @ bin_values()
    slow = np.exp(network(slow_weights(made), imagined.feat)) @ bin_values()
    r, c = reward.double().numpy(), cont.double().numpy()
    returns = np.zeros((H, N))
    future = value[H]
    for t in range(H - 1, -1, -1):
        future = r[t + 1] + c[t + 1] * ((1 - o.lam) * value[t + 1] + o.lam * future)
        returns[t] = future
    moved = [
        (1 - o.return_rate) * old + o.return_rate * np.percentile(returns, q)
        for old, q in zip(scale_before, (5, 95), strict=True)
    ]
    advantage = (returns - value[:H]) / max(o.return_limit, moved[1] - moved[0])
    log_pi = network(ref.doubles(made.actor), imagined.feat[:H])
    taken = np.take_along_axis(log_pi, imagined.action[:H, :, None].numpy(), -1)[..., 0]
    entropy = -(np.exp(log_pi) * log_pi).sum(-1)
    weight = np.stack([np.prod(c[: t + 1], axis=0) for t in range(H)])
    actor = (-weight * (taken * advantage + o.entropy * entropy)).mean(0)
    critic = two_hot_nll(log_value[:H], returns) + o.slow_reg * two_hot_nll(log_value[:H], slow[:H])
    return actor, (weight * critic).mean(0), returns, moved


@pytest.mark.parametrize(
    "options",
    [{}, {"entropy": 0.5, "lam": 0.5, "return_rate": 1.0, "return_limit": 1e-3}, {"slow_reg": 0.3}],
    ids=["defaults", "return scale and entropy", "slow regularisation"],
)
def test_imagination_losses_are_the_published_formulas(options):
    made = make(**options)
    actor, critic, returns, percentiles = expected(made)
    losses, got_returns, *_ = made.loss(*rollout())
    np.testing.assert_allclose(got_returns.numpy(), returns, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(losses["actor"].detach().numpy(), actor, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(losses["critic"].detach().numpy(), critic, rtol=1e-3)
    np.testing.assert_allclose(made.returns.value.numpy(), percentiles, rtol=1e-3)


def test_actor_gradient_is_reinforce_with_entropy():
    """At the output bias: weight * (-(onehot - pi) * advantage - eta * dH), by hand."""
    made = make(entropy=0.5)
    losses, returns, *_ = made.loss(*rollout())
    (grad,) = torch.autograd.grad(losses["actor"].sum(), made.actor.layers[-1].bias)
    imagined, _, cont = rollout()
    value = np.exp(network(ref.doubles(made.critic), imagined.feat)) @ bin_values()
    advantage = (returns.double().numpy() - value[:H]) / made.returns.scale.item()
    log_pi = network(ref.doubles(made.actor), imagined.feat[:H])
    pi = np.exp(log_pi)
    entropy = -(pi * log_pi).sum(-1, keepdims=True)
    taken = np.eye(ACTIONS)[imagined.action[:H].numpy()]
    slope = (taken - pi) * advantage[..., None] - 0.5 * pi * (log_pi + entropy)
    weight = cont.double().numpy().cumprod(0)[:H, :, None]
    np.testing.assert_allclose(grad.numpy(), (-weight * slope).sum((0, 1)) / H, rtol=1e-3, atol=1e-5)


def test_what_follows_an_end_has_no_weight():
    made, (imagined, reward, cont) = make(), rollout()
    losses, *_ = made.loss(imagined, reward, cont)
    imagined.feat[3:, 0] += 1  # column 0 ends at row 2
    again, *_ = made.loss(imagined, reward, cont)
    assert losses["critic"][0] == again["critic"][0]


def test_the_policy_where_rollouts_start_is_that_of_the_actor():
    made, (imagined, reward, cont) = make(), rollout()
    *_, logits = made.loss(imagined, reward, cont)
    torch.testing.assert_close(logits, made.logits(imagined.feat[0]), rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(logits.square().sum(), list(made.actor.parameters()))
    again = torch.autograd.grad(made.logits(imagined.feat[0]).square().sum(), list(made.actor.parameters()))
    for a, b in zip(ours, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_actor_and_critic_losses_reach_their_own_network_only():
    made = make()
    losses, returns, *_ = made.loss(*rollout())
    assert not returns.requires_grad
    for name, own, other in (("actor", made.actor, made.critic), ("critic", made.critic, made.actor)):
        params = [*own.parameters(), *other.parameters()]
        grads = torch.autograd.grad(losses[name].sum(), params, allow_unused=True)
        count = len(list(own.parameters()))
        assert all(g is not None and g.any() for g in grads[:count])
        assert all(g is None for g in grads[count:])


def replay(batch, made, feat, bootstrap):
    """Replay critic loss (B, T-1), by hand."""
    o, discount = made.options, 1 - 1 / made.options.discount_horizon
    log_value = network(ref.doubles(made.critic), feat)
    slow = np.exp(network(slow_weights(made), feat)) @ bin_values()
    B, T = bootstrap.shape
    want, boot = np.zeros((B, T - 1)), bootstrap.double().numpy()
    for b in range(B):
        future = boot[b, T - 1]
        for t in range(T - 2, -1, -1):
            ahead = boot[b, t + 1]
            if not batch.is_last[b, t + 1]:
                ahead = (1 - o.lam) * ahead + o.lam * future
            alive = 0.0 if batch.is_terminal[b, t + 1] else discount
            future = batch.reward[b, t + 1].item() + alive * ahead
            loss = two_hot_nll(log_value[b, t], np.array(future))
            loss += o.slow_reg * two_hot_nll(log_value[b, t], np.array(slow[b, t]))
            want[b, t] = 0 if batch.is_last[b, t] else loss
    return want


@pytest.mark.parametrize("slow_reg", [1.0, 0.3])
def test_replay_loss_is_the_published_formula(slow_reg):
    made, batch = make(slow_reg=slow_reg), make_batch(4, 8)
    assert batch.is_terminal.any() and (batch.is_last & ~batch.is_terminal).any()
    feat = torch.randn(4, 8, FEATURES, generator=rng(1))
    bootstrap = torch.randn(4, 8, generator=rng(2)) * 3
    got, _ = made.replay_loss(feat, batch, bootstrap)
    np.testing.assert_allclose(got.detach().numpy(), replay(batch, made, feat, bootstrap), rtol=1e-3)


def test_replay_loss_shapes_the_features_except_at_last_rows():
    made, batch = make(), make_batch(4, 8)
    feat = torch.randn(4, 8, FEATURES, generator=rng(1)).requires_grad_()
    bootstrap = torch.randn(4, 8, generator=rng(2)).requires_grad_()
    made.replay_loss(feat, batch, bootstrap)[0].sum().backward()
    reached = feat.grad.any(-1)
    assert torch.equal(reached[:, :-1], ~batch.is_last[:, :-1]) and not reached[:, -1].any()
    assert bootstrap.grad is None


def test_reward_of_the_first_row_belongs_to_the_row_before():
    made, batch = make(), make_batch(4, 8)
    feat, bootstrap = torch.randn(4, 8, FEATURES, generator=rng(1)), torch.zeros(4, 8)
    reward = batch.reward.clone()
    reward[:, 0] += 100
    a, _ = made.replay_loss(feat, batch, bootstrap)
    b, _ = made.replay_loss(feat, replace(batch, reward=reward), bootstrap)
    assert torch.equal(a, b)


# initial predictions


def test_values_start_at_exactly_zero():
    made = make(shaken=False)
    feat = torch.randn(3, FEATURES, generator=rng(1))
    assert torch.equal(made.value(feat).mean, torch.zeros(3))
    assert torch.equal(made.slow_value(feat), torch.zeros(3))


def test_policy_starts_near_uniform_with_output_scale_one_hundredth():
    made = make(shaken=False)
    weight = made.actor.layers[-1].weight
    limit = 2 * 1.1368 * 0.01 / TINY.units**0.5
    assert 0.5 * limit < weight.abs().max() <= limit * (1 + 1e-6)
    pi = made.logits(torch.randn(50, FEATURES, generator=rng(1))).softmax(-1)
    assert (pi - 1 / ACTIONS).abs().max() < 0.02


def test_actions_are_drawn_from_the_policy_without_a_uniform_share():
    made = make(shaken=False)
    with torch.no_grad():
        made.actor.layers[-1].weight.zero_()
        made.actor.layers[-1].bias.copy_(torch.tensor([0.0, 1.0, 2.0, -60.0, 0.5]))
    actions = made.sample(torch.zeros(20_000, FEATURES), rng())
    shares = np.bincount(actions.numpy(), minlength=ACTIONS) / 20_000
    np.testing.assert_allclose(shares, made.logits(torch.zeros(FEATURES)).softmax(-1).detach(), atol=0.01)
    assert shares[3] == 0


# slow critic


def test_slow_critic_starts_equal_and_follows_at_its_rate():
    made = make(shaken=False, slow_rate=0.25)
    start = [p.detach().clone() for p in made.critic.parameters()]
    for m, p in zip(made.slow.masters, start, strict=True):
        assert torch.equal(m, p)
    first = [torch.full_like(p, 4.0) for p in start]
    second = [torch.full_like(p, -2.0) for p in start]
    made.slow.update(first)
    made.slow.update(second)
    for m, p, q in zip(made.slow.masters, start, made.slow.module.parameters(), strict=True):
        torch.testing.assert_close(m, 0.75 * (0.75 * p + 0.25 * 4) + 0.25 * -2)
        assert torch.equal(m, q) and not q.requires_grad


def test_slow_critic_accumulates_in_float32_under_bfloat16():
    made = make(shaken=False, dtype=torch.bfloat16, slow_rate=1e-3)
    target = [torch.ones_like(m) for m in made.slow.masters]
    bias = made.slow.masters[-1]
    assert not bias.any()
    bias += 0.5  # bfloat16 near 0.5 has steps of 0.004, an update moves 0.0005
    for _ in range(100):
        made.slow.update(target)
    want = 1 - 0.5 * 0.999**100
    torch.testing.assert_close(bias, torch.full_like(bias, want))
    module = list(made.slow.module.parameters())[-1]
    assert module.dtype == torch.bfloat16
    torch.testing.assert_close(module.float(), torch.full_like(bias, want), atol=0.003, rtol=0)


def test_slow_critic_is_no_module_of_its_own():
    made = make()
    assert {k.split(".")[0] for k, _ in made.named_parameters()} == {"actor", "critic"}

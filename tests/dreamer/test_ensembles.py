import copy

import numpy as np
import pytest
import torch
from tests.dreamer.samples import ACTIONS, TINY, make_batch, rng, shake

from lore.dreamer.ensembles import CriticEnsemble, DisagreementEnsemble
from lore.nn import likelihood
from lore.nn.cpu.native import torch_only
from lore.nn.ensemble import MemberMLP, bootstrap_mask, bootstrapped

K, S, C = 3, TINY.stoch, TINY.classes
FEATURES = TINY.deter + S * C
ROWS = torch.arange(100_000)


def critics(bins=21):
    made = CriticEnsemble(K, FEATURES, bins, TINY, 0)
    shake(made.parameters())
    return made


def predictors():
    made = DisagreementEnsemble(K, FEATURES, ACTIONS, TINY, 0)
    shake(made.parameters())
    return made


def member(net, k, x):
    """Output of one member, written out in float64."""
    w = {n: p.detach().double().numpy()[k] for n, p in net.named_parameters()}
    y = x @ w["weight_in"] + w["bias_in"]
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-4) * w["scale"]
    return (y / (1 + np.exp(-y))) @ w["weight_out"] + w["bias_out"]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def bin_values(count):
    steps = np.linspace(-20, 20, count)
    return np.sign(steps) * np.expm1(np.abs(steps))


# masks


def test_bootstrap_mask_is_zero_or_two_and_depends_on_the_row_alone():
    mask = bootstrap_mask(ROWS, 5)
    assert mask.shape == (5, len(ROWS)) and set(mask.unique().tolist()) == {0.0, 2.0}
    shuffled = ROWS[torch.randperm(len(ROWS), generator=rng())]
    assert torch.equal(bootstrap_mask(shuffled, 5), mask[:, shuffled])
    assert torch.equal(bootstrap_mask(ROWS.view(100, 1000), 5), mask.view(5, 100, 1000))


@pytest.mark.parametrize("members", [2, 3, 5, 7, 8])
def test_each_member_sees_about_half_of_the_rows(members):
    mask = bootstrap_mask(ROWS, members) / 2
    assert (mask.mean(1) - 0.5).abs().max() < 0.01
    windows = mask.view(members, -1, 500).mean(-1)  # in every stretch of the replay, too
    assert (windows - 0.5).abs().max() < 0.15


@pytest.mark.parametrize("members", [2, 3, 5, 7, 8])
def test_members_see_independent_halves(members):
    signs = bootstrap_mask(ROWS, members) - 1
    correlation = signs @ signs.T / len(ROWS) - torch.eye(members)
    assert correlation.abs().max() < 0.02


@pytest.mark.parametrize("members", [2, 3, 5, 7, 8])
def test_neighbouring_rows_are_masked_independently(members):
    signs = bootstrap_mask(ROWS, members) - 1
    for lag in (1, 2, 3, 4, 8):
        correlation = (signs[:, lag:] * signs[:, :-lag]).mean(1)
        assert correlation.abs().max() < 0.05, f"lag {lag}"


# members


def test_members_are_separate_networks_side_by_side():
    net = MemberMLP(K, 6, 16, 4, rng())
    shake(net.parameters())
    x = torch.randn(5, 6, generator=rng(1))
    got = net(x)
    for k in range(K):
        np.testing.assert_allclose(got[k].detach().numpy(), member(net, k, x.double().numpy()), atol=1e-5)


def test_members_start_apart_with_the_fan_in_of_one_member():
    net = MemberMLP(4, 100, 200, 50, rng())
    assert net.weight_in.std().item() * 10 == pytest.approx(1, abs=0.02)
    assert net.weight_out.std().item() * 200**0.5 == pytest.approx(1, abs=0.02)
    assert not torch.equal(net.weight_in[0], net.weight_in[1])


def gradients(net, x, weight):
    out = net(x)
    return out, torch.autograd.grad((out.float() * weight).sum(), list(net.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [64, 65, 130])
def test_members_in_one_product_are_the_members_one_by_one(rows, dtype):
    """Outputs and gradients of the kernels, held to float64 as closely as those of the torch operations."""
    net = MemberMLP(K, 24, 16, 33, rng())
    shake(net.parameters())
    x, weight = torch.randn(rows, 24, generator=rng(1)), torch.randn(K, rows, 33, generator=rng(2))
    net, x = net.to(dtype), x.to(dtype)
    got, got_grads = gradients(net, x, weight)
    with torch_only():
        plain, plain_grads = gradients(net, x, weight)
    want, want_grads = gradients(copy.deepcopy(net).double(), x.double(), weight.double())
    share = 2e-6 if dtype == torch.float32 else 2e-2
    for ours, torchs, exact in zip(
        (got, *got_grads), (plain, *plain_grads), (want, *want_grads), strict=True
    ):
        assert ours.shape == exact.shape and ours.dtype == dtype
        limit = share * exact.abs().max()
        assert (torchs.double() - exact).abs().max() < limit
        assert (ours.double() - exact).abs().max() < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows,outputs", [(1, 4), (2, 64), (5, 33), (8, 255), (63, 70)])
def test_members_of_few_rows_in_one_call(rows, outputs, dtype):
    """Without gradient: held to float64, also where rows are taken with each of some choices."""
    net = MemberMLP(K, 24, 16, outputs, rng())
    shake(net.parameters())
    x = torch.randn(rows, 20, generator=rng(1))
    net, x = net.to(dtype), x.to(dtype)
    exact = copy.deepcopy(net).double()
    chosen = torch.cat([x.repeat_interleave(4, 0), torch.eye(4, dtype=dtype).repeat(rows, 1)], 1)
    with torch.no_grad():
        want = exact(chosen.double())
        for got in (net(chosen), net.with_choices(x, 4)):
            assert got.shape == (K, rows * 4, outputs) and got.dtype == dtype
            limit = (2e-6 if dtype == torch.float32 else 8e-3) * want.abs().max()
            assert (got.double() - want).abs().max() < limit
        with torch_only():
            assert (net.with_choices(x, 4).double() - want).abs().max() < 2e-2 * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ["all", "one row again and again", "two sequences"])
def test_rows_that_a_member_does_not_learn_from_are_left_out(rows, dtype):
    """Losses and gradients without them, held to the masked definition in float64."""
    index = {
        "all": torch.arange(130).view(2, 65),
        "one row again and again": torch.full((2, 65), 7),  # some members have all of it, others nothing
        "two sequences": torch.cat([torch.arange(65), torch.arange(900, 965)]).view(2, 65),
    }[rows]
    net = MemberMLP(5, 24, 16, 12, rng())
    shake(net.parameters())
    net = net.to(dtype)
    x = torch.randn(2, 65, 24, generator=rng(1)).to(dtype)
    target = torch.randn(2, 65, 3, 4, generator=rng(2)).softmax(-1)
    weight = torch.randn(2, 65, generator=rng(3))

    def run(net, x):
        def loss(logits, target):
            return likelihood.soft_cross_entropy(logits.unflatten(-1, (3, 4)), target)

        out = bootstrapped(net, x, target, index, loss)
        return out, *torch.autograd.grad((out * weight).sum(), list(net.parameters()))

    with torch_only():
        plain = run(net, x)
    mask, exact = bootstrap_mask(index, 5), copy.deepcopy(net).double()
    logits = exact(x.double().flatten(0, 1)).view(5, 2, 65, 3, 4)
    want = (mask * -(target * logits.log_softmax(-1)).sum((-2, -1))).mean(0)
    wants = want, *torch.autograd.grad((want * weight).sum(), list(exact.parameters()))
    share = 3e-6 if dtype == torch.float32 else 2e-2
    for ours, torchs, true in zip(run(net, x), plain, wants, strict=True):
        assert ours.shape == true.shape
        assert (torchs.double() - true).abs().max() <= share * true.abs().max()
        assert (ours.double() - true).abs().max() <= share * true.abs().max()
        assert not ours[(true == 0)].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_spread_is_the_variance_of_the_members_probabilities(dtype):
    logits = (3 * torch.randn(5, 9, 8, 4, generator=rng())).to(dtype)
    want = logits.double().softmax(-1).var(0).mean((-2, -1))
    torch.testing.assert_close(likelihood.spread(logits).double(), want, rtol=1e-5, atol=0.0)
    assert (likelihood.spread(logits[:1].expand(3, -1, -1, -1)) < 1e-12).all()


# critics


def test_critic_variance_is_the_sample_variance_of_the_members_values():
    net, feat = critics(), torch.randn(5, FEATURES, generator=rng(1))
    bins = bin_values(21)
    values = [np.exp(log_softmax(member(net.net, k, feat.double().numpy()))) @ bins for k in range(K)]
    np.testing.assert_allclose(net.variance(feat).numpy(), np.var(values, axis=0, ddof=1), rtol=1e-3)


def test_critic_loss_is_the_masked_cross_entropy_to_the_returns():
    net = critics()
    feat = torch.randn(2, 4, FEATURES, generator=rng(1))
    returns = 5 * torch.randn(2, 4, generator=rng(2))
    index = torch.randint(10_000, (2, 4), generator=rng(3))
    mask, bins = bootstrap_mask(index, K).numpy(), bin_values(21)
    want = np.zeros((2, 4))
    for k in range(K):
        log_probs = log_softmax(member(net.net, k, feat.double().numpy()))
        for i in np.ndindex(2, 4):
            r = returns[i].item()
            j = int(np.searchsorted(bins, r, side="right")) - 1
            share = (r - bins[j]) / (bins[j + 1] - bins[j])
            loss = -(1 - share) * log_probs[i][j] - share * log_probs[i][j + 1]
            want[i] += mask[k][i] * loss / K
    np.testing.assert_allclose(net.loss(feat, returns, index).detach().numpy(), want, rtol=1e-4)


def test_a_member_learns_nothing_from_rows_masked_from_it():
    net = critics()
    index = torch.arange(12).view(3, 4)
    feat, returns = torch.randn(3, 4, FEATURES, generator=rng(1)), torch.ones(3, 4)
    mask = bootstrap_mask(index, K)
    for k in range(K):
        only_masked = (mask[k] == 0).float()
        (grad,) = torch.autograd.grad(
            (net.loss(feat, returns, index) * only_masked).sum(), net.net.weight_out
        )
        assert not grad[k].any() and grad.any()


# disagreement


def test_disagreement_is_expected_over_the_policy():
    net = predictors()
    feat = torch.randn(2, FEATURES, generator=rng(1))
    policy = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    want = np.zeros(2)
    for n in range(2):
        for a in range(ACTIONS):
            x = np.concatenate([feat[n].double().numpy(), np.eye(ACTIONS)[a]])
            probs = [np.exp(log_softmax(member(net.net, k, x).reshape(S, C))) for k in range(K)]
            want[n] += policy[n, a].item() * np.var(probs, axis=0, ddof=1).mean()
    np.testing.assert_allclose(net.disagreement(feat, policy).numpy(), want, rtol=1e-4)


def test_disagreement_of_equal_members_is_zero():
    net = predictors()
    with torch.no_grad():
        for p in net.parameters():
            p[1:] = p[:1]
    got = net.disagreement(torch.randn(2, FEATURES, generator=rng(1)), torch.full((2, ACTIONS), 0.2))
    assert got.abs().max() < 1e-12


def test_disagreement_loss_predicts_the_next_posterior_from_feat_and_action():
    net, batch = predictors(), make_batch(2, 5, seed=0)
    assert batch.is_first[:, 1:].any() and not batch.is_first[:, 1:].all()
    feat = torch.randn(2, 5, FEATURES, generator=rng(1))
    probs = torch.randn(2, 5, S, C, generator=rng(2)).softmax(-1)
    mask = bootstrap_mask(batch.index, K)
    want = np.zeros((2, 4))
    for b, t in np.ndindex(2, 4):
        if batch.is_first[b, t + 1]:
            continue  # nothing leads from one episode to the next
        x = np.concatenate([feat[b, t].double().numpy(), np.eye(ACTIONS)[batch.action[b, t]]])
        for k in range(K):
            log_probs = log_softmax(member(net.net, k, x).reshape(S, C))
            want[b, t] -= mask[k, b, t].item() / K * (probs[b, t + 1].double().numpy() * log_probs).sum()
    np.testing.assert_allclose(net.loss(feat, probs, batch).detach().numpy(), want, rtol=1e-4)


def test_ensembles_send_no_gradient_into_what_they_read():
    batch = make_batch(2, 5)
    feat = torch.randn(2, 5, FEATURES, generator=rng(1)).requires_grad_()
    probs = torch.full((2, 5, S, C), 1 / C, requires_grad=True)
    returns = torch.ones(2, 5, requires_grad=True)
    (
        critics().loss(feat, returns, batch.index).sum() + predictors().loss(feat, probs, batch).sum()
    ).backward()
    assert feat.grad is None and probs.grad is None and returns.grad is None


def test_disagreement_falls_with_visits_and_is_higher_where_nothing_was_visited():
    """Two clusters of transitions, one of them trained on: u's model term tells them apart."""
    from lore.nn.optim import LaProp

    batch, width = make_batch(8, 6), TINY.deter + TINY.stoch * TINY.classes
    batch.is_first[:] = False
    known, novel = torch.randn(2, width, generator=rng(1)) * 2
    ensemble = DisagreementEnsemble(5, width, ACTIONS, TINY, 0)
    optimizer = LaProp(ensemble.parameters(), 1e-3)
    feat = known + 0.1 * torch.randn(8, 6, width, generator=rng(2))
    world = torch.randn(width, TINY.stoch * TINY.classes, generator=rng(3)) / 4  # what follows a state
    probs = (feat @ world).unflatten(-1, (TINY.stoch, TINY.classes)).softmax(-1).roll(1, 1)
    policy = torch.full((1, ACTIONS), 1 / ACTIONS)

    def doubt(state):
        return ensemble.disagreement(state.unsqueeze(0), policy).item()

    seen = [doubt(known)]
    for visits in range(1, 301):
        ensemble.loss(feat, probs, batch).mean().backward()
        optimizer.step()
        if visits in (30, 300):
            seen.append(doubt(known))
    assert seen[0] > seen[1] > seen[2]
    assert doubt(novel) > 3 * seen[2]

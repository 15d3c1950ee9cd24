from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lore.base.types import SOURCES
from lore.config.options import PriorNetOptions
from lore.llm.prior_net import PriorNet
from lore.nn.ensemble import bootstrap_mask

F, A, K, UNITS = 24, 7, 5, 32
PLAN, OWN, NONE = SOURCES.index("plan"), SOURCES.index("prior_net"), SOURCES.index("none")
SITES = 6  # places in feature space, each with advice of its own


@dataclass
class Rows:
    prior: Tensor
    confidence: Tensor
    source: Tensor
    index: Tensor


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def make(seed=0, **options):
    return PriorNet(PriorNetOptions(members=K, **options), F, A, UNITS, seed)


def world(seed=0):
    """Places (SITES, F), and at each a teacher's distribution (SITES, A): one action, or two that share."""
    places = 2 * torch.randn(SITES, F, generator=rng(seed))
    teacher = torch.full((SITES, A), 0.01 / A)
    for i in range(SITES):
        for action in {i % A, (2 * i) % A}:
            teacher[i, action] += 0.99 / len({i % A, (2 * i) % A})
    return places, teacher


def sample(places, teacher, seed, B=8, T=32, confidence=1.0, source=PLAN):
    """A batch from the places with a little noise: feat (B, T, F), the advice there."""
    site = torch.randint(len(places), (B, T), generator=rng(seed))
    feat = places[site] + 0.1 * torch.randn(B, T, F, generator=rng(seed + 1))
    index = torch.randint(5000, (B, T), generator=rng(seed + 2))
    rows = Rows(
        teacher[site].log(),
        torch.full((B, T), confidence),
        torch.full((B, T), source, dtype=torch.uint8),
        index,
    )
    return feat, rows


def train(net, batches, lr=3e-3):
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for feat, rows in batches:
        optimizer.zero_grad()
        net.loss(feat, rows).mean().backward()
        optimizer.step()
    return net


def trained(steps=250):
    places, teacher = world()
    return train(make(), (sample(places, teacher, 10 * i) for i in range(steps))), places, teacher


def disagreement(net, feat):
    """Entropy of the members' mean less their mean entropy, as a share of log A, written out."""
    logits = net.net(feat).detach().double().numpy()
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mean = p.mean(0)
    return (-(mean * np.log(mean)).sum(-1) + (p * np.log(p)).sum(-1).mean(0)) / np.log(A)


def test_loss_is_the_masked_cross_entropy_times_the_confidence():
    net, feat = make(), torch.randn(2, 3, F, generator=rng(1))
    rows = Rows(
        torch.randn(2, 3, A, generator=rng(2)),
        torch.rand(2, 3, generator=rng(3)),
        torch.tensor([[PLAN, NONE, OWN], [PLAN, SOURCES.index("answer"), OWN]], dtype=torch.uint8),
        torch.arange(6).view(2, 3),
    )
    logits = net.net(feat.flatten(0, 1)).detach().double().view(K, 2, 3, A)
    mask = bootstrap_mask(rows.index, K)
    want = torch.zeros(2, 3, dtype=torch.float64)
    for b, t in ((0, 0), (1, 0), (1, 1)):  # the rest had no advice, or the network's own
        target = rows.prior[b, t].double().softmax(-1)
        for k in range(K):
            cross = -(target * logits[k, b, t].log_softmax(-1)).sum()
            want[b, t] += rows.confidence[b, t] * mask[k, b, t] * cross / K
    torch.testing.assert_close(net.loss(feat, rows).double(), want, rtol=1e-4, atol=1e-6)


def test_it_learns_what_the_teacher_says_and_knows_it():
    net, places, teacher = trained()
    probs, sure = net.confident(places)
    assert (probs - teacher).abs().sum(-1).max() / 2 < 0.06  # total variation
    assert sure.all()
    assert torch.allclose(probs.sum(-1), torch.ones(SITES))


def test_members_disagree_about_what_they_never_saw():
    net, places, _ = trained()
    other = 2 * torch.randn(300, F, generator=rng(77))
    near = places.repeat(50, 1) + 0.1 * torch.randn(300, F, generator=rng(78))
    assert disagreement(net, other).mean() > 5 * disagreement(net, near).mean()
    assert net.confident(near)[1].float().mean() > 0.95
    assert net.confident(other)[1].float().mean() < 0.25


def test_confidence_is_agreement_and_decision_and_nothing_else():
    net = make(max_entropy=0.5, max_disagreement=0.05)
    feat = torch.randn(4, F, generator=rng(1))

    def say(logits):  # (K, A), whatever the feature
        with torch.no_grad():
            net.net.weight_out.zero_()
            net.net.bias_out.copy_(logits.view(K, 1, A))
        probs, sure = net.confident(feat)
        assert len(set(sure.tolist())) == 1
        return probs[0], bool(sure[0])

    one, two = 10 * torch.eye(A)[0], 10 * torch.eye(A)[1]
    assert say(one.repeat(K, 1))[1]
    probs, sure = say((one + two).repeat(K, 1))  # two actions that are equally right
    assert sure and probs[:2].tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert not say(torch.zeros(K, A))[1]  # agreed that nobody knows
    probs, sure = say(torch.stack([one, two, one, two, one]))
    assert not sure and probs[:2].tolist() == pytest.approx([0.6, 0.4], abs=0.01)


def test_an_untrained_network_is_never_confident():
    assert not make().confident(torch.randn(500, F, generator=rng(3)))[1].any()


def test_contradicting_advice_is_weighed_by_confidence():
    places, _ = world()
    one, two = torch.full((SITES, A), 0.01 / A), torch.full((SITES, A), 0.01 / A)
    one[:, 0] += 0.99
    two[:, 1] += 0.99

    def batches():
        for i in range(250):
            yield sample(places, one, 20 * i, confidence=0.9)
            yield sample(places, two, 20 * i + 10, confidence=0.3)

    probs, _ = train(make(), batches(), lr=1e-3).confident(places)
    assert probs[:, 0].mean().item() == pytest.approx(0.75, abs=0.06)
    assert probs[:, 1].mean().item() == pytest.approx(0.25, abs=0.06)


def test_advice_without_confidence_teaches_nothing():
    net, (feat, rows) = make(), sample(*world(), seed=5, confidence=0.0)
    assert not net.loss(feat, rows).any()


def test_its_own_output_is_never_learned():
    net, (feat, rows) = make(), sample(*world(), seed=5)
    rows.source[::2] = OWN
    lies = replace(rows, prior=rows.prior.clone())
    lies.prior[::2] = 100 * torch.randn(*lies.prior[::2].shape, generator=rng(9))
    honest, lied = (torch.autograd.grad(net.loss(feat, r).sum(), net.net.weight_out)[0] for r in (rows, lies))
    assert torch.equal(honest, lied) and honest.any()
    rows.source.fill_(OWN)
    assert not torch.autograd.grad(net.loss(feat, rows).sum(), net.net.weight_out)[0].any()


def test_a_row_without_advice_cannot_spoil_the_loss():
    net, (feat, rows) = make(), sample(*world(), seed=5, source=NONE)
    rows.confidence.fill_(float("nan"))
    assert not net.loss(feat, rows).any()


def test_nothing_flows_into_the_features_or_the_advice():
    net, (feat, rows) = make(), sample(*world(), seed=5)
    feat.requires_grad_()
    rows.prior.requires_grad_()
    net.loss(feat, rows).sum().backward()
    assert feat.grad is None and rows.prior.grad is None
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    flat = feat.flatten(0, 1)
    assert not net.confident(flat)[0].requires_grad and not net.logits(flat).requires_grad


def test_logits_are_of_the_mean_over_a_floor():
    net, places, _ = trained(60)
    probs, _ = net.confident(places)
    logits = net.logits(places)
    torch.testing.assert_close(logits.exp(), 0.99 * probs + 0.01 / A)
    assert logits.dtype == torch.float32 and logits.min() >= np.log(0.01 / A) - 1e-5


def test_half_precision_features_and_weights_give_float32_advice():
    net = make().to(torch.bfloat16)
    feat, rows = sample(*world(), seed=5)
    assert net.loss(feat.bfloat16(), rows).dtype == torch.float32
    assert net.confident(feat[0].bfloat16())[0].dtype == torch.float32


def test_the_same_seed_gives_the_same_network():
    assert torch.equal(make(3).net.weight_in, make(3).net.weight_in)
    assert not torch.equal(make(3).net.weight_in, make(4).net.weight_in)

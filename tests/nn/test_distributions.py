import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, kl_divergence

from lore.nn import distributions as d

FEW, MANY = [2, 4, 15], [16, 24, 96]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def explicit_bins(count=255):
    """symexp of equal steps, in float64."""
    steps = np.linspace(-20, 20, count)
    return np.sign(steps) * (np.exp(np.abs(steps)) - 1)


def explicit_two_hot(x, bins):
    """Target distribution over the bins, entry by entry: float (n,) -> (n, bins)."""
    out = np.zeros((len(x), len(bins)))
    for row, value in zip(out, x, strict=True):
        if value <= bins[0]:
            row[0] = 1
        elif value >= bins[-1]:
            row[-1] = 1
        else:
            k = max(i for i in range(len(bins)) if bins[i] <= value)
            share = (value - bins[k]) / (bins[k + 1] - bins[k])
            row[k], row[k + 1] = 1 - share, share
    return out


def dense(below, above, weight, count):
    out = np.zeros((len(below), count))
    np.add.at(out, (np.arange(len(below)), below.numpy()), 1 - weight.double().numpy())
    np.add.at(out, (np.arange(len(below)), above.numpy()), weight.double().numpy())
    return out


def loss(logits, *targets, bins, **kwargs):
    return d.TwoHot(logits, bins).loss(*targets, **kwargs)


def mean(logits, bins):
    return d.TwoHot(logits, bins).mean


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# symlog, symexp


def test_symlog_at_known_points():
    x = torch.tensor([0.0, 1.718281828, -1.718281828, 147.4131591])
    torch.testing.assert_close(d.symlog(x), torch.tensor([0.0, 1.0, -1.0, 5.0]))


def test_symexp_at_known_points():
    x = torch.tensor([0.0, 1.0, -1.0, 5.0])
    torch.testing.assert_close(d.symexp(x), torch.tensor([0.0, 1.718281828, -1.718281828, 147.4131591]))


def test_symexp_undoes_symlog():
    x = torch.cat([-torch.logspace(-6, 6, 50), torch.zeros(1), torch.logspace(-6, 6, 50)])
    torch.testing.assert_close(d.symexp(d.symlog(x)), x, rtol=2e-6, atol=1e-12)


# bins


@pytest.mark.parametrize("count", [3, 5, 255])
def test_bins_are_symexp_of_equal_steps(count):
    np.testing.assert_allclose(d.symexp_bins(count).numpy(), explicit_bins(count), rtol=1e-5)


def test_bins_are_exactly_antisymmetric_around_an_exact_zero():
    bins = d.symexp_bins(255)
    assert bins[127] == 0
    assert torch.equal(bins, -bins.flip(0))
    assert (bins.diff() > 0).all()


def test_even_number_of_bins_is_refused():
    with pytest.raises(ValueError, match=r"agent\.bins"):
        d.symexp_bins(254)


# two-hot


def test_two_hot_of_a_bin_is_that_bin_alone():
    bins = d.symexp_bins(255)
    got = dense(*d.two_hot(bins, bins), 255)
    np.testing.assert_array_equal(got, np.eye(255))


def test_two_hot_round_trip_over_the_range():
    bins = d.symexp_bins(255)
    x = torch.cat([d.symexp(torch.linspace(-20, 20, 999)), torch.linspace(-2, 2, 401)])
    x = x.clamp(bins[0], bins[-1])
    back = dense(*d.two_hot(x, bins), 255) @ bins.double().numpy()
    np.testing.assert_allclose(back, x.numpy(), rtol=1e-6, atol=1e-7)


def test_two_hot_outside_the_range_is_the_outermost_bin():
    bins = d.symexp_bins(5)
    x = torch.tensor([-torch.inf, -1e30, bins[0] * 1.5, bins[-1] * 1.5, 1e30])
    got = dense(*d.two_hot(x, bins), 5)
    np.testing.assert_array_equal(got, np.eye(5)[[0, 0, 0, 4, 4]])


def test_two_hot_weights_are_those_of_the_explicit_distribution():
    bins = d.symexp_bins(255)
    x = torch.randn(300, generator=rng()) * torch.logspace(-3, 9, 300)
    got = dense(*d.two_hot(x, bins), 255)
    np.testing.assert_allclose(got, explicit_two_hot(x.double().numpy(), bins.double().numpy()), atol=2e-6)


def test_two_hot_takes_a_tensor_of_any_strides():
    bins = d.symexp_bins(255)
    x = torch.randn(4, 6, generator=rng())
    for got, want in zip(d.two_hot(x.T, bins), d.two_hot(x.T.contiguous(), bins), strict=True):
        assert torch.equal(got, want)


TARGETS = torch.tensor([0.0, 1.0, -0.3, 1e-4, 37.5, -1e6, 4e8, 1e12, -1e12])
OTHERS = TARGETS.flip(0) * 0.7
WEIGHTS = {"one target": (1.0,), "two targets": (1.0, 1.0), "weighted targets": (1.0, 0.25)}


def explicit_loss(logits, bins, weights):
    """The same cross-entropies from full distributions, in float64."""
    log_probs = logits.log_softmax(-1)
    full = [explicit_two_hot(t.double().numpy(), bins.double().numpy()) for t in (TARGETS, OTHERS)]
    return sum(-w * (torch.from_numpy(f) * log_probs).sum(-1) for w, f in zip(weights, full, strict=False))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_two_hot_loss_is_the_cross_entropy_to_the_explicit_distribution(weights):
    bins = d.symexp_bins(255)
    logits = torch.randn(len(TARGETS), 255, generator=rng()) * 3
    targets = (TARGETS, OTHERS)[: len(weights)]
    got = loss(logits, *targets, bins=bins, weights=weights)
    np.testing.assert_allclose(got.numpy(), explicit_loss(logits.double(), bins, weights).numpy(), rtol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_two_hot_loss_has_the_gradient_of_the_explicit_form(weights):
    bins = d.symexp_bins(255)
    logits = (torch.randn(len(TARGETS), 255, generator=rng()) * 3).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    upstream = torch.linspace(-1, 2, len(TARGETS))
    targets = (TARGETS, OTHERS)[: len(weights)]
    loss(logits, *targets, bins=bins, weights=weights).backward(upstream)
    explicit_loss(exact, bins, weights).backward(upstream.double())
    np.testing.assert_allclose(logits.grad.numpy(), exact.grad.numpy(), atol=2e-6)


def test_two_hot_loss_counts_each_target_once_by_default():
    bins = d.symexp_bins(255)
    logits = torch.randn(len(TARGETS), 255, generator=rng())
    got = loss(logits, TARGETS, OTHERS, bins=bins)
    np.testing.assert_allclose(got.numpy(), explicit_loss(logits.double(), bins, (1, 1)).numpy(), rtol=1e-5)


def test_two_hot_gradient_adds_up_where_two_targets_share_a_bin():
    logits = torch.zeros(1, 5, requires_grad=True)
    target = torch.zeros(1)  # the middle bin, from both
    loss(logits, target, target, bins=d.symexp_bins(5)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.4, 0.4, -1.6, 0.4, 0.4]]))


def test_two_hot_loss_of_huge_logits_is_finite():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    got = loss(logits, torch.zeros(1), bins=d.symexp_bins(3))
    assert got.item() == pytest.approx(1e4)


def test_two_hot_loss_sends_no_gradient_into_targets():
    target = torch.ones(1, requires_grad=True)
    logits = torch.zeros(1, 5, requires_grad=True)
    loss(logits, target, bins=d.symexp_bins(5)).sum().backward()
    assert target.grad is None


def test_two_hot_takes_bfloat16_logits_and_computes_in_float32():
    bins = d.symexp_bins(255)
    logits = (torch.randn(len(TARGETS), 255, generator=rng()) * 3).bfloat16().requires_grad_()
    got = loss(logits, TARGETS, bins=bins)
    want = explicit_loss(logits.detach().double(), bins, (1,))
    assert got.dtype == mean(logits, bins).dtype == torch.float32
    np.testing.assert_allclose(got.detach().numpy(), want.numpy(), rtol=1e-5)
    got.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("level", [0.0, -3.7, 1e3, 0.1])
@pytest.mark.parametrize("count", [3, 41, 255])
def test_two_hot_mean_of_equal_logits_is_exactly_zero(level, count):
    got = mean(torch.full((7, 3, count), level), d.symexp_bins(count))
    assert torch.equal(got, torch.zeros(7, 3))


def test_two_hot_mean_is_the_expectation():
    logits = torch.randn(200, 255, generator=rng()) * 3
    bins = d.symexp_bins(255)
    terms = softmax(logits.double().numpy()) * bins.double().numpy()
    error = np.abs(mean(logits, bins).numpy() - terms.sum(-1))
    assert (error <= 2e-6 * np.abs(terms).sum(-1)).all()


def test_two_hot_mean_undoes_two_hot():
    bins = d.symexp_bins(255)
    x = np.array([0.0, 0.5, -0.5, 1.0, -7.3, 1234.5])
    logits = torch.from_numpy(np.log(explicit_two_hot(x, explicit_bins()) + 1e-30)).float()
    np.testing.assert_allclose(mean(logits, bins).numpy(), x, rtol=1e-5, atol=1e-6)


# unimix


@pytest.mark.parametrize("classes", FEW + MANY)
@pytest.mark.parametrize("mix", [0.01, 0.3])
def test_unimix_floor_is_the_uniform_share(classes, mix):
    logits = torch.zeros(5, 3, classes)
    logits[..., 1] = 1000.0
    probs = d.unimix_probs(logits, mix)
    torch.testing.assert_close(probs.amin(), torch.tensor(mix / classes), rtol=1e-6, atol=0)
    torch.testing.assert_close(probs[..., 1], torch.full((5, 3), 1 - mix + mix / classes))


@pytest.mark.parametrize("classes", FEW + MANY)
def test_unimix_mixes_softmax_with_uniform_over_the_last_axis(classes):
    logits = torch.randn(3, 5, classes, generator=rng()) * 4
    want = 0.99 * softmax(logits.double().numpy()) + 0.01 / classes
    np.testing.assert_allclose(d.unimix_probs(logits, 0.01).numpy(), want, rtol=2e-6)


@pytest.mark.parametrize("classes", [4, 32])
def test_unimix_gradient_is_that_of_the_formula(classes):
    logits = torch.randn(3, 5, classes, generator=rng()).requires_grad_()
    upstream = torch.randn(3, 5, classes, generator=rng(1))
    d.unimix_probs(logits, 0.1).backward(upstream)
    p, u = softmax(logits.detach().double().numpy()), 0.9 * upstream.double().numpy()
    want = p * (u - (p * u).sum(-1, keepdims=True))
    np.testing.assert_allclose(logits.grad.numpy(), want, atol=1e-6)


def test_one_hot_places_a_single_one():
    got = d.one_hot(torch.tensor([[2, 0]], dtype=torch.uint8), 3, torch.float32)
    assert got.tolist() == [[[0, 0, 1], [1, 0, 0]]]


# straight-through


# divergences and losses


def random_probs(seed, *shape):
    return (torch.randn(*shape, generator=rng(seed)) * 2).softmax(-1)


def test_categorical_kl_agrees_with_torch_distributions():
    p, q = random_probs(0, 6, 7, 5), random_probs(1, 6, 7, 5)
    want = kl_divergence(Independent(Categorical(p), 1), Independent(Categorical(q), 1))
    torch.testing.assert_close(d.categorical_kl(p, q), want)
    assert (d.categorical_kl(p, p) == 0).all()


def test_categorical_kl_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    want = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    torch.testing.assert_close(d.categorical_kl(p, q), torch.tensor(want, dtype=torch.float32))


def test_class_loss_is_the_negative_log_probability():
    logits = torch.randn(2, 3, 4, generator=rng())
    index = torch.randint(4, (2, 3), generator=rng(), dtype=torch.uint8)
    got = d.class_loss(logits, index)
    for i in range(2):
        for j in range(3):
            want = -np.log(softmax(logits[i, j].double().numpy())[index[i, j]])
            assert got[i, j].item() == pytest.approx(want, rel=1e-5)

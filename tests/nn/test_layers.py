import numpy as np
import pytest
import torch
from scipy import stats

from lore.nn import layers

N = 128


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def double(x):
    return x.detach().double().numpy()


def kernels():
    """name -> weight, fan-in that its standard deviation must follow."""
    return {
        "linear": (layers.Linear(300, 200, rng()).weight, 300),
        "linear scale 0.01": (layers.Linear(300, 200, rng(), scale=0.01).weight, 300 * 100**2),
        "block linear": (layers.BlockLinear(8, 320, 1600, rng()).weight, 320),
        "conv": (layers.Conv(24, 100, rng()).weight, 24 * 25),
        "dense": (layers.Dense(300, 200, rng()).linear.weight, 300),
        "mlp output": (layers.MLP(8, 300, 2, rng(), 200).layers[-1].weight, 300),
        "mlp output scale 0.01": (layers.MLP(8, 300, 2, rng(), 200, 0.01).layers[-1].weight, 300 * 100**2),
    }


@pytest.mark.parametrize("kind", list(kernels()))
def test_kernels_have_the_standard_deviation_of_their_whole_fan_in(kind):
    weight, fan_in = kernels()[kind]
    assert weight.numel() >= 50_000
    assert weight.std().item() * fan_in**0.5 == pytest.approx(1.0, abs=0.015)
    assert abs(weight.mean().item()) * fan_in**0.5 < 0.02


@pytest.mark.parametrize("kind", list(kernels()))
def test_kernels_are_normal_cut_at_two_sigma(kind):
    weight, fan_in = kernels()[kind]
    unit = double(weight).ravel() * fan_in**0.5 / 1.1368
    assert 1.99 < np.abs(unit).max() <= 2 + 1e-5
    assert stats.kstest(unit, stats.truncnorm(-2, 2).cdf).pvalue > 1e-3


def test_scale_zero_gives_zeros_and_still_draws():
    first, second = rng(), rng()
    assert not layers.Linear(5, 7, first, scale=0.0).weight.any()
    layers.Linear(5, 7, second)
    assert torch.equal(first.get_state(), second.get_state())


def test_biases_start_at_zero_and_norms_at_one():
    for module in (layers.Linear(3, 4, rng()), layers.BlockLinear(2, 4, 4, rng()), layers.Conv(3, 4, rng())):
        assert not module.bias.any()
    assert (layers.Norm(4).scale == 1).all()


def test_linear_is_the_matrix_product():
    layer, x = layers.Linear(6, 4, rng()), torch.randn(N, 6, generator=rng(1))
    layer.bias.data.normal_(generator=rng(2))
    want = double(x) @ double(layer.weight).T + double(layer.bias)
    np.testing.assert_allclose(double(layer(x)), want, atol=1e-5)


def test_block_linear_is_a_block_diagonal_matrix():
    layer, x = layers.BlockLinear(3, 12, 6, rng()), torch.randn(N, 12, generator=rng(1))
    layer.bias.data.normal_(generator=rng(2))
    matrix = np.zeros((12, 6))
    for g in range(3):
        matrix[4 * g : 4 * g + 4, 2 * g : 2 * g + 2] = double(layer.weight[g])
    np.testing.assert_allclose(double(layer(x)), double(x) @ matrix + double(layer.bias), atol=1e-5)


def test_norm_divides_by_the_root_mean_square():
    norm, x = layers.Norm(10), torch.randn(N, 10, generator=rng()) * torch.logspace(-4, 3, N)[:, None]
    norm.scale.data.normal_(generator=rng(1))
    want = double(x) / np.sqrt((double(x) ** 2).mean(-1, keepdims=True) + 1e-4) * double(norm.scale)
    np.testing.assert_allclose(double(norm(x)), want, rtol=1e-5, atol=1e-6)


def test_channel_norm_works_over_channels_at_each_pixel():
    norm, x = layers.ChannelNorm(5), torch.randn(2, 5, 3, 4, generator=rng())
    norm.scale.data.normal_(generator=rng(1))
    want = double(x) / np.sqrt((double(x) ** 2).mean(1, keepdims=True) + 1e-4)
    want *= double(norm.scale)[:, None, None]
    np.testing.assert_allclose(double(norm(x)), want, rtol=1e-5, atol=1e-6)


def test_dense_is_linear_norm_silu_in_that_order():
    dense, x = layers.Dense(6, 5, rng()), torch.randn(N, 6, generator=rng(1))
    for p in dense.parameters():
        p.data.normal_(generator=rng(2))
    y = double(x) @ double(dense.linear.weight).T + double(dense.linear.bias)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-4) * double(dense.norm.scale)
    np.testing.assert_allclose(double(dense(x)), y / (1 + np.exp(-y)), atol=1e-5)


@pytest.mark.parametrize("fan_out", [None, 3])
def test_mlp_has_the_asked_layers_and_a_bare_linear_output(fan_out):
    mlp = layers.MLP(6, 5, 2, rng(), fan_out)
    x = torch.randn(N, 6, generator=rng(1))
    assert mlp(x).shape == (N, fan_out or 5)
    count = (6 * 5 + 5 + 5) + (5 * 5 + 5 + 5) + (5 * 3 + 3 if fan_out else 0)
    assert sum(p.numel() for p in mlp.parameters()) == count


def test_conv_keeps_height_and_width_and_correlates_with_a_5x5_kernel():
    conv = layers.Conv(2, 1, rng())
    x = torch.randn(1, 2, 6, 8, generator=rng(1))
    padded = np.zeros((2, 10, 12))
    padded[:, 2:-2, 2:-2] = double(x[0])
    got = double(conv(x))
    assert got.shape == (1, 1, 6, 8)
    for i, j in [(0, 0), (3, 4), (5, 7)]:
        want = (padded[:, i : i + 5, j : j + 5] * double(conv.weight[0])).sum()
        assert got[0, 0, i, j] == pytest.approx(want, abs=1e-5)


def test_up_conv_is_a_convolution_of_the_doubled_image():
    up = layers.UpConv(3, 2, rng()).double()
    torch.nn.init.normal_(up.bias, generator=rng(1))
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=rng(2), requires_grad=True)
    grad = torch.randn(2, 2, 8, 12, dtype=torch.float64, generator=rng(3))
    doubled = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    expected = torch.nn.functional.conv2d(doubled, up.weight, up.bias, padding=2)
    inputs = (x, up.weight, up.bias)
    torch.testing.assert_close(up(x), expected)
    torch.testing.assert_close(
        torch.autograd.grad(up(x), inputs, grad), torch.autograd.grad(expected, inputs, grad)
    )

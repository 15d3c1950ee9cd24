"""The fused operations, by kernels and by torch, against plain formulas in float64."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from lore.nn import fused, likelihood, products
from lore.nn.distributions import one_hot, symexp_bins

KERNELS = [("kernels", torch.float32), ("kernels", torch.bfloat16)]
PATHS = [*KERNELS, ("torch", torch.float32), ("torch", torch.float64)]
FULL = [("kernels", torch.float32), ("torch", torch.float32), ("torch", torch.float64)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1.01 / 256}  # bfloat16: one rounding
ROWS = [1, 7, 65, 130]
WIDTHS = [8, 64, 24]
BLOCKS = [(1, 8), (4, 16), (3, 24)]
CLASSES = [2, 4, 7, 33, 255]
LARGEST = 1 - 2.0**-24
NAN, INF = float("nan"), float("inf")


def on(paths):
    """Runs a test for each (path, dtype); the test takes `dtype`."""
    return pytest.mark.parametrize("dtype", paths, indirect=True, ids=lambda p: f"{p[0]}-{str(p[1])[6:]}")


@pytest.fixture
def dtype(request, monkeypatch):
    path, dtype = request.param
    if path == "torch":
        monkeypatch.setattr(fused, "kernels_in_use", lambda: None)
    elif fused.kernels_in_use() is None:
        pytest.skip("no kernels")
    return dtype


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=rng(seed)).to(dtype)


def spread(rows, width, dtype, seed=0):
    """Rows of very different size."""
    return (torch.logspace(-3, 3, rows)[:, None] * randn(rows, width, seed=seed)).to(dtype)


def rows_of(x, fill=5.0):
    """A buffer, and x as rows inside of it."""
    buffer = torch.full((len(x), x.shape[1] + 5), fill, dtype=x.dtype)
    inside = buffer[:, 2:-3]
    inside.copy_(x)
    return buffer, inside


def untouched(buffer, fill=5.0):
    return bool((buffer[:, :2] == fill).all() and (buffer[:, -3:] == fill).all())


def close(got, want, dtype, atol=None):
    assert got.dtype == dtype
    tolerance = TOLERANCE[dtype]
    atol = 0.1 * min(tolerance, 1e-5) if atol is None else atol
    torch.testing.assert_close(got.detach().double(), want.detach(), rtol=tolerance, atol=atol)


def doubles(*tensors):
    return [x.detach().double().requires_grad_() for x in tensors]


def leaves(*tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def plain_norm_silu(z, scale):
    a = z / (z.square().mean(-1, keepdim=True) + 1e-4).sqrt() * scale
    return a * torch.sigmoid(a)


def plain_core_hidden(shared, own, scale, table=None, action=None):
    z = shared + torch.cat(list(own), -1) + (0 if table is None else table[action])
    g, _, o = own.shape
    return torch.stack(plain_norm_silu(z, scale).split([o] * g, -1)), z


def plain_gru(gates, bias, deter):
    g, _, gate = gates.shape
    o = gate // 3
    new, kept = [], []
    for b in range(g):
        reset, inner, update = (gates[b] + bias[b * gate : (b + 1) * gate]).split(o, -1)
        reset, update = torch.sigmoid(reset), torch.sigmoid(update - 1)
        new.append(update * torch.tanh(reset * inner) + (1 - update) * deter[:, b * o : (b + 1) * o])
        kept.append(torch.cat([reset, inner, update], -1))
    return torch.cat(new, -1), torch.stack(kept)


def plain_probs(logits, mix):
    return (1 - mix) * logits.softmax(-1) + mix / logits.shape[-1]


def plain_cross_entropy(logits, index, weight):
    picked = logits.log_softmax(-1).gather(-1, index)
    return -(picked if weight is None else weight.double() * picked).sum(-1)


def antisymmetric(classes):
    half = torch.linspace(0, 3, classes // 2 + 1)
    return torch.cat([-half[1:].flip(0), half])


# which path


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_kernels_compute_float32_and_bfloat16_where_they_are_built(kind):
    if fused.kernels_in_use() is None:
        pytest.skip("no kernels")
    names = ["norm_silu", "norm_silu_back", "core_hidden", "gru", "sample", "log_sum", "laprop"]
    names += ["cross_entropy_back"]
    names += ["gru_back", "sample_back", "scan", "scan_back"] if kind == torch.float32 else []
    assert all(fused.native_kernel(name, torch.zeros(1, dtype=kind)) is not None for name in names)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_torch_computes_what_has_no_kernel(kind):
    assert fused.native_kernel("gru", torch.zeros(1, dtype=kind)) is None
    assert fused.native_kernel("gru", torch.zeros(1, device="meta")) is None


# norm_silu


@on(PATHS)
@pytest.mark.parametrize("rows,width", list(itertools.product(ROWS, WIDTHS)))
def test_norm_silu_is_silu_of_the_rms_norm(dtype, rows, width):
    z, scale = spread(rows, width, dtype), randn(width, dtype=dtype, seed=1)
    want = plain_norm_silu(z.double(), scale.double())
    close(fused.norm_silu(z, scale), want, dtype)
    y, r = fused.norm_silu_forward(z, scale)
    close(y, want, dtype)
    close(r, (z.double().square().mean(-1) + 1e-4).rsqrt(), wide(dtype))


@on(PATHS)
@pytest.mark.parametrize("rows,width", list(itertools.product(ROWS, WIDTHS)))
def test_norm_silu_writes_to_rows_of_any_stride(dtype, rows, width):
    z, scale = randn(rows, width, dtype=dtype), randn(width, dtype=dtype, seed=1)
    buffer, out = rows_of(torch.zeros_like(z))
    assert fused.norm_silu_forward(z, scale, out)[0] is out
    close(out, plain_norm_silu(z.double(), scale.double()), dtype)
    assert untouched(buffer)


@on(PATHS)
@pytest.mark.parametrize("form", ["one row", "three axes", "strided", "transposed", "map of one pixel"])
def test_norm_silu_takes_any_layout(dtype, form):
    x, scale = randn(6, 4, 8, dtype=dtype), randn(8, dtype=dtype, seed=1)
    z = {
        "one row": x[0, 0],
        "three axes": x,
        "strided": x[::2, 1],
        "transposed": x.transpose(0, 1),
        "map of one pixel": x[:, 0, :, None, None].contiguous().movedim(1, -1),
    }[form]
    want = plain_norm_silu(z.double(), scale.double())
    close(fused.norm_silu(z, scale), want, dtype)
    close(fused.norm_silu(z.requires_grad_(), scale), want, dtype)


@on(PATHS)
@pytest.mark.parametrize("rows,width", list(itertools.product(ROWS, WIDTHS)))
def test_norm_silu_back_is_the_gradient(dtype, rows, width):
    z, scale = randn(rows, width, dtype=dtype), randn(width, dtype=dtype, seed=1)
    _, grad = rows_of(randn(rows, width, dtype=dtype, seed=2))
    exact = doubles(z, scale)
    want = torch.autograd.grad(plain_norm_silu(*exact), exact, grad.double())
    _, r = fused.norm_silu_forward(z, scale)
    for g in (grad, grad.contiguous(), grad.t().contiguous().t()):
        gz, gscale = fused.norm_silu_back(g, z, r, scale)
        close(gz, want[0], dtype)
        close(gscale, want[1], wide(dtype), atol=1e-5)


@on(PATHS)
@pytest.mark.parametrize("shape", [(1, 8), (65, 24), (5, 13, 8)])
def test_norm_silu_differentiates(dtype, shape):
    z, scale = leaves(randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype, seed=1))
    grad = randn(*shape, dtype=dtype, seed=2)
    exact = doubles(z, scale)
    want = torch.autograd.grad(plain_norm_silu(*exact), exact, grad.double())
    got = torch.autograd.grad(fused.norm_silu(z, scale), (z, scale), grad)
    close(got[0], want[0], dtype)
    close(got[1], want[1], dtype, atol=1e-5)
    for i, inputs in enumerate([(z, scale.detach()), (z.detach(), scale)]):
        (one,) = torch.autograd.grad(fused.norm_silu(*inputs), inputs[i], grad)
        assert torch.equal(one, got[i])


# core_hidden


@on(PATHS)
@pytest.mark.parametrize("rows,blocks", list(itertools.product(ROWS, BLOCKS)))
@pytest.mark.parametrize("with_table", [False, True])
def test_core_hidden_adds_its_parts_and_normalises_over_all_blocks(dtype, rows, blocks, with_table):
    g, o = blocks
    shared, own = randn(rows, g * o, dtype=dtype), randn(g, rows, o, dtype=dtype, seed=1)
    scale, table = randn(g * o, dtype=dtype, seed=2), randn(5, g * o, dtype=dtype, seed=3)
    extra = (table, torch.randint(5, (rows,), generator=rng(4))) if with_table else ()
    exact = [x.double() if x.is_floating_point() else x for x in extra]
    want, want_z = plain_core_hidden(shared.double(), own.double(), scale.double(), *exact)
    hidden, z, r = fused.core_hidden(shared, own, scale, *extra)
    close(hidden, want, dtype)
    close(r, (want_z.square().mean(-1) + 1e-4).rsqrt(), wide(dtype))
    if not with_table:
        close(z, want_z, dtype)


@on(FULL)
@pytest.mark.parametrize("with_table", [False, True])
def test_core_hidden_differentiates(dtype, with_table):
    g, n, o = 3, 7, 8
    inputs = leaves(
        randn(n, g * o, dtype=dtype), randn(g, n, o, dtype=dtype, seed=1), randn(g * o, dtype=dtype, seed=2)
    )
    table, action = randn(5, g * o, dtype=dtype, seed=3), torch.arange(n) % 5
    grad, exact = randn(g, n, o, dtype=dtype, seed=4), doubles(*inputs)
    extra, exact_extra = ((table, action), (table.double(), action)) if with_table else ((), ())
    want = torch.autograd.grad(plain_core_hidden(*exact, *exact_extra)[0], exact, grad.double())
    got = torch.autograd.grad(fused.core_hidden(*inputs, *extra)[0], inputs, grad)
    for a, b in zip(got, want, strict=True):
        close(a, b, dtype)


# gru


def gru_inputs(g, rows, o, dtype, size=2.0):
    gates, bias = size * randn(g, rows, 3 * o), randn(g * 3 * o, dtype=dtype, seed=1)
    return gates.to(dtype), bias, randn(rows, g * o, dtype=dtype, seed=2)


@on(PATHS)
@pytest.mark.parametrize("rows,blocks", list(itertools.product(ROWS, BLOCKS)))
@pytest.mark.parametrize("keep", [False, True])
def test_gru_is_the_gated_update(dtype, rows, blocks, keep):
    gates, bias, deter = gru_inputs(blocks[0], rows, blocks[1], dtype)
    want, kept = plain_gru(gates.double(), bias.double(), deter.double())
    before = gates.clone()
    close(fused.gru(gates, bias, deter, keep=keep), want, dtype)
    if keep:
        close(gates, kept, dtype)
    else:
        assert torch.equal(gates, before)


@on(PATHS)
@pytest.mark.parametrize("rows", ROWS)
def test_gru_reads_and_writes_rows_of_any_stride(dtype, rows):
    gates, bias, deter = gru_inputs(3, rows, 8, dtype)
    want, _ = plain_gru(gates.double(), bias.double(), deter.double())
    (source, old), (buffer, out) = rows_of(deter), rows_of(torch.zeros_like(deter))
    assert fused.gru(gates, bias, old, out) is out
    close(out, want, dtype)
    assert untouched(buffer) and untouched(source) and torch.equal(old, deter)
    close(fused.gru(gates, bias, old), want, dtype)


@on(PATHS)
def test_gru_saturates(dtype):
    gates = torch.tensor([-1e4, -120.0, 0.0, 120.0, 1e4])
    every = torch.cartesian_prod(gates, gates, gates).t().reshape(1, 1, -1).to(dtype)  # (1, 1, 3 * 125)
    bias, deter = torch.zeros(375, dtype=dtype), randn(1, 125, dtype=dtype)
    want, _ = plain_gru(every.double(), bias.double(), deter.double())
    close(fused.gru(every, bias, deter), want, dtype)


@on(FULL)
def test_gru_differentiates(dtype):
    inputs = leaves(*gru_inputs(3, 7, 8, dtype))
    grad, exact = randn(7, 24, dtype=dtype, seed=4), doubles(*inputs)
    want = torch.autograd.grad(plain_gru(*exact)[0], exact, grad.double())
    got = torch.autograd.grad(fused.gru(*inputs), inputs, grad)
    for a, b in zip(got, want, strict=True):
        close(a, b, dtype)


@on(FULL)
@pytest.mark.parametrize("rows,blocks", list(itertools.product(ROWS, BLOCKS)))
def test_gru_back_is_the_gradient_of_what_gru_kept(dtype, rows, blocks):
    gates, bias, deter = gru_inputs(blocks[0], rows, blocks[1], dtype)
    _, grad = rows_of(randn(*deter.shape, dtype=dtype, seed=4))
    exact, old = doubles(gates, deter)
    want = torch.autograd.grad(plain_gru(exact, bias.double(), old)[0], (exact, old), grad.double())
    fused.gru(gates, bias, deter, keep=True)
    ggates, gdeter = fused.gru_back(grad, gates, deter)
    close(ggates, want[0], dtype)
    close(gdeter, want[1], dtype)


# sample


def sample_inputs(n, s, k, dtype, seed=0):
    return randn(n, s, k, seed=seed).mul(2).to(dtype), torch.rand(n, s, generator=rng(seed + 1))


def at(uniform, n, s=1):
    return torch.full((n, s), uniform)


@on(PATHS)
@pytest.mark.parametrize(
    "n,s,k,mix", [(*x, m) for x in itertools.product(ROWS, [1, 3], CLASSES) for m in (0.0, 0.1)]
)
def test_sample_is_the_inverse_cdf(dtype, n, s, k, mix):
    logits, uniform = sample_inputs(n, s, k, dtype)
    want = plain_probs(logits.double(), mix)
    probs = torch.empty(n, s, k, dtype=wide(dtype))
    buffer, hot = rows_of(torch.full((n, s * k), 9.0, dtype=dtype))
    index = fused.sample(logits, uniform, mix, hot, probs)
    assert index.dtype == torch.uint8 and index.shape == (n, s)
    close(probs, want, wide(dtype))
    assert torch.equal(hot, one_hot(index, k, dtype).flatten(1)) and untouched(buffer)
    upper = want.cumsum(-1).gather(-1, index.long().unsqueeze(-1)).squeeze(-1)
    lower = upper - want.gather(-1, index.long().unsqueeze(-1)).squeeze(-1)
    assert (lower <= uniform + 2e-6).all() and (uniform <= upper + 2e-6).all()


@on(PATHS)
def test_sample_is_the_same_with_and_without_what_it_writes(dtype):
    logits, uniform = sample_inputs(70, 3, 7, dtype)
    want = fused.sample(logits, uniform, 0.01)
    for with_hot, with_probs in itertools.product([False, True], repeat=2):
        hot = torch.empty(70, 21, dtype=dtype) if with_hot else None
        probs = torch.empty(70, 3, 7) if with_probs else None
        assert torch.equal(fused.sample(logits, uniform, 0.01, hot, probs), want)
        assert hot is None or torch.equal(hot, one_hot(want, 7, dtype).flatten(1))
        assert probs is None or torch.allclose(probs.double(), plain_probs(logits.double(), 0.01))


@on(PATHS)
@pytest.mark.parametrize("k,mix", [(2, 0.0), (7, 0.0), (33, 0.0), (7, 0.5)])
def test_sampled_frequencies_follow_the_probabilities(dtype, k, mix):
    draws, logits = 50_000, randn(k, dtype=dtype)
    uniform = torch.rand(draws, 1, generator=rng(1))
    index = fused.sample(logits.expand(draws, 1, k).contiguous(), uniform, mix)
    counts = np.bincount(index.flatten().numpy(), minlength=k)
    expected = plain_probs(logits.double(), mix).numpy()
    assert stats.chisquare(counts, expected / expected.sum() * draws).pvalue > 1e-3


@on(PATHS)
@pytest.mark.parametrize("k", [4, 32])
def test_sample_takes_the_upper_class_at_an_exact_edge(dtype, k):
    uniform = (torch.arange(k) / k).unsqueeze(1)
    logits = torch.full((k, 1, k), 1.5, dtype=dtype)
    assert fused.sample(logits, uniform).flatten().tolist() == list(range(k))
    below = torch.nextafter(uniform[1:], torch.tensor(0.0))
    assert fused.sample(logits[1:].contiguous(), below).flatten().tolist() == list(range(k - 1))


@on(PATHS)
@pytest.mark.parametrize("k", [2, 4, 7, 64, 255])
def test_the_largest_uniform_gives_the_last_class(dtype, k):
    assert (fused.sample(torch.zeros(3, 1, k, dtype=dtype), at(LARGEST, 3)) == k - 1).all()
    logits, _ = sample_inputs(300, 1, k, dtype)
    for mix in (0.0, 0.01):
        assert (fused.sample(logits, at(LARGEST, 300), mix) < k).all()


@on(PATHS)
@pytest.mark.parametrize("k", [2, 4, 7, 64, 255])
@pytest.mark.parametrize("none", [-INF, -1e4])
def test_sample_never_takes_a_class_without_probability(dtype, k, none):
    n = 2000
    logits, uniform = sample_inputs(n, 1, k, dtype)
    dead = torch.rand(n, 1, k, generator=rng(5)) < 0.5
    dead[: n // 2, :, -1] = True
    dead.scatter_(-1, torch.randint(max(k - 1, 1), (n, 1, 1), generator=rng(6)), False)
    logits[dead] = none
    for u in (uniform, at(LARGEST, n), at(0.0, n)):
        index = fused.sample(logits, u).long().unsqueeze(-1)
        assert (index < k).all() and not dead.gather(-1, index).any()


@on(PATHS)
def test_uniform_zero_skips_leading_classes_without_probability(dtype):
    logits = torch.zeros(5, 1, 5, dtype=dtype)
    for i in range(5):
        logits[i, :, :i] = -INF
    assert fused.sample(logits, at(0.0, 5)).flatten().tolist() == [0, 1, 2, 3, 4]


@on(PATHS)
def test_a_uniform_share_gives_every_class_a_probability(dtype):
    logits = torch.full((4, 1, 4), -INF, dtype=dtype)
    logits[:, :, 2] = 0
    uniform = torch.tensor([[0.01], [0.05], [0.5], [0.99]])
    assert fused.sample(logits, uniform, 0.16).flatten().tolist() == [0, 1, 2, 3]


@on(PATHS)
@pytest.mark.parametrize("value", [0.0, NAN, INF, 1e4])
def test_rows_are_sampled_independently(dtype, value):
    logits, uniform = sample_inputs(65, 2, 7, dtype)
    want, order = fused.sample(logits, uniform), torch.randperm(65, generator=rng(3))
    assert torch.equal(fused.sample(logits[order], uniform[order]), want[order])
    logits[3, 1], uniform[3, 1] = value, 0.99
    got = fused.sample(logits, uniform)
    assert (got < 7).all()
    got[3, 1] = want[3, 1]
    assert torch.equal(got, want)


@on(FULL)
@pytest.mark.parametrize("rows,k", list(itertools.product(ROWS, CLASSES)))
@pytest.mark.parametrize("mix", [0.0, 0.1])
def test_sample_back_is_the_gradient_through_the_probabilities(dtype, rows, k, mix):
    logits = randn(rows, 2, k).double().requires_grad_()
    probs = plain_probs(logits, mix)
    grads = [randn(rows, 2, k, dtype=dtype, seed=i) for i in (1, 2, 3)]
    grads[1] = grads[1].transpose(0, 1).contiguous().transpose(0, 1)
    grads[2] = grads[2].flatten(1)
    for count in (1, 2, 3):
        total = sum(g.reshape(rows, 2, k).double() for g in grads[:count])
        (want,) = torch.autograd.grad(probs, logits, total, retain_graph=True)
        close(fused.sample_back(grads[:count], probs.detach().to(dtype), mix), want, dtype, atol=2e-6)


# log_sum and cross_entropy


@on(PATHS)
@pytest.mark.parametrize("rows,k", list(itertools.product(ROWS, CLASSES)))
def test_log_sum_is_the_normaliser_and_the_mean(dtype, rows, k):
    logits = randn(rows, 2, k, seed=1).mul(3).to(dtype)
    norm, mean = likelihood.log_sum(logits)
    close(norm, logits.double().logsumexp(-1), wide(dtype))
    assert mean is None
    if k % 2:
        bins = antisymmetric(k)
        norm, mean = likelihood.log_sum(logits, bins)
        close(norm, logits.double().logsumexp(-1), wide(dtype))
        close(mean, logits.double().softmax(-1) @ bins.double(), wide(dtype), atol=2e-6)


@on(PATHS)
def test_log_sum_takes_strided_logits(dtype):
    logits = randn(9, 7, 4, dtype=dtype).transpose(1, 2)[::2]
    norm, mean = likelihood.log_sum(logits, antisymmetric(7))
    close(norm, logits.double().logsumexp(-1), wide(dtype))
    close(mean, logits.double().softmax(-1) @ antisymmetric(7).double(), wide(dtype))


@on(PATHS)
@pytest.mark.parametrize("value", [0.0, 1.7, -300.0, 1e4, -1e4])
def test_equal_logits_have_a_mean_of_exactly_zero(dtype, value):
    _, mean = likelihood.log_sum(torch.full((130, 255), value, dtype=dtype), symexp_bins(255))
    assert (mean == 0).all()


@on(PATHS)
@pytest.mark.parametrize("k", [7, 33, 255])
def test_symmetric_logits_have_a_mean_of_exactly_zero(dtype, k):
    half = randn(130, k // 2, dtype=dtype)
    logits = torch.cat([half, randn(130, 1, dtype=dtype, seed=1), half.flip(1)], 1)
    _, mean = likelihood.log_sum(logits, symexp_bins(k))
    assert (mean == 0).all()


@on(PATHS)
@pytest.mark.parametrize("k", [2, 7, 33, 255])
def test_log_sum_of_huge_and_missing_logits_is_finite(dtype, k):
    logits = torch.tensor([1e4, -1e4, -INF, 0.0])[torch.randint(4, (130, k), generator=rng())]
    logits[:, 1] = torch.tensor([1e4, -1e4]).repeat(65)
    logits = logits.to(dtype)
    want = logits.double().logsumexp(-1)
    assert want.isfinite().all()
    close(likelihood.log_sum(logits)[0], want, wide(dtype))
    if k % 2:
        norm, mean = likelihood.log_sum(logits, antisymmetric(k))
        close(norm, want, wide(dtype))
        close(mean, logits.double().softmax(-1) @ antisymmetric(k).double(), wide(dtype), atol=3e-3)


@on(PATHS)
@pytest.mark.parametrize("m,weighted", list(itertools.product([1, 4], [False, True])))
@pytest.mark.parametrize("shape", [(1, 2), (7, 4), (65, 33), (5, 13, 255)])
def test_cross_entropy_and_its_gradient(dtype, shape, m, weighted):
    (logits,), lead = leaves(randn(*shape, dtype=dtype)), shape[:-1]
    index = torch.randint(shape[-1], (*lead, m), generator=rng(1))
    index[0] = index[0, ..., :1]
    weight = torch.rand(*lead, m, generator=rng(2)).to(wide(dtype)) if weighted else None
    (exact,) = doubles(logits)
    want = plain_cross_entropy(exact, index, weight)
    got = likelihood.cross_entropy(logits, likelihood.log_sum(logits.detach())[0], index, weight)
    close(got, want, wide(dtype), atol=1e-5)
    grad = randn(*lead, dtype=wide(dtype), seed=3)
    (want_grad,) = torch.autograd.grad(want, exact, grad.double(), retain_graph=True)
    close(torch.autograd.grad(got, logits, grad, retain_graph=True)[0], want_grad, dtype)
    (want_grad,) = torch.autograd.grad(want.mean(), exact)
    close(torch.autograd.grad(got.mean(), logits)[0], want_grad, dtype)


@on(PATHS)
@pytest.mark.parametrize("strided", ["logits", "index", "weight", "grad"])
def test_cross_entropy_takes_strided_inputs(dtype, strided):
    inputs = {
        "logits": randn(9, 5, 7, dtype=dtype),
        "index": torch.randint(7, (9, 5, 2), generator=rng(1)),
        "weight": torch.rand(9, 5, 2, generator=rng(2)).to(wide(dtype)),
        "grad": randn(9, 5, dtype=wide(dtype), seed=3),
    }
    inputs[strided] = inputs[strided].transpose(0, 1).contiguous().transpose(0, 1)
    logits, index, weight, grad = inputs.values()
    logits.requires_grad_()
    (exact,) = doubles(logits)
    (want,) = torch.autograd.grad(plain_cross_entropy(exact, index, weight), exact, grad.double())
    loss = likelihood.cross_entropy(logits, likelihood.log_sum(logits.detach())[0], index, weight)
    close(torch.autograd.grad(loss, logits, grad)[0], want, dtype)


# products


def linear_inputs(form, rows, dtype):
    x, weight, bias = randn(rows, 24), randn(10, 24, seed=1) / 5, randn(10, seed=2)
    if form == "transposed":
        x, weight = x.t().contiguous().t(), weight.t().contiguous().t()
    elif form == "slices":
        x, weight = rows_of(x)[1], rows_of(weight)[1]
    elif form == "one output":
        weight, bias = weight[:1], bias[:1]
    elif form == "one input":
        x, weight = x[:, :1], weight[:, :1]
    return [y.to(dtype).requires_grad_() for y in (x, weight, bias)]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 7, products.ONEDNN_ROWS - 1, products.ONEDNN_ROWS, 130])
@pytest.mark.parametrize("form", ["dense", "transposed", "slices", "one output", "one input"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_and_its_gradient(kind, rows, form, with_bias):
    x, weight, bias = linear_inputs(form, rows, kind)
    inputs = (x, weight, bias) if with_bias else (x, weight)
    exact = doubles(*inputs)
    want = exact[0] @ exact[1].t() + (exact[2] if with_bias else 0)
    got = products.linear(*inputs)
    close(got, want, kind, atol=1e-5)
    grad = randn(*got.shape, seed=3).to(kind).t().contiguous().t()
    both = zip(
        torch.autograd.grad(got, inputs, grad, retain_graph=True),
        torch.autograd.grad(want, exact, grad.double(), retain_graph=True),
        strict=True,
    )
    for a, b in both:
        close(a, b, kind, atol=2e-5)
    summed = zip(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), exact), strict=True)
    for a, b in summed:
        close(a, b, kind, atol=2e-5)


@pytest.mark.parametrize("rows", [7, 130])
def test_linear_gives_a_gradient_to_each_input_that_wants_one(rows):
    inputs = linear_inputs("dense", rows, torch.float32)
    want = torch.autograd.grad(products.linear(*inputs).square().sum(), inputs)
    for i in range(3):
        some = [x if i == j else x.detach() for j, x in enumerate(inputs)]
        (got,) = torch.autograd.grad(products.linear(*some).square().sum(), some[i])
        torch.testing.assert_close(got, want[i])
    with torch.no_grad():
        torch.testing.assert_close(products.linear(*inputs), torch.nn.functional.linear(*inputs))


@pytest.mark.parametrize("shape", [(24,), (2, 3, 24), (5, 26, 24)])
def test_linear_keeps_the_leading_axes(shape):
    x, weight, bias = randn(*shape), randn(10, 24, seed=1), randn(10, seed=2)
    close(products.linear(x, weight, bias), x.double() @ weight.double().t() + bias, torch.float32, atol=2e-5)


@pytest.mark.parametrize("rows", [7, 130])
def test_linear_in_bfloat16_is_the_product_in_bfloat16(rows):
    x, weight, bias = (y.detach() for y in linear_inputs("slices", rows, torch.bfloat16))
    want = x.double() @ weight.double().t() + bias.double()
    close(products.linear(x, weight, bias), want, torch.bfloat16, atol=0.02)


def test_onednn_does_float32_products_of_many_rows_only():
    if products.ONEDNN is None:
        pytest.skip("no oneDNN")
    for kind, rows in itertools.product([torch.float32, torch.float64], [63, 64]):
        x, weight, bias = linear_inputs("dense", rows, kind)
        ours = "_Linear" in products.linear(x, weight, bias).grad_fn.next_functions[0][0].name()
        assert ours == (kind == torch.float32 and rows == 64)


def test_linear_without_onednn(monkeypatch):
    inputs = linear_inputs("slices", 130, torch.float32)
    want = products.linear(*inputs)
    monkeypatch.setattr(products, "ONEDNN", None)
    torch.testing.assert_close(products.linear(*inputs), want)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 63, 64, 130])
@pytest.mark.parametrize("form", ["dense", "strided"])
def test_each_block_is_multiplied_by_its_weight(kind, rows, form):
    x, weight = randn(3, rows, 8, dtype=kind), randn(3, 8, 10, dtype=kind, seed=1)
    if form == "strided":
        x = x.transpose(0, 1).reshape(rows, 24).unflatten(-1, (3, 8)).transpose(0, 1)
        weight = torch.cat([weight, weight], 1)[:, :8]
    exact = doubles(x, weight)
    want = torch.stack([a @ b for a, b in zip(*exact, strict=True)])
    close(products.multiply_blocks(x, weight), want, kind, atol=1e-5)
    inputs, grad = leaves(x, weight), randn(3, rows, 10, dtype=kind, seed=2)
    got = torch.autograd.grad(products.multiply_blocks(*inputs), inputs, grad)
    for a, b in zip(got, torch.autograd.grad(want, exact, grad.double()), strict=True):
        close(a, b, kind, atol=2e-5)


# hostile values


@on(PATHS)
@pytest.mark.parametrize("width", [8, 24])
def test_norm_silu_of_nan_is_nan_in_its_row_only(dtype, width):
    z, scale = randn(9, width, dtype=dtype), torch.ones(width, dtype=dtype)
    z[4, width - 1] = NAN
    y, r = fused.norm_silu_forward(z, scale)
    nan = torch.arange(9) == 4
    assert torch.equal(y.isnan(), nan.unsqueeze(1).expand(9, width)) and torch.equal(r.isnan(), nan)
    scale[1] = NAN
    assert torch.equal(fused.norm_silu(z[:4], scale).isnan(), scale.isnan().expand(4, width))


@on(PATHS)
def test_norm_silu_of_a_huge_scale_saturates(dtype):
    z = torch.tensor([[1.0, -1.0] * 8], dtype=dtype)
    y = fused.norm_silu(z, torch.full((16,), 1e4, dtype=dtype))
    close(y, plain_norm_silu(z.double(), torch.full((16,), 1e4).to(dtype).double()), dtype)


@on(PATHS)
@pytest.mark.parametrize("part", ["reset", "inner", "update", "deter", "bias"])
@pytest.mark.parametrize("keep", [False, True])
def test_gru_of_nan_is_nan_there_only(dtype, part, keep):
    gates, bias, deter = gru_inputs(2, 9, 8, dtype)
    if part == "deter":
        deter[4, 11] = NAN
    elif part == "bias":
        bias[24 + 3] = NAN
    else:
        gates[1, 4, 3 + 8 * ["reset", "inner", "update"].index(part)] = NAN
    want, kept = plain_gru(gates.double(), bias.double(), deter.double())
    assert want.isnan().sum() == (9 if part == "bias" else 1)
    assert torch.equal(fused.gru(gates, bias, deter, keep=keep).isnan(), want.isnan())
    assert not keep or torch.equal(gates.isnan(), kept.isnan())


@on(PATHS)
@pytest.mark.parametrize("k", [2, 7, 33, 255])
@pytest.mark.parametrize("where", [0, 1, -1])
def test_log_sum_of_nan_is_nan_in_its_row_only(dtype, k, where):
    logits = randn(70, k, dtype=dtype)
    logits[66, where] = NAN
    for bins in (None, antisymmetric(k)) if k % 2 else (None,):
        for out in likelihood.log_sum(logits, bins):
            assert out is None or torch.equal(out.isnan(), torch.arange(70) == 66)


@on(PATHS)
def test_gradients_of_nan_are_nan(dtype):
    z, scale, grad = randn(5, 8, dtype=dtype), torch.ones(8, dtype=dtype), randn(5, 8, dtype=dtype, seed=1)
    grad[2, 3] = NAN
    gz, gscale = fused.norm_silu_back(grad, z, fused.norm_silu_forward(z, scale)[1], scale)
    assert torch.equal(gz.isnan().any(1), torch.arange(5) == 2)
    assert torch.equal(gscale.isnan(), torch.arange(8) == 3)
    (logits,) = leaves(randn(5, 8, dtype=dtype))
    loss = likelihood.cross_entropy(
        logits, likelihood.log_sum(logits.detach())[0], torch.zeros(5, 1, dtype=torch.long)
    )
    (g,) = torch.autograd.grad(loss, logits, torch.tensor([0.0, 1.0, NAN, 1.0, 1.0], dtype=loss.dtype))
    assert torch.equal(g.isnan().all(1), torch.arange(5) == 2) and g.isnan().sum() == 8


# norms and laprop


@on(PATHS)
def test_norms_of_the_pieces_of_a_buffer(dtype):
    sizes = [1, 7, 64, 9000]
    flat = randn(sum(sizes)).to(dtype)
    want = torch.stack([piece.double().norm() for piece in flat.split(sizes)])
    torch.testing.assert_close(fused.norms(flat, sizes).double(), want, rtol=1e-5, atol=0)


def laprop_buffers(sizes, dtype, aliased=False):
    total = sum(sizes)
    master = randn(total, dtype=wide(dtype))
    second, first = torch.zeros(total, dtype=wide(dtype)), torch.zeros(total, dtype=wide(dtype))
    return second, first, master, master if aliased else torch.zeros(total, dtype=dtype)


@on(KERNELS)
def test_laprop_has_its_kernel_for_buffers_longer_than_any_row(monkeypatch, dtype):
    found = []
    find = fused.native_kernel
    monkeypatch.setattr(fused, "native_kernel", lambda name, x: found.append(find(name, x)) or found[-1])
    sizes = [fused.LONGEST + 1]
    grad = randn(*sizes).to(dtype)
    fused.laprop(grad, torch.ones(1), sizes, *laprop_buffers(sizes, dtype), 0.9, 0.99, 0.01, 1e-20, 0.1)
    assert found[0] is not None


@on(PATHS)
@pytest.mark.parametrize("eps", [1e-20, 0.5])
@pytest.mark.parametrize("aliased", [False, True])
def test_laprop_is_its_recursion(dtype, eps, aliased):
    sizes, beta1, beta2, lr = [5, 64, 1, 130], 0.9, 0.99, 0.05
    aliased = aliased and dtype != torch.bfloat16
    second, first, master, weights = buffers = laprop_buffers(sizes, dtype, aliased)
    w = master.double().clone()
    v, m = torch.zeros_like(w), torch.zeros_like(w)
    for t in (1, 2, 3):
        grad = (randn(200, seed=t) * 10.0 ** (t - 2)).to(dtype)
        factors = torch.rand(4, generator=rng(10 + t)).to(wide(dtype))
        before, start = grad.clone(), 0
        correct2, rate = 1 - beta2**t, lr / (1 - beta1**t)
        fused.laprop(grad, factors, sizes, *buffers, beta1, beta2, correct2, eps, rate)
        for size, factor in zip(sizes, factors.double(), strict=True):
            for j in range(start, start + size):
                g = grad[j].double() * factor
                v[j] = beta2 * v[j] + (1 - beta2) * g * g
                m[j] = beta1 * m[j] + (1 - beta1) * g / ((v[j] / correct2).sqrt() + eps)
                w[j] -= rate * m[j]
            start += size
        assert torch.equal(grad, before)
        close(second, v, wide(dtype), atol=1e-12)
        close(first, m, wide(dtype), atol=1e-5 if dtype != torch.float64 else 1e-12)
        close(master, w, wide(dtype), atol=2e-6)
        assert torch.equal(weights, master.to(dtype))


@on(PATHS)
def test_laprop_leaves_a_tensor_without_gradient_alone(dtype):
    second, first, master, weights = buffers = laprop_buffers([3, 4], dtype)
    before = master.clone()
    grad = torch.tensor([0.0] * 3 + [1.0] * 4, dtype=dtype)
    fused.laprop(grad, torch.ones(2), [3, 4], *buffers, 0.9, 0.999, 0.001, 1e-20, 0.1)
    assert torch.equal(master[:3], before[:3]) and not second[:3].any() and not first[:3].any()
    assert (master[3:] < before[3:]).all() and torch.equal(weights, master.to(dtype))


@on(PATHS)
def test_laprop_of_nan_is_nan_there_only(dtype):
    buffers = laprop_buffers([9], dtype)
    grad = randn(9, dtype=dtype, seed=1)
    grad[4] = NAN
    fused.laprop(grad, torch.ones(1), [9], *buffers, 0.9, 0.999, 0.001, 1e-20, 0.1)
    assert all(torch.equal(x.isnan(), torch.arange(9) == 4) for x in buffers)


@on(KERNELS)
def test_stores_round_as_torch_does_and_keep_nan(dtype):
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=rng()).to(torch.int32)
    bits[:6] = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000, 0x7F800000, 0x7F7FFFFF])
    bits[6:1000] = (bits[6:1000] & -0x10000) | 0x8000  # halfway between two bfloat16
    master = bits.view(torch.float32).clone()
    assert master.isnan().sum() > 10 and master.isinf().any()
    zero, weights = torch.zeros(4096), torch.zeros(4096, dtype=dtype)
    fused.laprop(
        torch.zeros(4096, dtype=dtype), torch.ones(1), [4096], zero, zero.clone(), master, weights,
        0.9, 0.999, 0.001, 1e-20, 0.0,
    )  # fmt: skip
    want = bits.view(torch.float32).to(dtype)
    torch.testing.assert_close(weights, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mirrored_output_layer_learns_the_mirror_image_bit_for_bit(dtype):
    """Otherwise the outermost bins of a two-hot, some 10^8, no longer cancel, and values drift."""
    n, bins = 300, 255
    x = torch.randn(n, 64, generator=rng()).to(dtype)
    weight, bias = (
        torch.randn(bins, 64, generator=rng(1)).to(dtype),
        torch.randn(bins, generator=rng(2)).to(dtype),
    )
    index = torch.randint(bins, (n, 4), generator=rng(3))
    share = torch.rand(n, 4, generator=rng(4))
    norm = torch.randn(n, generator=rng(5)) + 20

    def learnt(weight, bias, index):
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        likelihood.cross_entropy(products.linear(x, weight, bias), norm, index, share).sum().backward()
        grad = torch.cat([weight.grad.flatten(), bias.grad])
        master = torch.cat([weight.detach().flatten(), bias.detach()]).float()
        out = master if dtype == torch.float32 else master.to(dtype)
        moments = [torch.zeros(len(grad)), torch.zeros(len(grad))]
        sizes = [weight.numel(), bins]
        fused.laprop(grad, torch.ones(2), sizes, *moments, master, out, 0.9, 0.999, 0.5, 1e-20, 1e-3)
        weight, bias = master.split(sizes)
        return weight.view(bins, 64), bias

    one = learnt(weight, bias, index)
    other = learnt(weight.flip(0).contiguous(), bias.flip(0).contiguous(), bins - 1 - index)
    assert torch.equal(one[0], other[0].flip(0)) and torch.equal(one[1], other[1].flip(0))


@on([*FULL, ("kernels", torch.bfloat16)])
@pytest.mark.parametrize("shared", [False, True])
def test_soft_cross_entropy(dtype, shared):
    logits = (3 * randn(3, 7, 5, 4)).to(dtype).requires_grad_()
    target = randn(*([7, 5, 4] if shared else [3, 7, 5, 4]), seed=1).softmax(-1)
    weight = randn(3, 7, seed=2)
    loss = likelihood.soft_cross_entropy(logits, target)
    (grad,) = torch.autograd.grad((loss * weight).sum(), logits)
    exact = logits.detach().double().requires_grad_()
    want = -(target * exact.log_softmax(-1)).sum((-2, -1))
    (want_grad,) = torch.autograd.grad((want * weight).sum(), exact)
    assert grad.dtype == dtype and loss.dtype == wide(dtype)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)
    tolerance = max(TOLERANCE[dtype], 1e-7)
    torch.testing.assert_close(grad.double(), want_grad, rtol=tolerance, atol=tolerance)

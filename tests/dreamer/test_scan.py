"""The scan's kernel beside the same scan in torch operations, at widths that no vector divides."""

import re
from importlib.resources import files

import pytest
import torch

from lore.dreamer import scan
from lore.dreamer.scan import Weights, posterior_scan
from lore.nn.cpu.native import kernels_in_use, torch_only

pytestmark = pytest.mark.skipif(kernels_in_use() is None, reason="kernels cannot be built here")


def random_case(T, B, g, o, h, S, K):
    """Arguments of posterior_scan, float32, resets among them; those with a gradient ask for it."""
    rng = torch.Generator().manual_seed(T + B)

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=rng)).requires_grad_()

    D, Z = g * o, S * K
    weights = Weights(
        deter_w=normal(h, D, scale=D**-0.5),
        deter_b=normal(h),
        deter_scale=normal(h),
        stoch_w=normal(h, Z, scale=S**-0.5),
        stoch_b=normal(h),
        stoch_scale=normal(h),
        own_w=normal(g, o, o, scale=o**-0.5),
        shared_w=normal(2 * h, D, scale=h**-0.5),
        core_scale=normal(D),
        gates_w=normal(g, o, 3 * o, scale=o**-0.5),
        gates_b=normal(3 * D),
        post_w=normal(h, D, scale=D**-0.5),
        post_scale=normal(h),
        logits_w=normal(Z, h, scale=h**-0.5),
        logits_b=normal(Z),
    )
    stoch = torch.nn.functional.one_hot(torch.randint(K, (B, S), generator=rng), K).float().flatten(1)
    keep = (torch.rand(T, B, 1, generator=rng) > 0.2).float()
    start = torch.randn(B, D, generator=rng)
    uniform = torch.rand(T, B, S, generator=rng)
    return start, stoch, keep, normal(T, B, D), normal(T, B, h), uniform, weights


def run(case):
    """deter, latents, probabilities, classes, and every gradient of a random function of the first three."""
    *_, core_in, post_in, _, weights = case
    deter, hot, probs, index = posterior_scan(0.01, *case)
    rng = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=rng).to(x.device)).sum() for x in (deter, hot, probs))
    return (deter, hot, probs, index), torch.autograd.grad(loss, [core_in, post_in, *weights])


@pytest.mark.parametrize(
    "sizes",
    [(5, 3, 4, 5, 7, 3, 4), (1, 1, 2, 16, 16, 8, 4), (4, 9, 2, 33, 21, 2, 3), (3, 16, 8, 64, 64, 32, 4)],
    ids=["nothing divides", "one row", "a row and a number over", "size 1m"],
)
def test_the_kernel_is_the_scan_in_torch_operations(sizes):
    case = random_case(*sizes)
    got, got_grads = run(case)
    with torch_only():
        want, want_grads = run(case)
    assert torch.equal(got[3], want[3]) and torch.equal(got[1], want[1])
    names = ("core_in", "post_in", *Weights._fields)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for name, a, b in zip(names, got_grads, want_grads, strict=True):
        assert b.abs().max() > 0, name
        torch.testing.assert_close(
            a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("tuple_", [scan.Weights, scan.Inputs, scan.Kept, scan.Into, scan.Back])
def test_a_struct_in_cpp_has_the_fields_of_the_tuple_of_its_name_in_that_order(tuple_):
    source = files("lore.nn.cpu").joinpath("scan.cpp").read_text()
    body = re.search(rf"struct {tuple_.__name__} \{{(.*?)\}};", source, re.S)
    assert tuple(re.findall(r"\*(\w+)", body[1])) == tuple_._fields

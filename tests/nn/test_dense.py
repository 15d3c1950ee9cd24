"""Layers by dense.cpp against the same in float64 and in torch operations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lore.dreamer.rssm import StepWeights
from lore.nn import dense
from lore.nn.cpu.native import torch_only
from lore.nn.fused import NORM_EPS

ROUNDING = 1 / 128  # two roundings to bfloat16
needs_bfloat16 = pytest.mark.skipif(
    not dense.multiplies(torch.zeros(64, 2, dtype=torch.bfloat16)), reason="no AVX-512 BF16 or no compiler"
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def layer(inputs: int, outputs: int) -> list[Tensor]:
    weight = randn(outputs, inputs, seed=1) / inputs**0.5
    return [weight, randn(outputs, seed=2), randn(outputs, seed=3)]


def exact(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return F.silu(F.rms_norm(x @ weight.T + bias, (len(weight),), scale, NORM_EPS))


def shapes() -> Iterator[tuple[int, int, int]]:
    for rows in (64, 65, 101, 250):
        for inputs, outputs in ((2, 1), (16, 64), (38, 7), (128, 33), (640, 80), (64, 255)):
            yield rows, inputs, outputs


@needs_bfloat16
@pytest.mark.parametrize(("rows", "inputs", "outputs"), list(shapes()))
def test_a_layer_and_its_gradients(rows: int, inputs: int, outputs: int) -> None:
    """As close to float64 as the torch operations are, or within the rounding of bfloat16."""
    x = randn(rows, inputs + 6)[:, 3 : inputs + 3]  # rows of a wider buffer, and an odd start
    weights, direction = layer(inputs, outputs), randn(rows, outputs, seed=4)
    leaves = [x.detach().requires_grad_(), *(w.requires_grad_() for w in weights)]

    def run(function, tensors: list[Tensor]) -> list[Tensor]:
        y = function(*tensors)
        return [y, *torch.autograd.grad((y * direction.to(y.dtype)).sum(), tensors)]

    ours = run(dense.dense, leaves)
    with torch_only():
        torchs = run(dense.dense, leaves)
    want = run(exact, [t.detach().double().requires_grad_() for t in leaves])
    for got, plain, truth in zip(ours, torchs, want, strict=True):
        assert got.dtype == torch.bfloat16 and got.shape == truth.shape
        off = (got.double() - truth).abs().max()
        assert off <= max(2 * (plain.double() - truth).abs().max(), ROUNDING * truth.abs().max())
    with torch.no_grad():
        assert torch.equal(dense.dense(*leaves), ours[0])  # the same with and without a gradient


@needs_bfloat16
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (6, 16), (8, 17), (64, 192)])
def test_packed_weights_are_pairs_of_inputs_for_sixteen_outputs(inputs: int, outputs: int) -> None:
    weight = randn(3, outputs, inputs).mT  # as a weight (out, in) is given
    packed = dense.pack(weight).view(torch.bfloat16).view(3, -1, inputs // 2, 16, 2)
    whole = F.pad(weight, (0, -outputs % 16)).view(3, inputs // 2, 2, -1, 16)
    assert torch.equal(packed, whole.permute(0, 3, 1, 4, 2))


def test_the_struct_in_cpp_has_the_fields_of_the_tuple_in_python_in_that_order() -> None:
    source = files("lore.nn.cpu").joinpath("dense.cpp").read_text()
    body = re.search(r"struct StepWeights \{(.*?)\};", source, re.S)
    assert body is not None
    assert tuple(re.findall(r"\*(\w+)", body[1])) == StepWeights._fields


@pytest.mark.parametrize("case", ["float32", "few rows", "odd inputs", "large"])
def test_what_dense_cpp_does_not_take_is_computed_by_torch(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "_dense", None)
    rows, inputs = (63 if case == "few rows" else 64), (33 if case == "odd inputs" else 32)
    x, weights = randn(rows, inputs), layer(inputs, 16)
    if case == "float32":
        x, weights = x.float(), [w.float() for w in weights]
    if case == "large":
        monkeypatch.setattr(dense, "LARGEST", 511)
    y = dense.dense(x, *weights)
    want = exact(x.double(), *(w.double() for w in weights))
    torch.testing.assert_close(y.double(), want, rtol=2e-2, atol=4e-2)

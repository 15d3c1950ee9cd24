"""l_mix = l_wm + beta * sg(l~): what changes nothing, and what it is where it changes something."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lore.gate import centred, divergence, mix

A = 7


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=rng(seed))


def everything(n: int) -> Tensor:
    return torch.ones(n, A, dtype=torch.bool)


def test_beta_0_is_the_policy_itself_bit_for_bit() -> None:
    logits = random(50, A)
    bonus = torch.full((50, A), torch.inf)  # even this
    assert torch.equal(mix(logits, torch.zeros(50), bonus), logits)
    some = torch.tensor([0.0, 0.5] * 25)
    mixed = mix(logits, some, random(50, A, seed=1))
    assert torch.equal(mixed[::2], logits[::2])
    assert not (mixed[1::2] == logits[1::2]).all(1).any()


def test_the_mixed_policy_is_a_product_of_both() -> None:
    logits, advice, beta = random(40, A).double(), random(40, A, seed=1).double(), torch.rand(40).double()
    product = logits.softmax(-1) * advice.softmax(-1) ** beta.unsqueeze(-1)
    mixed = mix(logits, beta, centred(advice, everything(40)))
    torch.testing.assert_close(mixed.softmax(-1), product / product.sum(-1, keepdim=True))


def test_a_constant_added_to_the_advice_changes_nothing() -> None:
    """Bit for bit where the addition itself is exact: multiples of 1/64."""
    exact = torch.randint(-500, 500, (100, A), generator=rng()) / 64
    for constant in (1.0, -3.5, 1000.25):
        assert torch.equal(centred(exact + constant, everything(100)), centred(exact, everything(100)))
    advice = random(100, A)
    torch.testing.assert_close(centred(advice + 0.3, everything(100)), centred(advice, everything(100)))


def test_constant_advice_gives_exact_zeros() -> None:
    for value in (0.0, -1.9459101, 1e6, 0.1):
        assert torch.equal(centred(torch.full((3, A), value), everything(3)), torch.zeros(3, A))


def test_a_masked_action_gets_the_lowest_bonus_among_the_allowed_and_no_ban() -> None:
    advice, mask = random(200, A), torch.rand(200, A, generator=rng(1)) < 0.6
    mask[0] = False  # nothing allowed: everything is
    level = centred(advice, mask)
    assert torch.isfinite(level).all()
    torch.testing.assert_close(level[0], centred(advice, everything(200))[0])
    torch.testing.assert_close(level.mean(-1), torch.zeros(200), atol=1e-6, rtol=0)
    for row, allowed, said in zip(level[1:], mask[1:], advice[1:], strict=True):
        if allowed.any():
            lowest = row[allowed].min()
            assert (row[~allowed] == lowest).all()
            best = said.masked_fill(~allowed, -torch.inf).argmax()
            assert row[best] == row.max()


def test_no_gradient_reaches_the_advice() -> None:
    logits, advice = random(5, A).requires_grad_(), random(5, A, seed=1).requires_grad_()
    mixed = mix(logits, torch.full((5,), 0.7), centred(advice, everything(5)))
    mixed.log_softmax(-1)[:, 0].sum().backward()
    assert advice.grad is None
    reference = logits.detach().requires_grad_()
    (reference + 0.7 * centred(advice.detach(), everything(5))).log_softmax(-1)[:, 0].sum().backward()
    torch.testing.assert_close(logits.grad, reference.grad)


def test_divergence_is_the_kl_and_its_gradient_is_through_the_second_policy_only() -> None:
    logits, bonus = random(30, A).double().requires_grad_(), random(30, A, seed=1).double()
    mixed = mix(logits, torch.full((30,), 0.5).double(), bonus)
    kl = divergence(mixed, logits)
    p, q = mixed.detach().softmax(-1), logits.detach().softmax(-1)
    torch.testing.assert_close(kl.detach(), (p * (p / q).log()).sum(-1))
    kl.sum().backward()
    torch.testing.assert_close(logits.grad, q - p)  # d/dl of -sum p log softmax(l)


@pytest.mark.parametrize("seed", range(5))
def test_the_kl_grows_with_beta(seed: int) -> None:
    logits, bonus = random(100, A, seed=seed).double(), random(100, A, seed=seed + 9).double()
    betas = torch.linspace(0, 3, 40).double()
    kl = torch.stack([divergence(mix(logits, b.expand(100), bonus), logits) for b in betas])
    assert (kl.diff(dim=0) > 0).all()

"""The temperature of advice: entropy as asked for, or as near as ties allow; match within its bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lore.gate import centred, temperature
from lore.gate.temperature import (
    ABOVE_TIES,
    MATCH,
    build_temperature,
    entropy_temperature,
    match_temperature,
    pinned,
)
from lore.llm.asking.controller import prior_logits

A = 7
LOG = math.log(A)
rng = torch.Generator().manual_seed(0)


def level(probs: Tensor) -> Tensor:
    """Advice in probabilities (N, A), with its floor, centred."""
    return centred(prior_logits(probs), torch.ones_like(probs, dtype=torch.bool))


def entropy(x: Tensor, temperature: Tensor) -> Tensor:
    log_probs = (x.double() / temperature.double().unsqueeze(-1)).log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def one_hot(k: int) -> Tensor:
    """Advice that k actions share."""
    probs = torch.zeros(1, A)
    probs[0, :k] = 1 / k
    return probs


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_entropy_is_the_share_that_was_asked_for(share: float) -> None:
    x = level(torch.distributions.Dirichlet(torch.full((A,), 0.3)).sample((300,)))
    ties = (x >= x.amax(-1, keepdim=True) - 0.05).sum(-1)
    free = ties.double().log() + ABOVE_TIES * LOG < share * LOG
    assert free.sum() > 200
    got = entropy(x, entropy_temperature(x, share))
    torch.testing.assert_close(got[free], torch.full_like(got[free], share * LOG), atol=1e-3, rtol=0)


@pytest.mark.parametrize("k", range(1, A))
def test_with_k_ties_for_the_best_it_is_no_lower_than_log_k(k: int) -> None:
    x = level(one_hot(k))
    got = entropy(x, entropy_temperature(x, 0.5)).item()
    assert got == pytest.approx(max(0.5 * LOG, math.log(k) + ABOVE_TIES * LOG), abs=1e-3)


def test_advice_that_is_equal_or_nearly_so_gives_no_bonus() -> None:
    nearly = torch.full((2, A), 1 / A)
    nearly[1, 0] *= 1.04
    x = level(nearly / nearly.sum(-1, keepdim=True))
    found = entropy_temperature(x, 0.5)
    assert torch.isinf(found).all()
    assert torch.equal(x / found.unsqueeze(-1), torch.zeros(2, A))


def test_match_is_the_argmin_of_the_kl_on_its_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(200, A, generator=generator)
    x = logits * (0.2 + 4 * torch.rand(200, 1, generator=generator)) + torch.randn(
        200, A, generator=generator
    )
    x = x - x.mean(-1, keepdim=True)
    grid = torch.linspace(*MATCH, 4001).double()
    p = logits.double().softmax(-1).unsqueeze(1)
    kl = (p * (p.log() - (x.double().unsqueeze(1) / grid.view(1, -1, 1)).log_softmax(-1))).sum(-1)
    best = grid[kl.argmin(-1)]
    got = match_temperature(x, logits)
    torch.testing.assert_close(got.double(), best, atol=2e-3, rtol=0)
    at_an_end = (best == MATCH[0]) | (best == MATCH[1])
    assert 20 < at_an_end.sum() < 180
    assert torch.equal(pinned(got), at_an_end)


def test_fixed_is_fixed_and_an_unknown_mode_is_refused() -> None:
    x = level(one_hot(1))
    assert build_temperature("fixed", 0.5, 1.7)(x, x).tolist() == [pytest.approx(1.7)]
    with pytest.raises(KeyError):
        build_temperature("cold", 0.5, 1.0)


def test_remembered_temperatures_are_the_searched_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in any company, and each root is searched for once."""
    searched: list[int] = []

    def counted(x: Tensor, share: float) -> Tensor:
        searched.append(len(x))
        return entropy_temperature(x, share)

    monkeypatch.setattr(temperature, "entropy_temperature", counted)
    kinds = torch.cat([level(torch.rand(9, A, generator=rng) ** 8), *(level(one_hot(k)) for k in (1, 3, A))])
    remembered = build_temperature("entropy", 0.5, 1.0)
    for _ in range(20):
        x = kinds[torch.randint(len(kinds), (5,), generator=rng)]
        assert torch.equal(remembered(x, torch.zeros_like(x)), entropy_temperature(x, 0.5))
    assert searched == [1] * len(searched) and len(searched) <= len(kinds)
    many = kinds.repeat(1 + temperature.FEW_ROWS // len(kinds), 1)
    assert torch.equal(remembered(many, torch.zeros_like(many)), entropy_temperature(many, 0.5))
    assert searched[-1] == len(many)


def test_what_is_remembered_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temperature, "REMEMBERED", 4)
    remembered = temperature.RememberedEntropy(0.5)
    for _ in range(3):
        x = level(torch.rand(7, A, generator=rng))
        assert torch.equal(remembered(x, x), entropy_temperature(x, 0.5))
        assert len(remembered._known) <= 4

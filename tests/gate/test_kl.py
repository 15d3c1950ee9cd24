"""The KL constraint: a multiplier that rises, falls and clips, a penalty that holds, a bound that holds."""

from __future__ import annotations

import pytest
import torch

from lore.config.options import KLOptions
from lore.gate import KLControl, divergence, mix

A, DELTA = 7, 0.1
ONE = torch.tensor(1)


def control(**options) -> KLControl:
    return KLControl(KLOptions(**options))


def test_the_multiplier_rises_falls_and_clips() -> None:
    kl = control(kl_lr=0.5, lambda_max=1.0)
    seen = []
    for value in [1.1, 1.1, 1.1, -0.9, -0.9, -0.9]:
        before = kl.multiplier.item()
        loss = kl.loss(torch.tensor(value), ONE)
        assert loss.item() == pytest.approx(before * max(0.0, value - DELTA))
        seen.append(kl.multiplier.item())
    assert seen == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0, 0.0])


def test_without_advised_states_there_is_no_loss_and_lambda_stays() -> None:
    kl = control(delta_target=0.2)
    kl.multiplier = torch.tensor(3.0)
    total = torch.zeros((), requires_grad=True)
    loss = kl.loss(total, torch.tensor(0))
    assert loss.item() == 0.0 and kl.multiplier.item() == 3.0
    assert torch.autograd.grad(loss, total, allow_unused=True)[0] in (None, torch.tensor(0.0))


def test_the_kl_is_a_mean_over_the_states_that_count() -> None:
    kl = control(kl_lr=1.0)
    kl.loss(torch.tensor(5.0), torch.tensor(10))
    assert kl.multiplier.item() == pytest.approx(0.4)


def settle(mode: str, steps: int = 4000) -> float:
    """KL(pi_mix || pi_wm) at which a toy actor settles whose reward pulls it away from the advice."""
    torch.manual_seed(0)
    logits = torch.zeros(1, A, requires_grad=True)
    bonus, beta = torch.zeros(1, A), torch.tensor([1.0])
    bonus[0, 0] = 3.0
    reward = torch.zeros(A)
    reward[1] = 0.2
    optimizer, kl = torch.optim.SGD([logits], 0.1), control(kl_lr=0.05, mode=mode)
    for _ in range(steps):
        policy = logits.softmax(-1)
        value = (policy * reward).sum() + 0.05 * -(policy * policy.log()).sum()
        loss = -value
        if mode == "penalty":
            distance = divergence(mix(logits.detach(), beta, bonus), logits)
            loss = loss + kl.loss(distance.sum(), ONE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return divergence(mix(logits.detach(), beta, bonus), logits.detach()).item()


def test_a_toy_actor_that_leaves_the_constraint_is_held_by_the_penalty() -> None:
    assert settle("none") >= 3 * DELTA
    assert settle("penalty") <= 1.2 * DELTA


def test_projection_never_passes_delta_and_takes_the_largest_beta_that_does_not() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, bonus = 2 * torch.randn(500, A, generator=generator), 2 * torch.randn(500, A, generator=generator)
    beta = 3 * torch.rand(500, generator=generator)
    beta[:50] *= 0.01
    kl = control(mode="project")
    got = kl.project(logits, beta, bonus)
    assert (got <= beta).all()
    distance = divergence(mix(logits, got, bonus), logits)
    assert (distance <= DELTA).all()
    free = divergence(mix(logits, beta, bonus), logits) <= DELTA
    assert 30 < free.sum() < 470
    assert torch.equal(got[free], beta[free])
    assert (divergence(mix(logits, got * 1.001, bonus), logits)[~free] > DELTA * 0.999).all()


def test_projection_onto_nothing_is_no_advice() -> None:
    kl = control(mode="project", delta_target=0.0)
    assert kl.project(torch.zeros(2, A), torch.ones(2), torch.randn(2, A)).tolist() == [0.0, 0.0]


def test_the_multiplier_is_stored() -> None:
    kl, other = control(), control()
    kl.multiplier = torch.tensor(0.7)
    other.load_state_dict(kl.state_dict())
    assert other.multiplier.item() == pytest.approx(0.7)

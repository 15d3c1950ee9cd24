"""beta(s) of each gate: the formula, the latch, the ramp, the frozen norms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lore.base.errors import BadInput
from lore.base.types import Prior
from lore.config.options import GateOptions, KLOptions
from lore.gate import GATES, FixedGate, FollowGate, UncertaintyGate, build_gate
from lore.gate.gates import FLOORS

A = 7
NORMS = {"value_var": torch.tensor(0.5), "disagreement": torch.tensor(0.02)}


def gate(**options) -> UncertaintyGate:
    made = UncertaintyGate(GateOptions(**options))
    made.norms = dict(NORMS)
    return made


def states(n: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Actor logits, and doubt whose quotients lie within and beyond the clip."""
    rng = torch.Generator().manual_seed(seed)
    doubt = {name: 3 * norm * torch.rand(n, generator=rng) for name, norm in NORMS.items()}
    return 3 * torch.randn(n, A, generator=rng), doubt


def u_of(logits: Tensor, doubt: dict[str, Tensor]) -> list[float]:
    """The specification's u(s), written out."""
    out = []
    for i, row in enumerate(logits.double().softmax(-1).tolist()):
        entropy = -sum(p * math.log(p) for p in row) / math.log(A)
        value = min(2.0, float(doubt["value_var"][i]) / 0.5)
        model = min(2.0, float(doubt["disagreement"][i]) / 0.02)
        out.append(0.5 * entropy + 0.3 * value + 0.2 * model)
    return out


def test_beta_follows_the_formula_on_both_sides_of_both_latch_thresholds() -> None:
    logits, doubt = states(400)
    for before in (False, True):
        opening = gate().open(logits, doubt, torch.full((400,), before), 5000)
        for u, beta, latched in zip(
            u_of(logits, doubt), opening.beta.tolist(), opening.latched.tolist(), strict=True
        ):
            on = u > 0.6 or (before and u >= 0.4)
            assert latched == on
            assert beta == pytest.approx(0.3 / (1 + math.exp(-10 * (u - 0.5))) * (1 if on else 0.5), abs=1e-6)
        between = [0.4 < u < 0.6 for u in u_of(logits, doubt)]
        assert any(between) and opening.latched[torch.tensor(between)].eq(before).all()


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.0002), (2500, 0.5), (5000, 1.0), (90_000, 1.0)])
def test_beta_ramps_up_over_environment_steps(step: int, share: float) -> None:
    logits, doubt = states(20)
    on = torch.ones(20, dtype=torch.bool)
    full = gate().open(logits, doubt, on, 5000).beta
    torch.testing.assert_close(gate().open(logits, doubt, on, step).beta, share * full)
    assert torch.equal(gate(warmup_steps=0).open(logits, doubt, on, 0).beta, full)


def test_every_number_can_be_assigned_on_a_live_gate() -> None:
    logits, doubt = states(50)
    live, off = gate(), torch.zeros(50, dtype=torch.bool)
    live.weights = {"entropy": 1.0, "value_var": 0.0, "disagreement": 0.0}
    live.beta_max, live.kappa, live.tau, live.tau_high, live.off_scale = 2.0, 3.0, 0.2, 9.0, 0.25
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) / math.log(A)
    want = 2.0 * torch.sigmoid(3.0 * (entropy - 0.2)) * 0.25
    torch.testing.assert_close(live.open(logits, doubt, off, 5000).beta, want)
    live.delta_target, live.kl_lr = 0.15, 2e-3
    assert (live.kl.delta_target, live.kl.kl_lr) == (live.delta_target, live.kl_lr) == (0.15, 2e-3)
    live.kl.loss(torch.tensor(1.15), torch.tensor(1))
    assert live.kl.multiplier.item() == pytest.approx(2e-3)


def test_norms_are_means_of_the_first_updates_and_then_frozen() -> None:
    made = UncertaintyGate(GateOptions(norm_updates=3))
    logits = torch.zeros(2, A)
    values = [0.1, 0.2, 0.6, 50.0, 0.0]
    for value in values:
        assert made.calibrating == (value in values[:3])
        made.calibrate(logits, {"value_var": torch.tensor([value, 3 * value])})
    assert made.norms["value_var"].item() == pytest.approx(2 * sum(values[:3]) / 3)
    other = UncertaintyGate(GateOptions(norm_updates=3))
    other.load_state_dict(made.state_dict())
    assert other.norms == made.norms and not other.calibrating


def test_a_term_is_1_without_a_norm_and_never_beyond_its_clip() -> None:
    made = UncertaintyGate(GateOptions())
    logits = torch.zeros(4, A)
    odd = torch.tensor([0.0, 1.0, math.inf, math.nan])
    doubt = {"value_var": odd, "disagreement": odd}
    assert made.terms(logits, doubt)["disagreement"].tolist() == [1.0] * 4
    made.norms = {"value_var": torch.tensor(0.0), "disagreement": torch.tensor(0.0)}
    terms = made.terms(logits, doubt)
    assert terms["value_var"].tolist() == [0.0, 2.0, 2.0, 1.0]  # its norm has a floor
    assert terms["disagreement"].tolist() == [1.0, 2.0, 2.0, 1.0]
    assert torch.isfinite(terms["u"]).all()
    small = {"value_var": torch.tensor([FLOORS["value_var"] / 2]), "disagreement": torch.zeros(1)}
    assert made.terms(logits[:1], small)["value_var"].item() == pytest.approx(0.5)


def test_in_imagination_beta_is_capped_and_there_is_no_latch() -> None:
    logits, doubt = states(300)
    made = gate(beta_imagine_max=0.1)
    beta = made.imagined_beta(logits, doubt, 5000)
    u = torch.tensor(u_of(logits, doubt))
    torch.testing.assert_close(beta, (0.3 * torch.sigmoid(10 * (u - 0.5))).clamp(max=0.1).float())
    assert (beta == 0.1).any() and (beta < 0.1).any()


def advice(n: int, source: int = 1) -> Prior:
    logits = torch.randn(n, A, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    allowed = torch.ones(n, A, dtype=torch.bool)
    return Prior(logits, allowed, torch.ones(n), torch.full((n,), source, dtype=torch.uint8))


def test_mixing_reports_the_beta_that_acted() -> None:
    logits, _ = states(30)
    prior = advice(30)
    prior.source[::2] = 0
    mixed = gate().mix(logits, prior, torch.full((30,), 0.3))
    assert mixed.beta.tolist() == pytest.approx([0.0, 0.3] * 15)
    assert torch.equal(mixed.logits[::2], logits[::2])
    projected = gate(kl=KLOptions(mode="project", delta_target=0.01)).mix(logits, prior, mixed.beta)
    assert (projected.beta <= mixed.beta).all() and (projected.beta < mixed.beta).any()


def test_a_fixed_gate_is_the_same_everywhere_and_a_following_one_ends() -> None:
    logits, doubt = states(6)
    off = torch.zeros(6, dtype=torch.bool)
    for step in (0, 10**6):
        opening = FixedGate(GateOptions(beta=0.7)).open(logits, doubt, off, step)
        assert opening.beta.tolist() == pytest.approx([0.7] * 6) and opening.latched.all()
    follow, prior = FollowGate(GateOptions(follow_steps=10)), advice(6)
    mixed = follow.mix(logits, prior, follow.open(logits, doubt, off, 9).beta)
    assert torch.equal(mixed.logits, prior.logits)
    opening = follow.open(logits, doubt, off, 10)
    assert not opening.latched.any()
    assert torch.equal(follow.mix(logits, prior, opening.beta).logits, logits)


def test_a_gate_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_gate(GateOptions(name="none")) is None
    assert type(build_gate(GateOptions(name="lore"))) is UncertaintyGate
    monkeypatch.setitem(GATES, "mine", "tests.gate.test_gates:Mine")
    assert type(build_gate(GateOptions(name="mine"))).__name__ == "Mine"
    with pytest.raises(BadInput) as refused:
        build_gate(GateOptions(name="yours"))
    assert str(refused.value) == "gate.name: unknown gate 'yours'; use one of fixed, follow, hint, lore, mine"


class Mine(FixedGate):
    """A gate of somebody's own."""

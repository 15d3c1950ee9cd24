"""What advice changes in a gradient step, and whom its gradients never reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.dreamer.samples import ACTIONS, SPEC, TINY, make_batch, rng, shake

from lore.base.types import Batch
from lore.config.options import AgentOptions, GateOptions, KLOptions, PriorNetOptions, TeachOptions
from lore.dreamer.agent import DreamerV3Agent
from lore.gate import FixedGate, UncertaintyGate, centred, divergence, mix
from lore.llm.asking.controller import prior_logits
from lore.llm.prior_net import PriorNet
from lore.training.learning import GuidedLearning
from lore.training.teaching import build_teacher

FEATURES = TINY.deter + TINY.stoch * TINY.classes


def make(gate: FixedGate | UncertaintyGate | None, replay_value: str = "keep") -> DreamerV3Agent:
    """A float32 agent with all that an advised run can have; without a gate only DreamerV3."""
    members = 2 if gate else 0
    options = AgentOptions(critic_ensemble=members, disagreement_ensemble=members, warmup=0, lr=1e-3)
    net = PriorNet(PriorNetOptions(members=2), FEATURES, ACTIONS, TINY.units, 0)
    heads = {"prior_net": net} if gate else {}
    guide = None
    if gate:
        teach = TeachOptions(name="mix" if gate.options.mix_in_imagination else "none")
        guide = GuidedLearning(gate, net.logits, replay_value, build_teacher(teach, options.entropy, net))
    return DreamerV3Agent(SPEC, ACTIONS, options, TINY, 0, heads=heads, guide=guide)


def advised(batch: Batch, beta: float = 0.8, seed: int = 5) -> Batch:
    """Two rows in three under advice, one of these the distilled network's own."""
    g = rng(seed)
    shape = batch.reward.shape
    source = torch.randint(0, 3, shape, generator=g, dtype=torch.uint8)
    source[source == 2] = 3
    weights = torch.rand(*shape, ACTIONS, generator=g) ** 4
    return replace(
        batch,
        prior=prior_logits(weights / weights.sum(-1, keepdim=True)),
        mask=torch.ones(*shape, ACTIONS, dtype=torch.bool),
        confidence=torch.ones(shape),
        source=source,
        beta=beta * (source > 0).float(),
        temperature=(source > 0).float() * (0.5 + torch.rand(shape, generator=g)),
    )


def gradients(agent: DreamerV3Agent, name: str, batch: Batch) -> dict[str, bool]:
    """Which parts a loss has a gradient in."""
    shake([agent.optimizer.master], 1)
    agent.optimizer.publish()
    losses, _, _ = agent.losses(batch)
    agent.optimizer.grad.zero_()
    losses[name].mean().backward()
    parts = {
        "world": agent.world_model,
        "actor": agent.actor_critic.actor,
        "critic": agent.actor_critic.critic,
        "critics": agent.critic_ensemble,
        "models": agent.disagreement_ensemble,
        "prior_net": agent.heads["prior_net"],
    }
    found = {k: any(bool(p.grad.any()) for p in part.parameters()) for k, part in parts.items()}
    agent.optimizer.grad.zero_()
    return found


@pytest.mark.parametrize(
    ("loss", "reached"),
    [
        ("kl", "actor"),
        ("actor", "actor"),
        ("prior_net", "prior_net"),
        ("critic_ensemble", "critics"),
        ("disagreement_ensemble", "models"),
    ],
)
def test_each_loss_reaches_its_own_part_only(loss: str, reached: str) -> None:
    """With advice in imagination too, where actor and KL lean on PriorNet and the ensembles."""
    gate = UncertaintyGate(
        GateOptions(mix_in_imagination=True, warmup_steps=0, kl=KLOptions(delta_target=0.0))
    )
    gate.kl.multiplier = torch.tensor(1.0)
    found = gradients(make(gate), loss, advised(make_batch(4, 8)))
    assert [part for part, has in found.items() if has] == [reached]


@pytest.mark.parametrize("mode", ["none", "penalty", "project"])
def test_a_guide_without_advised_rows_leaves_every_weight_bit_for_bit(mode: str) -> None:
    gate = UncertaintyGate(GateOptions(kl=KLOptions(mode=mode)))
    gate.kl.multiplier = torch.tensor(2.0)
    alone, guided = make(None), make(gate, replay_value="weight")
    for seed in range(4):
        batch = make_batch(4, 8, seed)
        alone.update(batch)
        guided.update(batch)
    own = alone.optimizer.master
    assert torch.equal(guided.optimizer.master[: len(own)], own)
    assert gate.kl.multiplier.item() == 2.0


def test_the_penalty_is_the_mean_kl_of_rows_that_a_provider_advised() -> None:
    gate = FixedGate(GateOptions(kl=KLOptions(delta_target=0.01, kl_lr=0.5)))
    gate.kl.multiplier = torch.tensor(3.0)
    batch = advised(make_batch(4, 8))
    logits = torch.randn(4, 8, ACTIONS, generator=rng(2)).requires_grad_()
    guide = make(gate).guide
    losses, metrics = guide.replay_loss(logits, batch, None)
    kls = []
    for b in range(4):
        for t in range(8):
            if batch.source[b, t] in (1, 2):
                l_wm = logits.detach()[b, t].double()
                said = batch.prior[b, t].double()
                mixed = l_wm + 0.8 * (said - said.mean()) / batch.temperature[b, t].double()
                p, q = mixed.softmax(-1), l_wm.softmax(-1)
                kls.append((p * (p / q).log()).sum())
    mean = torch.stack(kls).mean().item()
    assert losses["kl"].item() == pytest.approx(3.0 * (mean - 0.01), rel=1e-5)
    assert metrics["uncertainty_gate/replay_kl"].item() == pytest.approx(mean, rel=1e-5)
    assert metrics["uncertainty_gate/lambda_kl"].item() == pytest.approx(3.0 + 0.5 * (mean - 0.01), rel=1e-5)
    losses["kl"].backward()
    rows = (batch.source == 1) | (batch.source == 2)
    assert not logits.grad[~rows].any() and logits.grad[rows].any(-1).all()


def test_imagined_actions_are_drawn_and_weighed_under_the_mixed_policy() -> None:
    gate = FixedGate(
        GateOptions(beta=5.0, beta_imagine_max=2.0, mix_in_imagination=True, kl=KLOptions(mode="none"))
    )
    agent = make(gate)
    feat = torch.randn(2000, FEATURES, generator=rng(0))
    from lore.dreamer.guide import ImaginedPolicy

    policy = ImaginedPolicy(agent.actor_critic, agent.guide, agent.doubt, rng(1))
    first, _ = policy(feat), policy(feat)
    bonus = policy.bonus()
    assert bonus.shape == (1, 2000, ACTIONS)
    logits = agent.actor_critic.logits(feat).detach()
    said = agent.heads["prior_net"].logits(feat)
    want, _ = gate.bonus(said, torch.ones_like(said, dtype=torch.bool), logits)
    torch.testing.assert_close(bonus[0], 2.0 * want)  # the cap, not gate.beta
    mixed = (logits + bonus[0]).softmax(-1)
    counts = torch.bincount(first, minlength=ACTIONS) / 2000
    torch.testing.assert_close(counts, mixed.mean(0), atol=0.05, rtol=0)
    assert (mixed.mean(0) - logits.softmax(-1).mean(0)).abs().max() > 0.05


def test_the_actor_learns_through_its_own_logits_under_the_mixed_policy() -> None:
    agent = make(None)
    actor_critic, H, N = agent.actor_critic, 3, 10
    shake([agent.optimizer.master], 1)
    agent.optimizer.publish()
    from lore.dreamer.rssm import Imagined

    feat = torch.randn(H + 1, N, FEATURES, generator=rng(0))
    action = torch.randint(ACTIONS, (H + 1, N), generator=rng(1))
    reward, cont = torch.randn(H + 1, N, generator=rng(2)), torch.full((H + 1, N), 0.9)
    bonus = torch.randn(H, N, ACTIONS, generator=rng(3))
    losses, returns, _, kl, _ = actor_critic.loss(Imagined(feat, action), reward, cont, bonus)
    logits = actor_critic.logits(feat[:-1])
    log_mix = (logits + bonus).log_softmax(-1)
    with torch.no_grad():
        advantage = (returns - actor_critic.value(feat[:-1]).mean) / actor_critic.returns.scale
        weight = cont.cumprod(0)[:-1]
    entropy = -(log_mix.exp() * log_mix).sum(-1)
    chosen = log_mix.gather(-1, action[:-1].unsqueeze(-1)).squeeze(-1)
    want = -(weight * (chosen * advantage + agent.options.entropy * entropy)).mean(0)
    torch.testing.assert_close(losses["actor"], want)
    torch.testing.assert_close(kl, divergence(logits + bonus, logits))
    for got, other in zip(
        torch.autograd.grad(losses["actor"].sum(), list(actor_critic.actor.parameters())),
        torch.autograd.grad(want.sum(), list(actor_critic.actor.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(got, other, atol=1e-5, rtol=1e-4)


def test_advised_returns_are_trusted_as_asked() -> None:
    batch = advised(make_batch(4, 8))
    logits = torch.randn(4, 8, ACTIONS, generator=rng(2))
    acted = batch.beta > 0
    gate = FixedGate(GateOptions())
    assert make(gate, "keep").guide.value_weight(logits, batch) is None
    assert torch.equal(make(gate, "drop").guide.value_weight(logits, batch), (~acted).float())
    got = make(gate, "weight").guide.value_weight(logits, batch)
    said = centred(batch.prior, batch.mask) / batch.temperature.clamp(min=1e-9).unsqueeze(-1)
    ratio = logits.softmax(-1) / mix(logits, batch.beta, torch.where(acted.unsqueeze(-1), said, 0.0)).softmax(
        -1
    )
    taken = ratio.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1).clamp(max=1.0)
    torch.testing.assert_close(got, torch.where(acted, taken, 1.0))
    assert (got[acted] < 1).any() and (got[~acted] == 1).all()


def test_untrusted_rows_teach_the_critic_nothing_from_replay() -> None:
    agent = make(None)
    batch = make_batch(3, 6)
    feat = torch.randn(3, 6, FEATURES, generator=rng(0))
    trust = torch.zeros(3, 6)
    trust[1] = 0.5
    whole, _ = agent.actor_critic.replay_loss(feat, batch, torch.zeros(3, 6))
    part, _ = agent.actor_critic.replay_loss(feat, batch, torch.zeros(3, 6), trust)
    torch.testing.assert_close(part, whole * trust[:, :-1])


def test_an_actor_that_is_warming_up_stays_as_it_is_while_the_rest_learns() -> None:
    agent = make(None)
    agent.actor_learns = False
    before = {k: v.clone() for k, v in agent.actor_critic.state_dict().items()}
    agent.update(make_batch(4, 8))
    agent.update(make_batch(4, 8, 1))
    after = agent.actor_critic.state_dict()
    same = {k.split(".")[0] for k, v in before.items() if torch.equal(v, after[k])}
    changed = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, after[k])}
    assert "actor" in same and "actor" not in changed and "critic" in changed


def test_the_world_models_report_is_what_it_says() -> None:
    agent = make(None)
    _, _, metrics = agent.losses(make_batch(4, 8), report=True)
    mse, psnr = metrics["world/reconstruction_mse"], metrics["world/psnr"]
    assert psnr.item() == pytest.approx(-10 * torch.log10(mse).item())
    assert metrics["world/reward_mae"].item() > 0
    assert not any(name.startswith("world/") for name in agent.losses(make_batch(4, 8))[2])


def test_the_gate_of_a_live_agent_is_the_one_that_was_handed_in() -> None:
    gate = UncertaintyGate(GateOptions())
    agent = make(gate)
    agent.uncertainty_gate.weights = {"entropy": 1.0, "value_var": 0.0, "disagreement": 0.0}
    agent.uncertainty_gate.delta_target, agent.uncertainty_gate.kl_lr = 0.5, 0.25
    assert agent.uncertainty_gate is gate and agent.guide is not None and agent.guide.gate is gate
    assert (gate.kl.delta_target, gate.kl.kl_lr) == (0.5, 0.25)
    logits = torch.zeros(2, ACTIONS)
    doubt = {"value_var": torch.ones(2), "disagreement": torch.ones(2)}
    assert gate.terms(logits, doubt)["u"].tolist() == pytest.approx([1.0, 1.0])
    assert make(None).uncertainty_gate is None

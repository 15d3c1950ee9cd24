"""How advice enters learning: each teacher against its formula, and what none of them may change."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.dreamer.samples import ACTIONS, TINY, make_batch, rng, shake
from tests.training.test_learning import FEATURES, advised
from torch import Tensor

from lore.base.types import Batch
from lore.config.compose import compose
from lore.config.options import AgentOptions, GateOptions, PriorNetOptions, TeachOptions
from lore.dreamer.agent import DreamerV3Agent
from lore.dreamer.guide import Moment
from lore.dreamer.rssm import Imagined
from lore.gate import UncertaintyGate
from lore.llm.prior_net import PriorNet
from lore.training.build import build_advised_gate, build_agent
from lore.training.learning import GuidedLearning
from lore.training.teaching import TEACHERS, build_teacher
from lore.training.teaching.informed import informed_bonus

from tests.dreamer.samples import SPEC  # isort: skip

ETA = 3e-4


def make(teach: TeachOptions | None = None, shaken: bool = True, **options: float) -> DreamerV3Agent:
    """An agent with a PriorNet; None: without guide."""
    agent_options = AgentOptions(warmup=0, lr=1e-3, **options)
    net = PriorNet(PriorNetOptions(members=3), FEATURES, ACTIONS, TINY.units, 0)
    guide = None
    if teach is not None:
        gate = UncertaintyGate(GateOptions())
        gate.kl.mode = "none"
        guide = GuidedLearning(gate, net.logits, "keep", build_teacher(teach, agent_options.entropy, net))
    agent = DreamerV3Agent(SPEC, ACTIONS, agent_options, TINY, 0, heads={"prior_net": net}, guide=guide)
    if shaken:
        shake([agent.optimizer.master], 1)
        agent.optimizer.publish()
    return agent


def losses_and_gradient(agent: DreamerV3Agent, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    losses, _, _ = agent.losses(batch)
    agent.optimizer.grad.zero_()
    sum(value.mean() for value in losses.values()).backward()
    return {name: value.detach() for name, value in losses.items()}, agent.optimizer.grad.clone()


def test_without_weight_informed_is_the_entropy_bonus_with_its_gradient() -> None:
    logits = torch.randn(ACTIONS, 4, 30, generator=rng(0), dtype=torch.float64).requires_grad_()
    log_probs = logits.log_softmax(0)
    said = torch.rand(ACTIONS, 4, 30, generator=rng(1), dtype=torch.float64).softmax(0)
    zero, eta = torch.zeros(4, 30), torch.full((4, 30), ETA)
    bonus, _ = informed_bonus(log_probs, said, zero, eta)
    entropy = -ETA * (log_probs.exp() * log_probs).sum(0)
    torch.testing.assert_close(bonus, entropy - ETA * math.log(ACTIONS), atol=1e-9, rtol=0)
    got, want = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (bonus, entropy))
    torch.testing.assert_close(got, want, atol=1e-9, rtol=0)


def test_an_agent_with_informed_at_no_weight_learns_as_one_without() -> None:
    """Through a whole gradient step in float32: every gradient to 1e-6."""
    batch = make_batch(4, 8)
    alone, taught = make(), make(TeachOptions(name="informed", w_max=0.0, eta_q=ETA))
    (_, want), (_, got) = losses_and_gradient(alone, batch), losses_and_gradient(taught, batch)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["none", *sorted(set(TEACHERS) - {"mix"})])
def test_without_trust_every_weight_stays_as_without_a_teacher_bit_for_bit(name: str) -> None:
    alone, taught = make(), make(TeachOptions(name=name))
    assert taught.guide is not None
    taught.guide.now = Moment(1000, trust=0.0)
    for seed in range(3):
        batch = advised(replace(make_batch(4, 8, seed), won=torch.ones(4, 8, dtype=torch.bool)))
        alone.update(batch)
        taught.update(batch)
    assert torch.equal(taught.optimizer.master, alone.optimizer.master)


def test_informed_is_written_as_its_formula_says() -> None:
    options = TeachOptions(name="informed", w_max=0.8, mi_max=0.2, eta_q=0.05)
    agent = make(options, entropy=0.01)
    H, N = 3, 40
    feat = 3 * torch.randn(H, N, FEATURES, generator=rng(3))
    log_probs = torch.randn(ACTIONS, H, N, generator=rng(4)).log_softmax(0)
    assert agent.guide is not None
    agent.guide.now = Moment(0, trust=0.5)
    bonus, metrics = agent.guide.regularise(feat, log_probs, agent.lookahead)
    net = agent.heads["prior_net"]
    weights = []
    for h in range(H):
        for n in range(N):
            members = net.net(feat[h, n : n + 1]).float().softmax(-1)[:, 0].double()  # (K, A)
            q = members.mean(0)
            information = (members * (members / q).log()).sum(-1).mean() / math.log(ACTIONS)
            w = 0.8 * max(0.0, 1.0 - information.item() / 0.2) * 0.5
            eta = 0.01 + (0.05 - 0.01) * w / 0.8
            pi, q_w = log_probs[:, h, n].double().exp(), (1 - w) / ACTIONS + w * q
            assert bonus[h, n].item() == pytest.approx(-eta * (pi * (pi / q_w).log()).sum().item(), abs=2e-6)
            weights.append(w)
    assert metrics["teach/weight"].item() == pytest.approx(sum(weights) / len(weights), abs=1e-5)
    assert min(weights) == 0.0 and max(weights) > 0.1  # some states where the members differ, some where not


def test_the_fixed_point_is_the_informed_policy_tilted_by_the_advantage() -> None:
    said = torch.tensor([0.9, 0.05, 0.02, 0.02, 0.01], dtype=torch.float64)
    advantage = torch.tensor([0.0, 0.03, -0.02, 0.05, 0.01], dtype=torch.float64)
    w, eta = torch.tensor(0.9).double(), torch.tensor(0.02).double()
    logits = torch.zeros(ACTIONS, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_probs = logits.log_softmax(0)
        bonus, _ = informed_bonus(log_probs, said.unsqueeze(1), w.view(1), eta.view(1))
        value = -((log_probs.exp().squeeze(1) * advantage).sum() + bonus.sum())
        value.backward()
        return value

    optimizer.step(loss)
    want = ((1 - w) / ACTIONS + w * said) * (advantage / eta).exp()
    torch.testing.assert_close(logits.softmax(0).squeeze(1).detach(), want / want.sum(), atol=1e-6, rtol=0)
    given_up = advantage.max() - (logits.softmax(0).squeeze(1).detach() * advantage).sum()
    assert given_up <= eta * math.log(ACTIONS / (1 - w))  # the bound of docs/teaching.md


def test_informed_turns_the_actor_to_advice() -> None:
    """Where nothing is to be gained (all values are 0), gradient steps bring pi to q_w."""
    agent = make(TeachOptions(name="informed", eta_q=1.0, w_max=0.95), shaken=False)
    assert agent.guide is not None
    feat = torch.randn(4, 20, FEATURES, generator=rng(5))
    imagined = Imagined(feat, torch.zeros(4, 20, dtype=torch.long))
    cont = torch.ones(4, 20)

    def divergence() -> float:
        log_probs = agent.actor_critic.logits(feat[:-1]).log_softmax(-1).movedim(-1, 0)
        _, metrics = agent.guide.regularise(feat[:-1], log_probs, agent.lookahead)
        return metrics["teach/kl"].item()

    before = divergence()
    guide = agent.guide
    optimizer = torch.optim.Adam(agent.actor_critic.actor.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        losses, *_ = agent.actor_critic.loss(
            imagined,
            torch.zeros(4, 20),
            cont,
            None,
            partial(guide.regularise, lookahead=agent.lookahead),
        )
        losses["actor"].mean().backward()
        optimizer.step()
    assert divergence() < 0.2 * before


def test_kickstart_pulls_towards_the_network_and_fades() -> None:
    options = TeachOptions(name="kickstart", weight=0.4, anneal_steps=1000)
    agent = make(options)
    assert agent.guide is not None
    feat = torch.randn(3, 20, FEATURES, generator=rng(3))
    log_probs = torch.randn(ACTIONS, 3, 20, generator=rng(4)).log_softmax(0).requires_grad_()
    said, _ = agent.heads["prior_net"].distribution(feat)
    kl = (said * (said.log() - log_probs.detach())).sum(0)
    entropy = -(log_probs.exp() * log_probs).sum(0).detach()
    for step, trust, strength in [(0, 1.0, 0.4), (250, 1.0, 0.3), (250, 0.5, 0.15)]:
        agent.guide.now = Moment(step, trust)
        bonus, metrics = agent.guide.regularise(feat, log_probs, agent.lookahead)
        torch.testing.assert_close(bonus.detach(), ETA * entropy - strength * kl)
        assert metrics["teach/valid_share"] == 1.0
    agent.guide.now = Moment(1000)
    assert agent.guide.regularise(feat, log_probs, agent.lookahead) is None


def test_filtered_kickstart_leaves_out_states_where_the_model_speaks_against_advice() -> None:
    agent = make(TeachOptions(name="kickstart", weight=1.0, filtered=True, margin=0.1))
    assert agent.guide is not None
    feat = torch.randn(2, 10, FEATURES, generator=rng(3))
    log_probs = torch.randn(ACTIONS, 2, 10, generator=rng(4)).log_softmax(0)
    asked = []

    def lookahead(flat: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        asked.append((flat, action))
        return torch.arange(20.0), torch.full((20,), 10.0)

    bonus, metrics = agent.guide.regularise(feat, log_probs, lookahead)
    said, _ = agent.heads["prior_net"].distribution(feat)
    assert torch.equal(asked[0][1], said.argmax(0).flatten()) and torch.equal(asked[0][0], feat.flatten(0, 1))
    valid = (torch.arange(20.0) >= 9.9).view(2, 10)
    entropy = -(log_probs.exp() * log_probs).sum(0)
    assert torch.equal(valid, (bonus - ETA * entropy).abs() > 1e-6)
    assert metrics["teach/valid_share"].item() == pytest.approx(0.5)


def test_lookahead_is_one_imagined_step() -> None:
    agent = make()
    feat = torch.randn(400, FEATURES, generator=rng(0))
    action = torch.randint(ACTIONS, (400,), generator=rng(1))
    promised, value = agent.lookahead(feat, action)
    rollout = agent.world_model.rssm.imagine(feat, lambda _: action, 1, rng(9))
    reward, cont = agent.world_model.predict(rollout.feat[1])
    want = reward + cont * agent.value(rollout.feat[1])
    torch.testing.assert_close(value, agent.value(feat))
    assert promised.mean().item() == pytest.approx(want.mean().item(), abs=0.3 * want.std().item())
    assert torch.corrcoef(torch.stack([promised, want]))[0, 1] > 0.3  # other latents, the same states


def test_clone_imitates_advised_steps_of_won_episodes_and_no_other() -> None:
    agent = make(TeachOptions(name="clone", weight=0.5))
    assert agent.guide is not None
    batch = advised(make_batch(4, 8))
    won = torch.rand(4, 8, generator=rng(8)) < 0.5
    batch = replace(batch, won=won, confidence=torch.rand(4, 8, generator=rng(9)))
    logits = torch.randn(4, 8, ACTIONS, generator=rng(2)).requires_grad_()
    agent.guide.now = Moment(0, trust=0.8, unaided=0.25)
    losses, metrics = agent.guide.replay_loss(logits, batch, None)
    rows = (batch.beta > 0) & won
    chosen = logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    want = torch.where(rows, -0.5 * 0.8 * 0.75 * batch.confidence * chosen, 0.0)
    torch.testing.assert_close(losses["clone"], want)
    assert 0 < metrics["teach/cloned_share"].item() == rows.float().mean().item() < 1
    losses["clone"].sum().backward()
    assert not logits.grad[~rows].any() and logits.grad[rows].any(-1).all()


def test_mix_is_the_other_name_of_gate_mix_in_imagination() -> None:
    for overrides in (["teach=mix"], ["gate.mix_in_imagination=true"]):
        cfg = compose([*overrides, "prior_net.enabled=true", "+preset=debug"])
        agent = build_agent(cfg, SPEC, ACTIONS, build_advised_gate(cfg))
        assert agent.guide.mixes_imagination  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("overrides", "critics", "models"),
    [
        (["+ablation=A"], False, False),
        (["+ablation=B"], False, False),
        (["+ablation=D"], True, True),
        (["+ablation=G"], False, False),  # its gate reads the policy's entropy alone
        (["+ablation=G", "gate.veto=true"], True, False),
        (["+ablation=D", "llm=none"], False, False),
    ],
)
def test_no_ensemble_is_built_that_nothing_reads(overrides: list[str], critics: bool, models: bool) -> None:
    cfg = compose([*overrides, "+preset=debug"])
    agent = build_agent(cfg, SPEC, ACTIONS, build_advised_gate(cfg))
    assert isinstance(agent, DreamerV3Agent)
    built = (agent.critic_ensemble is not None, agent.disagreement_ensemble is not None)
    assert built == (critics, models)

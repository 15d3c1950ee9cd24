"""One step of acting: infer, advise, gate, mix, sample; and what advice leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lore.base.errors import BadInput
from lore.base.rng import generator
from lore.base.types import Belief, Carry, Latent, Prior
from lore.config.options import EnvOptions, ExploreOptions, GateOptions
from lore.envs import make_env, make_vec
from lore.envs.actions import valid_actions
from lore.gate import FixedGate, Opening, UncertaintyGate
from lore.gate.gates import HintGate
from lore.llm.asking.controller import prior_logits
from lore.training.acting import Decision, Guidance, GuidedPolicy
from lore.training.advice_meter import AdviceMeter
from lore.training.exploration_noise import ActionNoise
from lore.training.random_agent import RandomAgent

A = 7


class Opinionated(RandomAgent):
    """Logits and values that change from step to step; doubt on demand."""

    def __init__(self) -> None:
        super().__init__(A)
        self.steps = 0

    def infer(self, carry: Carry, obs: Any, is_first: Any, rng: torch.Generator) -> tuple[Latent, Belief]:
        self.steps += 1
        logits = torch.sin(torch.arange(A) * self.steps * 0.7).repeat(len(is_first), 1)
        return carry.latent, Belief(logits, torch.full((len(is_first), 1), float(self.steps)))

    def value(self, feat: torch.Tensor) -> torch.Tensor:
        return feat[:, 0] / 10

    def doubt(self, feat: torch.Tensor, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"value_var": feat[:, 0], "disagreement": feat[:, 0]}


class Saying:
    """Gives one distribution to all, or nothing; notes what it was told."""

    def __init__(self, probs: Sequence[float] | None) -> None:
        self.probs, self.told = probs, []

    def advise(
        self, states, env_step, td_error=None, latched=None, learned=None, over=None, may_ask=None
    ) -> Prior:
        told = {"td_error": td_error, "latched": latched, "learned": learned, "over": over}
        self.told.append({**told, "may_ask": may_ask})
        n = len(states)
        probs = torch.full((A,), 1 / A) if self.probs is None else torch.tensor(self.probs)
        source = torch.full((n,), 0 if self.probs is None else 1, dtype=torch.uint8)
        allowed = torch.ones(n, A, dtype=torch.bool)
        return Prior(prior_logits(probs).repeat(n, 1), allowed, torch.ones(n), source)


class Judged(Opinionated):
    """Five critics who speak, in step `steps` modulo 3, against action 2, for it, or not at all."""

    imagined = 0

    def outcomes(self, feat: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        self.imagined += 1
        said = torch.zeros(5, len(feat), A)
        said[:, :, 2] = {0: -1.0, 1: 1.0, 2: 0.0}[self.steps % 3]
        return said


UNIFORM = [1 / A] * A
DECIDED = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def play(
    advice: Guidance | None,
    steps: int = 60,
    n: int = 2,
    acts: Sequence[bool] | None = None,
    agent: Opinionated | None = None,
) -> tuple[list[Decision], torch.Generator]:
    """Decisions of `n` DoorKey environments side by side; acts: where advice may act."""
    envs = make_vec(EnvOptions(max_steps=9), "symbolic", n, 0, split="train", remember=True)
    rng = generator(0, "act")
    policy = GuidedPolicy(agent or Opinionated(), envs.obs_spec, rng, advice=advice)
    carry, obs, decisions = policy.agent.initial(n), envs.reset(), []
    for step in range(steps):
        carry, decision = policy(carry, obs, envs.states(), step, acts)
        decisions.append(decision)
        obs = envs.step(decision.action.numpy())
    return decisions, rng


@pytest.mark.parametrize("probs", [None, UNIFORM])
@pytest.mark.parametrize("mode", ["none", "penalty", "project"])
def test_advice_that_says_nothing_leaves_actions_logits_and_random_stream(probs: Any, mode: str) -> None:
    options = GateOptions(beta=3.0, beta_max=3.0)
    options.kl.mode = mode
    alone, rng = play(None)
    for gate in (FixedGate(options), UncertaintyGate(options)):
        dropout = generator(0, "gate_dropout")
        advised, other = play(Guidance(gate, Saying(probs), rng=dropout))
        assert all(
            torch.equal(a.action, b.action) and torch.equal(a.logits, b.logits)
            for a, b in zip(alone, advised, strict=True)
        )
        assert torch.equal(rng.get_state(), other.get_state())


def test_advice_that_says_something_is_followed_the_more_the_larger_beta_is() -> None:
    shares = []
    for beta in (0.0, 1.0, 5.0):
        decisions, _ = play(Guidance(FixedGate(GateOptions(beta=beta)), Saying(DECIDED)))
        shares.append(sum((d.action == 2).float().mean().item() for d in decisions) / len(decisions))
    assert shares[0] < 0.4 < shares[1] < shares[2] and shares[2] > 0.95


def test_dropout_drops_its_share_of_training_steps_and_none_of_an_evaluation() -> None:
    gate = UncertaintyGate(GateOptions(dropout=0.2, warmup_steps=0))
    for rng, share in ((generator(0, "gate_dropout"), 0.2), (None, 0.0)):
        decisions, _ = play(Guidance(gate, Saying(DECIDED), rng=rng), steps=400, n=3)
        dropped = torch.stack([d.mixed.beta == 0 for d in decisions]).float().mean().item()
        assert dropped == pytest.approx(share, abs=4 * (0.2 * 0.8 / 1200) ** 0.5)


def test_td_errors_are_those_of_the_step_that_led_here() -> None:
    """r + discount * V(s') - V(s), V = 0 at a terminal state; nothing where an episode begins."""
    env = make_env(EnvOptions(), "symbolic", remember=True)
    first, _ = env.reset(seed=0)
    said = Saying(None)
    policy = GuidedPolicy(
        Opinionated(),
        env.obs_spec,
        generator(0, "act"),
        advice=Guidance(FixedGate(GateOptions()), said, discount=0.5),
    )
    carry = policy.agent.initial(1)
    rows = [(0.0, True, False), (0.25, False, False), (1.0, False, True), (0.0, True, False)]
    for reward, is_first, is_terminal in rows:
        obs = {key: value[None].copy() for key, value in first.items()}
        obs |= {"is_first": np.array([is_first]), "is_terminal": np.array([is_terminal])}
        obs |= {"reward": np.array([reward], np.float32), "is_last": np.array([is_terminal])}
        carry, _ = policy(carry, obs, [env.state], 0)
    errors = [told["td_error"] for told in said.told]
    assert errors[0] is None and np.isnan(errors[3][0])
    assert errors[1] == pytest.approx([0.25 + 0.5 * 0.2 - 0.1])
    assert errors[2] == pytest.approx([1.0 - 0.2])
    assert [told["over"] for told in said.told] == [[False], [False], [True], [False]]


def test_the_latch_is_carried_from_step_to_step_for_each_environment() -> None:
    class Script(UncertaintyGate):
        values = iter([[0.7, 0.5], [0.5, 0.7], [0.3, 0.5], [0.5, 0.39]])

        def terms(self, logits: torch.Tensor, doubt: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"u": torch.tensor(next(self.values))}

    said = Saying(None)
    play(Guidance(Script(GateOptions()), said), steps=4)
    latched = [told["latched"] for told in said.told]
    assert latched == [[True, False], [True, True], [False, True], [False, False]]


def test_the_distilled_adviser_is_offered_where_it_is_sure() -> None:
    class Half:
        def confident(self, feat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor([DECIDED, UNIFORM]), torch.tensor([True, False])

    said = Saying(None)
    play(Guidance(FixedGate(GateOptions()), said, distilled=Half()), steps=1)
    assert said.told[0]["learned"] == [DECIDED, None]


def test_noise_is_the_exact_mixture_and_off_it_is_nothing() -> None:
    logits = torch.randn(4, A, generator=generator(0, "x"))
    off = ActionNoise(ExploreOptions(), 100, ["left"] * A)
    assert off(logits, (), 50) is logits
    options = ExploreOptions(epsilon_start=0.4, epsilon_end=0.2, temperature_start=2.0, temperature_end=1.0)
    for step, epsilon, temperature in ((0, 0.4, 2.0), (50, 0.3, 1.5), (100, 0.2, 1.0), (500, 0.2, 1.0)):
        got = ActionNoise(options, 100, ["left"] * A)(logits, (), step).exp()
        torch.testing.assert_close(got, (1 - epsilon) * (logits / temperature).softmax(-1) + epsilon / A)
    env = make_env(EnvOptions(), "symbolic", remember=True)
    env.reset(seed=0)
    options = ExploreOptions(epsilon_start=1.0, epsilon_end=1.0, valid_noise=True, anneal_steps=10)
    got = ActionNoise(options, 100, env.action_names, valid_actions)(logits[:1], [env.state], 0).exp()[0]
    names = dict(zip(env.action_names, got.tolist(), strict=True))
    assert names["done"] == names["drop"] == 0.0 and names["left"] == names["right"] > 0.2


def test_where_advice_may_not_act_it_is_heard_and_moves_nothing() -> None:
    said = Saying(DECIDED)
    decisions, _ = play(Guidance(FixedGate(GateOptions(beta=9.0)), said), acts=[True, False])
    for decision in decisions:
        assert decision.mixed is not None and decision.prior is not None
        assert decision.prior.source.tolist() == [1, 1] and decision.mixed.beta.tolist() == [9.0, 0.0]
        assert torch.equal(decision.logits[1], decision.belief.logits[1])
        assert not torch.equal(decision.logits[0], decision.belief.logits[0])
    assert all(told["may_ask"] == [True, False] for told in said.told)
    meter = AdviceMeter(FixedGate(GateOptions()))
    for decision in decisions:
        meter.add(decision, [False, False])
    row = meter.influence()
    assert row["llm/prior_share"] == row["llm/source/plan"] == 0.5 and meter.taught == 2 * len(decisions)


def test_advice_that_may_act_nowhere_leaves_actions_and_random_stream() -> None:
    alone, rng = play(None)
    gate = UncertaintyGate(GateOptions(veto=True, beta_max=9.0, warmup_steps=0))
    advised, other = play(Guidance(gate, Saying(DECIDED)), acts=[False, False])
    assert all(torch.equal(a.action, b.action) for a, b in zip(alone, advised, strict=True))
    assert torch.equal(rng.get_state(), other.get_state())


def test_a_vetoed_step_acts_as_the_agent_alone_and_is_counted() -> None:
    gate, agent = FixedGate(GateOptions(beta=9.0, veto=True)), Judged()
    decisions, _ = play(Guidance(gate, Saying(DECIDED)), acts=[True, False], agent=agent)
    meter = AdviceMeter(gate)
    for step, decision in enumerate(decisions, start=1):
        stopped = step % 3 == 0
        assert decision.mixed is not None and decision.vetoed is not None
        assert decision.vetoed.tolist() == [stopped, False]  # no advice could act in the second
        assert decision.mixed.beta.tolist() == [0.0 if stopped else 9.0, 0.0]
        assert torch.equal(decision.logits[0], decision.belief.logits[0]) == stopped
        meter.add(decision, [False, False])
    assert meter.vetoes == 20 and meter.influence()["llm/vetoed_share"] == 20 / 120
    assert agent.imagined == 60
    stored, other = meter.state_dict(), AdviceMeter(gate)
    other.load_state_dict(stored)
    assert other.influence() == meter.influence()


def test_a_hint_is_put_into_the_observation_before_the_agent_looks() -> None:
    seen: list[torch.Tensor] = []

    class Looking(Opinionated):
        def infer(self, carry: Carry, obs: Any, is_first: Any, rng: torch.Generator) -> Any:
            seen.append(obs["hint"].clone())
            return super().infer(carry, obs, is_first, rng)

    envs = make_vec(EnvOptions(max_steps=9, hint=True), "symbolic", 2, 0, split="train", remember=True)
    agent, said = Looking(), Saying(DECIDED)
    policy = GuidedPolicy(
        agent, envs.obs_spec, generator(0, "act"), advice=Guidance(HintGate(GateOptions()), said)
    )
    obs = envs.reset()
    _, decision = policy(agent.initial(2), obs, envs.states(), 0, [True, False])
    want = prior_logits(torch.tensor(DECIDED)).softmax(-1)
    torch.testing.assert_close(seen[0], torch.stack([want, torch.zeros(A)]))
    assert len(said.told) == 1 and decision.prior is not None and decision.mixed is not None
    assert torch.equal(decision.logits, decision.belief.logits) and not decision.mixed.beta.any()
    assert (obs["hint"] == seen[0].numpy()).all()  # the replay keeps what was seen
    assert not envs.observation["hint"].any()  # the environment's own row, which resume repeats, does not


def test_the_meter_counts_what_was_decided_and_goes_on_after_a_resume() -> None:
    gate = UncertaintyGate(GateOptions(warmup_steps=0, beta_max=2.0))
    decisions, _ = play(Guidance(gate, Saying(DECIDED), rng=generator(0, "gate_dropout")))
    over = [[i % 10 == 9, False] for i in range(len(decisions))]
    whole, half = AdviceMeter(gate), AdviceMeter(gate)
    for i, (decision, ended) in enumerate(zip(decisions, over, strict=True)):
        whole.add(decision, ended)
        if i == 30:
            stored, half = half.state_dict(), AdviceMeter(gate)
            half.load_state_dict(stored)
        half.add(decision, ended)
    live = [(d, i) for d, ended in zip(decisions, over, strict=True) for i in (0, 1) if not ended[i]]
    betas = [d.opening.beta[i].item() for d, i in live]
    kl = []
    for d, i in live:
        p, q = d.logits[i].double().softmax(-1), d.belief.logits[i].double().softmax(-1)
        kl.append((p * (p / q).log()).sum().item())
    row = whole.result()
    assert row == half.result()
    assert row["uncertainty_gate/avg_beta"] == pytest.approx(np.mean(betas))
    assert row["uncertainty_gate/beta_std"] == pytest.approx(np.std(betas))
    assert row["uncertainty_gate/beta_saturation"] == pytest.approx(np.mean(betas) / 2)
    assert row["uncertainty_gate/avg_kl"] == pytest.approx(np.mean(kl), abs=1e-6)
    assert row["uncertainty_gate/kl_above_target_share"] == pytest.approx(np.mean([k > 0.1 for k in kl]))
    flips = [(d.logits[i].argmax() != d.belief.logits[i].argmax()).item() for d, i in live]
    assert row["llm/argmax_flip_share"] == pytest.approx(np.mean(flips))
    assert row["llm/influence_kl"] == pytest.approx(np.mean(kl), abs=1e-6)
    assert row["llm/prior_share"] == row["llm/source/plan"] == 1.0
    assert "uncertainty_gate/avg_beta" not in whole.result()  # the window began afresh
    assert whole.influence()["llm/prior_share"] == 1.0  # the run did not


class Returning(FixedGate):
    """A gate of a user's own, with a bug."""

    def __init__(self, returned: Any) -> None:
        super().__init__(GateOptions(name="mine"))
        self.returned = returned

    def open(self, logits: Any, doubt: Any, latched: Any, env_step: int) -> Any:
        return self.returned


OPEN, BETA = torch.ones(2, dtype=torch.bool), torch.full((2,), 0.3)


@pytest.mark.parametrize(
    ("returned", "right"),
    [
        (Opening(torch.tensor([0.3, float("nan")]), OPEN, {}), "beta finite and at least 0"),
        (Opening(torch.tensor([0.3, float("inf")]), OPEN, {}), "beta finite and at least 0"),
        (Opening(torch.tensor([0.3, -0.1]), OPEN, {}), "beta finite and at least 0"),
        (Opening(torch.tensor(0.3), OPEN, {}), "beta as a float tensor of shape (2,)"),
        (Opening(torch.ones(2, dtype=torch.int64), OPEN, {}), "beta as a float tensor of shape (2,)"),
        (Opening(0.3, OPEN, {}), "beta as a float tensor of shape (2,)"),
        (Opening(BETA, True, {}), "latched as a bool tensor of shape (2,)"),
        (Opening(BETA, BETA, {}), "latched as a bool tensor of shape (2,)"),
        (Opening(BETA, OPEN[:1], {}), "latched as a bool tensor of shape (2,)"),
        (Opening(BETA, OPEN, {"u": 0.5}), "the term u as a tensor of shape (2,)"),
        (BETA, "an Opening"),
    ],
)
def test_a_gate_that_returns_nonsense_is_refused_by_name(returned: Any, right: str) -> None:
    with pytest.raises(BadInput) as refused:
        play(Guidance(Returning(returned), Saying(DECIDED)), steps=1)
    assert str(refused.value).startswith(
        f"gate.name: `open` of gate 'mine' must return {right}; it returned "
    )

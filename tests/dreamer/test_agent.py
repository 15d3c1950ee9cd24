"""The whole agent: routes of gradients, traces, precision, state, and whether it learns."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from tests.dreamer.samples import ACTIONS, SPEC, TINY, make_agent, make_batch, rng, shaken_agent

from lore.base.types import Batch, Carry, ObsSpec
from lore.config.options import AgentOptions
from lore.dreamer.agent import DreamerV3Agent

BOTH = {"critic_ensemble": 3, "disagreement_ensemble": 2}


def trace(agent, updates=5, start=0):
    """Metrics of some updates, each on its own batch, and the latents of the last."""
    out = []
    for i in range(updates):
        metrics, latent = agent.update(make_batch(seed=start + i))
        out.append({k: v.item() for k, v in metrics.items()})
    return out, latent


def groups(agent):
    w, a = agent.world_model, agent.actor_critic
    rssm = w.rssm
    found = {
        "encoder": w.encoder,
        "posterior": torch.nn.ModuleList([rssm.posterior_hidden, rssm.posterior_logits]),
        "core": torch.nn.ModuleList([rssm.in_deter, rssm.in_stoch, rssm.in_action, rssm.core_hidden,
                                     rssm.core_norm, rssm.core_gates]),
        "prior": rssm.dynamics_predictor,
        "decoder": w.decoder,
        "reward": w.reward,
        "cont": w.cont,
        "actor": a.actor,
        "critic": a.critic,
        "critic_ensemble": agent.critic_ensemble,
        "disagreement_ensemble": agent.disagreement_ensemble,
    }  # fmt: skip
    return {k: list(m.parameters()) for k, m in found.items() if m is not None}


FEATURES = {"encoder", "posterior", "core"}
ROUTES = {
    "obs": FEATURES | {"decoder"},
    "reward": FEATURES | {"reward"},
    "cont": FEATURES | {"cont"},
    "dyn": FEATURES | {"prior"},
    "rep": FEATURES,
    "actor": {"actor"},
    "critic": {"critic"},
    "replay_critic": FEATURES | {"critic"},
    "critic_ensemble": {"critic_ensemble"},
    "disagreement_ensemble": {"disagreement_ensemble"},
}


@pytest.mark.parametrize("name", ROUTES)
def test_each_loss_reaches_exactly_its_networks(name):
    agent = shaken_agent(free_nats=0.0, **BOTH)
    losses, _, _ = agent.losses(make_batch(4, 8))
    assert losses.keys() == ROUTES.keys()
    reached = set()
    for group, params in groups(agent).items():
        grads = torch.autograd.grad(losses[name].sum(), params, allow_unused=True, retain_graph=True)
        if any(g is not None and g.any() for g in grads):
            reached.add(group)
            assert all(g is not None and g.any() for g in grads), f"{name} misses a weight of {group}"
    assert reached == ROUTES[name]


def test_every_weight_belongs_to_a_network_of_the_table_above():
    agent = make_agent(**BOTH)
    known = sum(p.numel() for params in groups(agent).values() for p in params)
    assert known == agent.optimizer.master.numel()


def test_one_update_descends_the_scaled_sum_of_the_mean_losses():
    scales = {name: 0.1 * (i + 1) for i, name in enumerate(ROUTES)}
    one, two = (shaken_agent(scales=scales, **BOTH) for _ in range(2))
    seen = {}
    step = one.optimizer.step

    def spy():
        seen["grad"] = one.optimizer.grad.clone()
        return step()

    one.optimizer.step = spy
    one.update(make_batch())
    losses, _, _ = two.losses(make_batch())
    total = sum(scales[k] * v.mean() for k, v in losses.items())
    grads = torch.autograd.grad(total, two.optimizer.params)
    want = torch.cat([g.flatten() for g in grads])
    torch.testing.assert_close(seen["grad"], want, rtol=1e-4, atol=1e-7)


def test_losses_have_one_value_a_step():
    losses, _, _ = make_agent(**BOTH).losses(make_batch(3, 6))
    shapes = {k: tuple(v.shape) for k, v in losses.items()}
    short = {"replay_critic", "disagreement_ensemble"}
    assert shapes == {k: (3, 5) if k in short else (3, 6) for k in ROUTES}


# seeds and switches


def test_two_agents_with_one_seed_give_one_trace():
    one, two = make_agent(seed=3), make_agent(seed=3)
    torch.manual_seed(1)
    a, latent_a = trace(one)
    torch.manual_seed(2)  # the global generator has no say
    b, latent_b = trace(two)
    assert a == b
    assert torch.equal(one.optimizer.master, two.optimizer.master)
    assert torch.equal(latent_a.deter, latent_b.deter) and torch.equal(latent_a.stoch, latent_b.stoch)


def test_another_seed_gives_another_trace():
    assert trace(make_agent(seed=3), 1)[0] != trace(make_agent(seed=4), 1)[0]


def test_updates_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    trace(make_agent(**BOTH), 1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("switched", [{"critic_ensemble": 3}, {"disagreement_ensemble": 2}, BOTH], ids=str)
def test_switching_ensembles_on_leaves_everything_else_bit_identical(switched, dtype):
    """opt/* are norms over all weights, the ensembles' included, and so differ."""
    plain, extended = make_agent(dtype=dtype, warmup=0), make_agent(dtype=dtype, warmup=0, **switched)
    a, latent_a = trace(plain)
    b, latent_b = trace(extended)
    for x, y in zip(a, b, strict=True):
        assert {k: v for k, v in x.items() if not k.startswith("opt/")} == {
            k: y[k] for k in x if not k.startswith("opt/")
        }
    count = plain.optimizer.master.numel()
    for state in ("master", "first", "second"):
        assert torch.equal(getattr(plain.optimizer, state), getattr(extended.optimizer, state)[:count])
    assert torch.equal(latent_a.deter, latent_b.deter) and torch.equal(latent_a.stoch, latent_b.stoch)
    assert extended.optimizer.second[count:].any()


def test_a_loss_without_a_scale_is_a_key_error():
    scales = AgentOptions().scales
    del scales["replay_critic"]
    agent = make_agent(scales=scales)
    with pytest.raises(KeyError, match="replay_critic"):
        agent.update(make_batch())


# precision


def test_first_losses_in_bfloat16_agree_with_float32():
    batch = make_batch(16, 16)
    full, half = (make_agent(dtype=d).update(batch)[0] for d in (torch.float32, torch.bfloat16))
    assert full.keys() == half.keys()
    for key in (k for k in full if k.startswith("loss/")):
        assert half[key].item() == pytest.approx(full[key].item(), rel=0.03, abs=0.003), key


def test_metrics_and_losses_are_float32_in_bfloat16():
    agent = make_agent(dtype=torch.bfloat16, **BOTH)
    losses, latent, metrics = agent.losses(make_batch())
    assert {v.dtype for v in losses.values()} | {v.dtype for v in metrics.values()} == {torch.float32}
    assert latent.deter.dtype == torch.bfloat16 and latent.stoch.dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metrics_are_finite_scalars_without_gradient(dtype):
    metrics, _ = make_agent(dtype=dtype, **BOTH).update(make_batch())
    for value in metrics.values():
        assert value.dim() == 0 and not value.requires_grad and torch.isfinite(value)


# beginning


def test_reward_and_value_predictions_start_at_exactly_zero():
    agent = make_agent()
    feat = torch.randn(5, agent.world_model.rssm.features, generator=rng())
    reward, _ = agent.world_model.predict(feat)
    assert torch.equal(reward, torch.zeros(5))
    assert torch.equal(agent.actor_critic.value(feat).mean, torch.zeros(5))


def test_first_losses_of_the_zero_initialised_heads_are_log_bins():
    metrics, _ = make_agent(bins=255).update(make_batch())
    assert metrics["loss/reward"].item() == pytest.approx(np.log(255), rel=1e-5)
    assert metrics["value/imagined"].item() == 0


def test_cont_loss_aims_at_the_discount_where_an_episode_goes_on():
    agent, batch = shaken_agent(discount_horizon=10), make_batch(4, 8)
    losses, observed, _ = agent.world_model.loss(batch, rng(3))
    _, cont = agent.world_model.predict(observed.feat)
    p = cont.double().numpy()
    y = np.where(batch.is_terminal.numpy(), 0.0, 0.9)
    want = -y * np.log(p) - (1 - y) * np.log(1 - p)
    np.testing.assert_allclose(losses["cont"].detach().numpy(), want, rtol=1e-4)


def test_a_time_out_counts_as_going_on():
    agent, batch = shaken_agent(), make_batch(4, 8)
    last = replace(batch, is_last=torch.zeros_like(batch.is_last))
    a, _, _ = agent.world_model.loss(batch, rng(3))
    b, _, _ = agent.world_model.loss(last, rng(3))
    assert torch.equal(a["cont"], b["cont"])


def test_warm_up_moves_nothing_at_the_first_update():
    agent = make_agent(warmup=10)
    before = agent.optimizer.master.clone()
    agent.update(make_batch())
    assert torch.equal(before, agent.optimizer.master)
    agent.update(make_batch())
    assert not torch.equal(before, agent.optimizer.master)


def test_slow_critic_follows_the_critic_after_each_update():
    agent = make_agent(warmup=0, slow_rate=0.25)
    slow = agent.actor_critic.slow
    before = [m.clone() for m in slow.masters]
    agent.update(make_batch())
    for old, new, critic in zip(before, slow.masters, agent.actor_critic.critic.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * critic.detach())
    assert any(not torch.equal(a, b) for a, b in zip(before, slow.masters, strict=True))


# acting


def test_infer_draws_the_posterior_and_the_policy_of_its_features():
    agent = shaken_agent()
    obs = {k: v[:, 0] for k, v in make_batch(4, 1).obs.items()}
    carry, first = agent.initial(4), torch.ones(4, dtype=torch.bool)
    latent, belief = agent.infer(carry, obs, first, rng(2))
    assert belief.logits.shape == (4, ACTIONS) and belief.logits.dtype == torch.float32
    assert torch.equal(belief.feat[:, : TINY.deter], latent.deter)
    hot = belief.feat[:, TINY.deter :].view(4, TINY.stoch, TINY.classes)
    assert torch.equal(hot.argmax(-1), latent.stoch.long()) and (hot.sum(-1) == 1).all()


def test_infer_over_time_equals_the_posterior_of_training():
    agent, batch = shaken_agent(), make_batch(3, 6)
    world = agent.world_model
    _, observed, _ = world.loss(batch, rng(3))
    g = rng(3)  # observe draws all its uniforms at once, obs_step its own each step: the same stream
    carry = Carry(batch.context, batch.prev_action[:, 0])
    for t in range(6):
        obs = {k: v[:, t] for k, v in batch.obs.items()}
        latent, belief = agent.infer(carry, obs, batch.is_first[:, t], g)
        torch.testing.assert_close(belief.feat, observed.feat[:, t].detach(), rtol=1e-4, atol=1e-4)
        carry = Carry(latent, batch.action[:, t])


def test_doubt_names_what_is_switched_on():
    def ask(**options):
        agent = make_agent(**options)
        obs = {k: v[:, 0] for k, v in make_batch(4, 1).obs.items()}
        _, belief = agent.infer(agent.initial(4), obs, torch.ones(4, dtype=torch.bool), rng())
        return {k: tuple(v.shape) for k, v in agent.doubt(belief.feat, belief.logits).items()}

    assert ask() == {}
    assert ask(critic_ensemble=3) == {"value_var": (4,)}
    assert ask(**BOTH) == {"value_var": (4,), "disagreement": (4,)}


# state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_state_continues_bit_for_bit(dtype, tmp_path):
    agent = make_agent(dtype=dtype, warmup=4, **BOTH)
    trace(agent, 3)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    other = make_agent(seed=9, dtype=dtype, warmup=4, **BOTH)
    other.load_state_dict(torch.load(tmp_path / "agent.pt", weights_only=True))
    a, latent_a = trace(agent, 3, start=3)
    b, latent_b = trace(other, 3, start=3)
    assert a == b
    assert torch.equal(agent.optimizer.master, other.optimizer.master)
    assert torch.equal(latent_a.deter, latent_b.deter) and torch.equal(latent_a.stoch, latent_b.stoch)


def test_loaded_agent_acts_as_the_saved_one():
    agent, other = shaken_agent(), make_agent(seed=9)
    other.load_state_dict(agent.state_dict())
    obs = {k: v[:, 0] for k, v in make_batch(4, 1).obs.items()}
    first = torch.ones(4, dtype=torch.bool)
    beliefs = [a.infer(a.initial(4), obs, first, rng(2))[1] for a in (agent, other)]
    assert torch.equal(beliefs[0].logits, beliefs[1].logits)


def test_saved_state_does_not_change_with_further_updates():
    agent = make_agent(warmup=0)
    trace(agent, 2)
    state = agent.state_dict()
    other = make_agent(warmup=0)
    trace(other, 2)
    trace(agent, 2, start=2)
    fresh = make_agent(seed=9, warmup=0)
    fresh.load_state_dict(state)
    assert trace(fresh, 1, start=2)[0] == trace(other, 1, start=2)[0]


def test_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match="weights"):
        make_agent(**BOTH).load_state_dict(make_agent().state_dict())


# learning


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_can_be_overfitted(dtype):
    batch = make_batch(4, 8)
    agent = make_agent(dtype=dtype, lr=3e-3, warmup=10)
    history = [agent.update(batch)[0] for _ in range(150)]
    first = {k: v.item() for k, v in history[0].items()}
    last = {k: np.mean([m[k].item() for m in history[-5:]]) for k in first}
    assert last["loss/obs"] < 0.35 * first["loss/obs"]
    assert last["loss/reward"] < 0.35 * first["loss/reward"]
    assert last["loss/cont"] < 0.7 * first["loss/cont"]


def bandit(B=8, T=8, seed=0) -> Batch:
    """Rows that show the action before, with reward 1 where it was 2, else 0; no episode ends."""
    batch = make_batch(B, T, seed)
    never = torch.zeros(B, T, dtype=torch.bool)
    cell, vector = torch.zeros_like(batch.obs["cell"]), torch.zeros_like(batch.obs["vector"])
    vector.scatter_(-1, batch.prev_action.unsqueeze(-1), 3.0)
    cell[..., 0, 0] = batch.prev_action % 4
    obs = {"cell": cell, "vector": vector}
    reward = (batch.prev_action == 2).float()
    return replace(batch, obs=obs, reward=reward, is_first=never, is_last=never, is_terminal=never)


def test_the_actor_learns_which_action_pays():
    agent = make_agent(lr=6e-3, warmup=10, discount_horizon=5, horizon=4)
    for i in range(170):
        agent.update(bandit(seed=i))
    batch = bandit(seed=999)
    _, observed, _ = agent.world_model.loss(batch, rng())
    pi = agent.actor_critic.logits(observed.feat).softmax(-1)
    assert pi[..., 2].mean() > 0.8


def test_image_observations_train():
    spec = {"image": ObsSpec((64, 64, 3))}
    agent = DreamerV3Agent(spec, ACTIONS, AgentOptions(lr=3e-3, warmup=0), TINY)
    batch = make_batch(2, 3, spec=spec)
    batch.obs["image"][:, :, :32] = 255  # an upper half to learn
    batch.obs["image"][:, :, 32:] = 0
    losses = [agent.update(batch)[0]["loss/obs"].item() for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]


def test_batch_and_spec_of_these_tests_cover_every_field():
    assert {f.name for f in fields(Batch)} == set(vars(make_batch()))
    assert {s.classes > 0 for s in SPEC.values()} == {True, False}

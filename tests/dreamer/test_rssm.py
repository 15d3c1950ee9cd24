"""The recurrent model against its published definition in float64: values, samples and every gradient."""

import pytest
import torch
from tests.dreamer import samples as ref
from tests.dreamer.samples import ACTIONS, TINY, hot, random_latent, rng, shake
from torch.distributions import Categorical, Independent, kl_divergence

from lore.base.types import Latent
from lore.config.options import SizeOptions as Size
from lore.dreamer.rssm import RSSM, Observed
from lore.nn.cpu.native import torch_only
from lore.nn.distributions import unimix_probs

EMBED, S, K, D = 16, TINY.stoch, TINY.classes, TINY.deter


def make(free_nats=1.0, seed=0):
    rssm = RSSM(EMBED, ACTIONS, TINY, 0.01, free_nats, seed)
    shake(rssm.parameters(), seed)
    return rssm


def inputs(B=3, T=7, seed=0):
    g = rng(seed)
    tokens = torch.randn(B, T, EMBED, generator=g)
    actions = torch.randint(ACTIONS, (B, T), generator=g)
    first = torch.rand(B, T, generator=g) < 0.3
    return random_latent(B, seed), actions, tokens, first


def close(got, want, tolerance=1e-5):
    torch.testing.assert_close(got.detach().double(), want.detach(), rtol=tolerance, atol=tolerance)


def plain_loop(w, start, actions, tokens, first, uniform):
    """Posterior step by step under autograd: feat (B, T, F), probs (B, T, S, K), indices (B, T, S)."""
    deter, stoch = start.deter.double(), hot(start.stoch, K).flatten(1)
    deters, stochs, every, indices = [], [], [], []
    for t in range(actions.shape[1]):
        keep = (~first[:, t]).double().unsqueeze(-1)
        deter = ref.core(w, deter * keep, stoch * keep, hot(actions[:, t], ACTIONS) * keep, TINY.blocks)
        p = ref.posterior(w, deter, tokens[:, t])
        index = ref.sample(p, uniform[t])
        stoch = (hot(index, K) + p - p.detach()).flatten(1)
        deters.append(deter)
        stochs.append(stoch)
        every.append(p)
        indices.append(index)
    feat = torch.cat([torch.stack(deters, 1), torch.stack(stochs, 1)], -1)
    return feat, torch.stack(every, 1), torch.stack(indices, 1)


def hot_or_zero(action):
    return hot(action, ACTIONS + 1)[:, :ACTIONS]


# single steps


def test_core_is_the_published_block_gru():
    rssm, latent = make(), random_latent(9)
    stoch = hot(latent.stoch, K).flatten(1)
    action = torch.arange(9) % (ACTIONS + 1)  # the last is no action
    want = ref.core(ref.doubles(rssm), latent.deter.double(), stoch, hot_or_zero(action), TINY.blocks)
    close(rssm.core(latent.deter, stoch.float(), action, rssm.prepare()), want)
    with torch.no_grad():
        close(rssm.core(latent.deter, stoch.float(), action, rssm.prepare()), want)


def test_core_has_the_gradients_of_the_published_block_gru():
    rssm, latent = make(), random_latent(9)
    w = ref.doubles(rssm, grad=True)
    stoch = hot(latent.stoch, K).flatten(1)
    action = torch.arange(9) % (ACTIONS + 1)
    upstream = torch.randn(9, D, generator=rng(5))
    names = [k for k in w if k.startswith(("in_", "core_"))]
    got = torch.autograd.grad(
        (rssm.core(latent.deter, stoch.float(), action, rssm.prepare()) * upstream).sum(),
        [dict(rssm.named_parameters())[k] for k in names],
    )
    want = torch.autograd.grad(
        (ref.core(w, latent.deter.double(), stoch, hot_or_zero(action), TINY.blocks) * upstream).sum(),
        [w[k] for k in names],
    )
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-4)


def test_prior_and_posterior_probabilities_are_those_of_the_published_networks():
    rssm, latent = make(), random_latent(9)
    tokens = torch.randn(9, EMBED, generator=rng())
    w, deter = ref.doubles(rssm), latent.deter.double()
    close(rssm.prior_probs(latent.deter), ref.prior(w, deter))
    close(unimix_probs(rssm.posterior(latent.deter, tokens), 0.01), ref.posterior(w, deter, tokens.double()))


def test_feat_is_deter_and_one_hot_latents_side_by_side():
    latent = random_latent(4)
    want = torch.cat([latent.deter.double(), hot(latent.stoch, K).flatten(1)], -1)
    assert torch.equal(make().feat(latent).double(), want)


# the scan with the hand-written gradient


def test_observe_equals_a_plain_loop():
    rssm, (start, actions, tokens, first) = make(), inputs()
    got = rssm.observe(start, actions, tokens, first, rng(3))
    uniform = torch.rand(7, 3, S, generator=rng(3))
    feat, p, index = plain_loop(ref.doubles(rssm), start, actions, tokens.double(), first, uniform)
    assert torch.equal(got.latent.stoch.long(), index)
    close(got.feat, feat)
    close(got.probs, p)
    close(got.latent.deter, feat[..., :D])


@pytest.mark.parametrize("through", ["deter", "stoch", "probs", "all"])
@pytest.mark.parametrize("seed", [0, 1])
def test_observe_has_every_gradient_of_a_plain_loop(through, seed):
    rssm, (start, actions, tokens, first) = make(seed=seed), inputs(seed=seed)
    w = ref.doubles(rssm, grad=True)
    tokens.requires_grad_()
    exact_tokens = tokens.detach().double().requires_grad_()
    got = rssm.observe(start, actions, tokens, first, rng(3))
    uniform = torch.rand(7, 3, S, generator=rng(3))
    feat, p, _ = plain_loop(w, start, actions, exact_tokens, first, uniform)
    up_feat = torch.randn(feat.shape, generator=rng(4))
    up_probs = torch.randn(p.shape, generator=rng(5))
    up_feat[..., :D] *= through in ("deter", "all")
    up_feat[..., D:] *= through in ("stoch", "all")
    up_probs *= through in ("probs", "all")
    names = [k for k in w if not k.startswith("dynamics_predictor")]
    params = dict(rssm.named_parameters())
    a = torch.autograd.grad(
        (got.feat * up_feat).sum() + (got.probs * up_probs).sum(), [params[k] for k in names] + [tokens]
    )
    b = torch.autograd.grad(
        (feat * up_feat).sum() + (p * up_probs).sum(), [w[k] for k in names] + [exact_tokens]
    )
    for name, x, y in zip([*names, "tokens"], a, b, strict=True):
        error = (x.double() - y).abs().max() / y.abs().max()
        assert error < 1e-4, f"{name}: {error:.1e}"


def test_observe_leaves_the_prior_network_out():
    rssm, (start, actions, tokens, first) = make(), inputs()
    got = rssm.observe(start, actions, tokens, first, rng(3))
    grads = torch.autograd.grad(
        got.feat.sum() + got.probs.sum(), list(rssm.dynamics_predictor.parameters()), allow_unused=True
    )
    assert all(g is None for g in grads)


def test_observe_in_bfloat16_follows_the_plain_loop_of_the_rounded_weights():
    rssm, (start, actions, tokens, first) = make(), inputs(T=5)
    rssm.bfloat16()
    start.deter, tokens = start.deter.bfloat16(), tokens.bfloat16()
    got = rssm.observe(start, actions, tokens, first, rng(3))
    uniform = torch.rand(5, 3, S, generator=rng(3))
    feat, p, index = plain_loop(ref.doubles(rssm), start, actions, tokens.double(), first, uniform)
    assert got.feat.dtype == got.latent.deter.dtype == torch.bfloat16 and got.probs.dtype == torch.float32
    same = (got.latent.stoch.long() == index).all(-1).cummin(1).values  # until a draw falls to the other side
    assert same.float().mean() > 0.7
    close(got.feat[same], feat[same], 0.03)
    close(got.probs[same], p[same], 0.03)


# episode boundaries


def test_nothing_before_is_first_has_any_influence_after():
    rssm, (start, actions, tokens, _) = make(), inputs()
    first = torch.zeros(3, 7, dtype=torch.bool)
    first[:, 3] = True
    got = rssm.observe(start, actions, tokens, first, rng(3))
    other_actions, other_tokens = actions.clone(), tokens.clone()
    other_actions[:, :4] = (actions[:, :4] + 1) % ACTIONS  # the action that led into the new episode too
    other_tokens[:, :3] += 1
    other = rssm.observe(random_latent(3, 7), other_actions, other_tokens, first, rng(3))
    assert torch.equal(got.feat[:, 3:], other.feat[:, 3:]) and torch.equal(
        got.probs[:, 3:], other.probs[:, 3:]
    )
    assert not torch.equal(got.feat[:, :3], other.feat[:, :3])


def test_no_gradient_crosses_an_episode_boundary():
    rssm, (start, actions, tokens, _) = make(), inputs()
    first = torch.zeros(3, 7, dtype=torch.bool)
    first[1, 3] = True
    tokens.requires_grad_()
    got = rssm.observe(start, actions, tokens, first, rng(3))
    (grad,) = torch.autograd.grad(got.feat[:, 3:].square().sum() + got.probs[:, 3:].square().sum(), tokens)
    assert not grad[1, :3].any()
    assert grad[0, 0].any() and grad[2, 0].any()


def test_without_is_first_the_start_has_influence():
    rssm, (start, actions, tokens, _) = make(), inputs()
    first = torch.zeros(3, 7, dtype=torch.bool)
    a = rssm.observe(start, actions, tokens, first, rng(3))
    b = rssm.observe(Latent(start.deter + 0.1, start.stoch), actions, tokens, first, rng(3))
    c = rssm.observe(Latent(start.deter, (start.stoch + 1) % K), actions, tokens, first, rng(3))
    assert not torch.equal(a.feat[:, 0], b.feat[:, 0]) and not torch.equal(a.feat[:, 0], c.feat[:, 0])


def test_obs_step_at_is_first_forgets_the_carry():
    rssm = make()
    tokens = torch.randn(4, EMBED, generator=rng())
    first = torch.tensor([True, False, True, False])
    a = rssm.obs_step(random_latent(4, 1), torch.tensor([0, 1, 2, 3]), tokens, first, rng(3))
    b = rssm.obs_step(random_latent(4, 2), torch.tensor([4, 4, 4, 4]), tokens, first, rng(3))
    same = [torch.equal(a.deter[i], b.deter[i]) for i in range(4)]
    assert same == [True, False, True, False]
    zero = rssm.obs_step(
        rssm.initial(4, torch.device("cpu")), torch.zeros(4).long(), tokens, torch.ones(4).bool(), rng(3)
    )
    assert torch.equal(a.deter[first], zero.deter[first]) and torch.equal(a.stoch[first], zero.stoch[first])


def test_obs_step_is_one_step_of_observe():
    rssm, (start, actions, tokens, first) = make(), inputs(T=1)
    step = rssm.obs_step(start, actions[:, 0], tokens[:, 0], first[:, 0], rng(3))
    sequence = rssm.observe(start, actions, tokens, first, rng(3))
    assert torch.equal(step.stoch, sequence.latent.stoch[:, 0])
    close(step.deter, sequence.latent.deter[:, 0].double())


# imagination


def test_imagine_is_manual_prior_steps():
    rssm, start = make(), random_latent(6)
    w, table = ref.doubles(rssm), torch.randint(ACTIONS, (5, 6), generator=rng(8))
    seen = []

    def policy(feat):
        seen.append(feat.clone())
        return table[len(seen) - 1]

    got = rssm.imagine(rssm.feat(start).detach(), policy, 4, rng(3))
    uniform = torch.rand(4, 6, S, generator=rng(3))
    deter, stoch = start.deter.double(), hot(start.stoch, K).flatten(1)
    feats = [torch.cat([deter, stoch], -1)]
    for t in range(4):
        deter = ref.core(w, deter, stoch, hot(table[t], ACTIONS), TINY.blocks)
        stoch = hot(ref.sample(ref.prior(w, deter), uniform[t]), K).flatten(1)
        feats.append(torch.cat([deter, stoch], -1))
    close(got.feat, torch.stack(feats))
    assert torch.equal(got.action, table)
    assert len(seen) == 5 and torch.equal(torch.stack(seen), got.feat)


@pytest.mark.parametrize("rows", [64, 131])
@pytest.mark.parametrize("size", [TINY, Size()])
def test_imagined_steps_by_the_kernel_are_the_steps_in_torch(size, rows):
    """In bfloat16. Sums may be rounded otherwise: then a sample at the very edge may be another class."""
    rssm = RSSM(EMBED, ACTIONS, size, 0.01, 1.0, 0)
    shake(rssm.parameters(), size=0.05)
    rssm = rssm.bfloat16()
    g = rng(1)
    stoch = torch.randint(size.classes, (rows, size.stoch), generator=g)
    deter = torch.rand(rows, size.deter, generator=g) * 2 - 1
    feat = torch.cat([deter, hot(stoch, size.classes).flatten(1)], -1).bfloat16()
    if not rssm._packs(feat):
        pytest.skip("no AVX-512 BF16 or no compiler")
    action, uniform = (
        torch.randint(ACTIONS + 1, (rows,), generator=g),
        torch.rand(rows, size.stoch, generator=g),
    )
    core, got = rssm.prepare(), torch.full((rows, rssm.features + 3), 7.0, dtype=torch.bfloat16)
    with torch.no_grad():
        rssm._native_step(feat, action, uniform, rssm._pack(core), got[:, :-3])
        with torch_only():
            want = rssm.prior_step(feat, action, uniform, core)
    assert (got[:, -3:] == 7.0).all()
    close(got[:, : size.deter].float(), want[:, : size.deter].double(), 2e-2)
    classes, plain = (x[:, size.deter : rssm.features].unflatten(-1, (size.stoch, -1)) for x in (got, want))
    assert (classes.sum(-1) == 1).all() and ((classes == 0) | (classes == 1)).all()
    assert (classes == plain).all(-1).float().mean() > 0.99


def test_imagine_keeps_no_gradient():
    rssm = make()
    got = rssm.imagine(rssm.feat(random_latent(2)), lambda f: torch.zeros(2).long(), 2, rng())
    assert not got.feat.requires_grad


# KL balance


def observed(seed=0, scale=1.0):
    """Hand-made posterior probabilities and features that gradients can reach."""
    g = rng(seed)
    post = (scale * torch.randn(2, 3, S, K, generator=g)).softmax(-1).requires_grad_()
    feat = torch.randn(2, 3, D + S * K, generator=g).requires_grad_()
    return Observed(feat, post, random_latent(6))


def test_kl_losses_are_the_divergence_from_posterior_to_mixed_prior():
    rssm, seen = make(free_nats=0.0), observed()
    p = Categorical(seen.probs.detach().double())
    q = Categorical(ref.prior(ref.doubles(rssm), seen.feat[..., :D].detach().double()))
    want = kl_divergence(Independent(p, 1), Independent(q, 1))
    got = rssm.kl_losses(seen)
    close(got["dyn"], want, 1e-4)
    close(got["rep"], want, 1e-4)


def test_dyn_reaches_the_prior_and_not_the_posterior():
    rssm, seen = make(free_nats=0.0), observed()
    rssm.kl_losses(seen)["dyn"].sum().backward()
    assert seen.probs.grad is None
    assert all(p.grad.any() for p in rssm.dynamics_predictor.parameters())
    assert seen.feat.grad[..., :D].any() and not seen.feat.grad[..., D:].any()


def test_rep_reaches_the_posterior_and_not_the_prior():
    rssm, seen = make(free_nats=0.0), observed()
    rssm.kl_losses(seen)["rep"].sum().backward()
    assert seen.probs.grad.any()
    assert all(p.grad is None for p in rssm.dynamics_predictor.parameters())
    assert seen.feat.grad is None


def test_kl_below_the_free_nats_is_flat():
    rssm, seen = make(free_nats=1e6), observed()
    losses = rssm.kl_losses(seen)
    assert (losses["dyn"] == 1e6).all() and (losses["rep"] == 1e6).all()
    (losses["dyn"] + losses["rep"]).sum().backward()
    assert not seen.probs.grad.any()
    assert not any(p.grad.any() for p in rssm.dynamics_predictor.parameters())


def test_free_nats_apply_to_each_step_by_itself():
    rssm, seen = make(free_nats=0.0), observed()
    kl = rssm.kl_losses(seen)["rep"].detach()
    rssm.free_nats = kl.median().item()
    below = kl < rssm.free_nats
    clipped = rssm.kl_losses(seen)["rep"]
    torch.testing.assert_close(clipped.detach(), kl.clamp(min=rssm.free_nats))
    clipped.sum().backward()
    reached = seen.probs.grad.flatten(2).any(-1)
    assert below.any() and not reached[below].any() and reached[kl > rssm.free_nats].all()


def test_prior_in_the_kl_keeps_the_uniform_share():
    """A prior that is sure and wrong costs at most log(K / mix) a latent, because it is mixed first."""
    rssm = make(free_nats=0.0)
    with torch.no_grad():
        rssm.dynamics_predictor.layers[-1].weight.zero_()
        rssm.dynamics_predictor.layers[-1].bias.copy_(torch.tensor([200.0, 0, 0, 0]).repeat(S))
    post = torch.zeros(1, 1, S, K)
    post[..., 1] = 1.0
    feat = torch.zeros(1, 1, D + S * K)
    mixed = 0.99 * post + 0.01 / K  # what the posterior makes of a sure logit
    got = rssm.kl_losses(Observed(feat, mixed, random_latent(1)))["dyn"].item()
    top, low = 0.99 + 0.01 / K, 0.01 / K
    want = S * (top * torch.tensor(top / low).log() + low * torch.tensor(low / top).log()).item()
    assert got == pytest.approx(want, rel=1e-4)


def test_posterior_probabilities_keep_the_uniform_share():
    rssm, (start, actions, tokens, first) = make(), inputs()
    with torch.no_grad():
        rssm.posterior_logits.weight.zero_()
        rssm.posterior_logits.bias.copy_(torch.tensor([200.0, 0, 0, 0]).repeat(S))
    got = rssm.observe(start, actions, tokens, first, rng()).probs
    torch.testing.assert_close(got[..., 1:], torch.full_like(got[..., 1:], 0.01 / K))

"""LaProp with AGC against the package pytorch-optimizer, float64 recursions and numbers by hand."""

import numpy as np
import pytest
import torch
from pytorch_optimizer import LaProp as PackageLaProp
from torch import nn

from lore.nn.optim import LaProp

SHAPES = [(4, 3), (5,), (2, 3, 2), (1,)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(seed=0):
    generator = rng(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(steps, seed=1):
    """Some large, some small, drifting: (steps) lists of one gradient a parameter."""
    generator = rng(seed)
    scales = torch.logspace(-3, 2, steps)[torch.randperm(steps, generator=generator)]
    return [[s * torch.randn(shape, generator=generator) + 0.1 for shape in SHAPES] for s in scales]


def feed(optimizer, params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad += g
    return optimizer.step()


def values(params):
    return np.concatenate([p.detach().double().numpy().ravel() for p in params])


def flat(grads):
    return np.concatenate([g.double().numpy().ravel() for g in grads])


def exact(weights, grads, lr, beta1=0.9, beta2=0.999, eps=1e-20, warmup=0):
    """The official chain (scale_by_rms, scale_by_momentum, schedule) without AGC, in float64."""
    w, first, second = weights.copy(), 0.0, 0.0
    for t, g in enumerate(grads, 1):
        g = flat(g)
        second = beta2 * second + (1 - beta2) * g * g
        scaled = g / (np.sqrt(second / (1 - beta2**t)) + eps)
        first = beta1 * first + (1 - beta1) * scaled
        rate = lr * min(1, (t - 1) / warmup) if warmup else lr
        w = w - rate * first / (1 - beta1**t)
    return w


@pytest.mark.parametrize("beta1,beta2", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
def test_same_steps_as_package_laprop_at_a_constant_learning_rate(beta1, beta2):
    """Where the two are one mathematics: the package keeps the learning rate inside the momentum, which
    only differs while the rate changes, so no warm-up. Its denominator is (sqrt(v + 1e-15) + eps) /
    sqrt(1 - beta2^t), ours sqrt(v / (1 - beta2^t)) + eps: equal for eps = 0 and gradients far above 3e-8.
    Its clipping is unit-wise and a separate wrapper, so AGC is off.
    """
    ours, theirs = parameters(), parameters()
    a = LaProp(ours, 1e-2, agc=0.0, beta1=beta1, beta2=beta2, eps=0.0)
    b = PackageLaProp(theirs, lr=1e-2, betas=(beta1, beta2), eps=0.0, foreach=False)
    for grads in gradients(300):
        feed(a, ours, grads)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        b.step()
    np.testing.assert_allclose(values(ours), values(theirs), rtol=1e-4, atol=1e-5)
    assert np.abs(values(ours) - values(parameters())).max() > 0.1


@pytest.mark.parametrize("eps", [1e-20, 0.5])
def test_same_steps_as_the_official_recursion(eps):
    params, grads = parameters(), gradients(200)
    start = values(params)
    optimizer = LaProp(params, 1e-2, agc=0.0, eps=eps)
    for g in grads:
        feed(optimizer, params, g)
    np.testing.assert_allclose(values(params), exact(start, grads, 1e-2, eps=eps), rtol=1e-4, atol=1e-5)


def test_learning_rate_multiplies_after_the_momentum_in_warm_up():
    params, grads = parameters(), gradients(30)
    start = values(params)
    optimizer = LaProp(params, 1e-2, agc=0.0, warmup=20)
    for g in grads:
        feed(optimizer, params, g)
    np.testing.assert_allclose(values(params), exact(start, grads, 1e-2, warmup=20), rtol=1e-4, atol=1e-5)


def test_first_update_of_a_warm_up_moves_nothing():
    params = parameters()
    start = values(params)
    optimizer = LaProp(params, 1.0, warmup=10)
    feed(optimizer, params, gradients(1)[0])
    np.testing.assert_array_equal(values(params), start)


def test_warm_up_is_linear_and_then_constant():
    param = nn.Parameter(torch.zeros(1))
    optimizer = LaProp([param], 1.0, warmup=4, agc=0.0)
    moves = []
    for _ in range(8):
        before = param.item()
        feed(optimizer, [param], [torch.ones(1)])  # a constant gradient: every full step is exactly 1
        moves.append(before - param.item())
    np.testing.assert_allclose(moves, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1], atol=1e-5)


def test_first_full_step_is_the_learning_rate_times_the_sign():
    param = nn.Parameter(torch.zeros(3))
    optimizer = LaProp([param], 0.1, agc=0.0)
    feed(optimizer, [param], [torch.tensor([1e-4, -3.0, 500.0])])
    torch.testing.assert_close(param.detach(), torch.tensor([-0.1, 0.1, -0.1]))


def clipped(optimizer):
    """Gradient after clipping, read from the second moment of a first step: v = (1 - beta2) g^2."""
    return (optimizer.second / (1 - optimizer.beta2)).sqrt()


def test_agc_scales_each_tensor_by_its_own_norms():
    big = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))  # norm 5, limit 0.3 * 5 = 1.5
    same = nn.Parameter(torch.tensor([3.0, 4.0]))  # norm 5, limit 1.5
    tiny = nn.Parameter(torch.zeros(2))  # counts as 1e-3, limit 3e-4
    optimizer = LaProp([big, same, tiny], 1.0, agc=0.3, beta2=0.5)
    grads = [
        torch.tensor([[6.0, 0.0], [8.0, 0.0]]),  # norm 10: times 0.15, as one tensor
        torch.tensor([0.6, 0.8]),  # norm 1, below the limit: untouched
        torch.tensor([0.0, 0.01]),  # norm 0.01: times 0.03
    ]
    feed(optimizer, [big, same, tiny], grads)
    want = torch.tensor([0.9, 0.0, 1.2, 0.0, 0.6, 0.8, 0.0, 3e-4])
    torch.testing.assert_close(clipped(optimizer), want, rtol=1e-5, atol=0)


def test_agc_leaves_a_gradient_at_the_limit_and_zero_gradients_alone():
    at, zero = nn.Parameter(torch.tensor([10.0])), nn.Parameter(torch.tensor([10.0]))
    optimizer = LaProp([at, zero], 1.0, agc=0.5, beta2=0.5)
    feed(optimizer, [at, zero], [torch.tensor([5.0]), torch.tensor([0.0])])
    assert clipped(optimizer).tolist() == pytest.approx([5.0, 0.0])
    assert zero.item() == 10.0


def test_agc_uses_the_weights_of_the_moment():
    param = nn.Parameter(torch.tensor([10.0]))
    optimizer = LaProp([param], 5.0, agc=0.1, beta1=0.0, beta2=0.5)
    feed(optimizer, [param], [torch.tensor([100.0])])  # clipped to 1; moves by 5, to 5
    assert param.item() == pytest.approx(5.0)
    feed(optimizer, [param], [torch.tensor([100.0])])  # clipped to 0.5
    assert optimizer.second.item() == pytest.approx(0.5 * (0.5 * 1.0) + 0.5 * 0.25)


def test_agc_zero_is_off():
    param = nn.Parameter(torch.zeros(1))
    optimizer = LaProp([param], 1.0, agc=0.0, beta2=0.5)
    feed(optimizer, [param], [torch.tensor([1e4])])
    assert clipped(optimizer).item() == pytest.approx(1e4)


def test_step_clears_the_gradients():
    params = parameters()
    optimizer = LaProp(params, 1e-2)
    feed(optimizer, params, gradients(1)[0])
    assert not any(p.grad.any() for p in params)


def test_backward_accumulates_into_the_buffer_that_step_reads():
    param = nn.Parameter(torch.zeros(2))
    optimizer = LaProp([param], 0.1, agc=0.0)
    (param * torch.tensor([2.0, -1.0])).sum().backward()
    (param * torch.tensor([1.0, -1.0])).sum().backward()
    assert optimizer.grad.tolist() == [3.0, -2.0]
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([-0.1, 0.1]))


def test_step_reports_the_norm_of_the_unclipped_gradient():
    params, grads = parameters(), gradients(1)[0]
    got = feed(LaProp(params, 1e-2), params, grads)
    assert got["opt/grad_norm"].item() == pytest.approx(np.linalg.norm(flat(grads)), rel=1e-5)


def test_step_reports_the_norm_of_the_applied_update():
    params = parameters()
    optimizer = LaProp(params, 1e-2, warmup=2)
    for grads in gradients(5):
        before = values(params)
        got = feed(optimizer, params, grads)
        moved = np.linalg.norm(values(params) - before)
        assert got["opt/update_norm"].item() == pytest.approx(moved, rel=1e-2, abs=1e-9)


# bfloat16


def test_bfloat16_weights_are_views_of_a_copy_beside_float32_masters():
    params = parameters()
    start = values(params)
    optimizer = LaProp(params, 1e-2, torch.bfloat16)
    assert all(p.dtype == p.grad.dtype == torch.bfloat16 for p in params)
    assert all(m.dtype == torch.float32 for m in optimizer.masters())
    np.testing.assert_array_equal(values(optimizer.masters()), start)
    assert [m.shape for m in optimizer.masters()] == [p.shape for p in params]


def test_many_updates_too_small_for_bfloat16_accumulate():
    param = nn.Parameter(torch.ones(4))
    optimizer = LaProp([param], 1e-5, torch.bfloat16, agc=0.0)  # bfloat16 near 1 has steps of 0.004
    seen = set()
    for _ in range(1000):
        feed(optimizer, [param], [torch.ones(4, dtype=torch.bfloat16)])
        seen.add(param[0].item())
    torch.testing.assert_close(optimizer.master, torch.full((4,), 0.99), atol=5e-5, rtol=0)
    torch.testing.assert_close(param.detach().float(), torch.full((4,), 0.99), atol=0.002, rtol=0)
    assert len(seen) >= 3


def test_bfloat16_second_moment_is_float32():
    param = nn.Parameter(torch.ones(1))
    optimizer = LaProp([param], 1e-3, torch.bfloat16, agc=0.0)
    for _ in range(2000):  # 0.999 * v would not change v in bfloat16
        feed(optimizer, [param], [torch.ones(1, dtype=torch.bfloat16)])
    assert optimizer.second.item() == pytest.approx(1 - 0.999**2000, rel=1e-3)


# state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_round_trip_continues_identically(dtype):
    grads = [[g.to(dtype) for g in step] for step in gradients(12)]
    params, other = parameters(), parameters(seed=9)
    optimizer = LaProp(params, 1e-2, dtype, warmup=8)
    for g in grads[:6]:
        feed(optimizer, params, g)
    state = optimizer.state_dict()
    resumed = LaProp(other, 1e-2, dtype, warmup=8)
    resumed.load_state_dict(state)
    for g in grads[6:]:
        feed(optimizer, params, g)
        feed(resumed, other, g)
    for a, b in zip(params, other, strict=True):
        assert torch.equal(a, b)
    for key in ("master", "first", "second"):
        assert torch.equal(getattr(optimizer, key), getattr(resumed, key))


def test_state_dict_is_a_copy_of_the_moment():
    params = parameters()
    optimizer = LaProp(params, 1e-2)
    feed(optimizer, params, gradients(1)[0])
    state = optimizer.state_dict()
    kept = {k: v.clone() for k, v in state.items() if k != "updates"}
    for g in gradients(3, seed=5):
        feed(optimizer, params, g)
    assert state["updates"] == 1
    assert all(torch.equal(state[k], v) for k, v in kept.items())


def test_state_of_another_size_is_refused():
    state = LaProp(parameters(), 1e-2).state_dict()
    with pytest.raises(ValueError, match="weights"):
        LaProp([nn.Parameter(torch.zeros(3))], 1e-2).load_state_dict(state)

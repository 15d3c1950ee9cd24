import numpy as np
import pytest
import torch

from lore.dreamer.returns import ReturnScale, lambda_return

REWARD, VALUE = [9.0, 1, 2, 3], [9.0, 10, 20, 30]


def column(values):
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


def by_hand(terminal=(0, 0, 0, 0), last=(0, 0, 0, 0), discount=0.9, lam=0.5):
    args = map(column, (REWARD, terminal, last, VALUE))
    return lambda_return(*args, discount, lam).flatten().tolist()


def test_lambda_return_by_hand():
    r2 = 3 + 0.9 * 30
    r1 = 2 + 0.9 * (0.5 * 20 + 0.5 * r2)
    r0 = 1 + 0.9 * (0.5 * 10 + 0.5 * r1)
    assert [r0, r1, r2] == pytest.approx([16.525, 24.5, 30.0])
    assert by_hand() == pytest.approx([r0, r1, r2])


def test_termination_ends_the_return():
    assert by_hand(terminal=(0, 0, 1, 0), last=(0, 0, 1, 0)) == pytest.approx([1 + 0.9 * (5 + 1), 2, 30])


def test_time_out_bootstraps_from_the_value():
    assert by_hand(last=(0, 0, 1, 0)) == pytest.approx([1 + 0.9 * (5 + 10), 2 + 0.9 * 20, 30])


def test_flags_and_reward_of_the_first_row_do_not_matter():
    args = map(column, ([-77.0, 1, 2, 3], (1, 0, 0, 0), (1, 0, 0, 0), [-5.0, 10, 20, 30]))
    assert lambda_return(*args, 0.9, 0.5).flatten().tolist() == pytest.approx(by_hand())


def test_termination_at_the_end_does_not_bootstrap():
    assert by_hand(terminal=(0, 0, 0, 1), last=(0, 0, 0, 1))[-1] == pytest.approx(3)


def test_time_out_at_the_end_bootstraps():
    assert by_hand(last=(0, 0, 0, 1))[-1] == pytest.approx(30)


def test_lambda_zero_is_the_one_step_return():
    assert by_hand(lam=0.0) == pytest.approx([1 + 9, 2 + 18, 3 + 27])


def test_lambda_one_is_the_discounted_sum():
    want = [1 + 0.9 * 2 + 0.81 * 3 + 0.729 * 30, 2 + 0.9 * 3 + 0.81 * 30, 30]
    assert by_hand(lam=1.0) == pytest.approx(want)


def brute_force(t, reward, terminal, last, value, discount, lam):
    """Return from row t, spelled out as a recursion over one column."""
    if t == len(reward) - 1:
        return value[t]
    n = t + 1
    if terminal[n]:
        return reward[n]
    ahead = value[n]
    if not last[n]:
        later = brute_force(n, reward, terminal, last, value, discount, lam)
        ahead = (1 - lam) * value[n] + lam * later
    return reward[n] + discount * ahead


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_lambda_return_agrees_with_a_recursion_over_random_episodes(lam):
    rng = np.random.default_rng(0)
    L, N = 16, 40
    reward, value = rng.normal(size=(2, L, N)) * 10
    last = rng.random((L, N)) < 0.2
    terminal = last & (rng.random((L, N)) < 0.5)
    as_tensors = [torch.from_numpy(x.astype(np.float32)) for x in (reward, terminal, last, value)]
    got = lambda_return(*as_tensors, 0.97, lam).numpy()
    for n in range(N):
        column = [x[:, n] for x in (reward, terminal, last, value)]
        want = [brute_force(t, *column, 0.97, lam) for t in range(L - 1)]
        np.testing.assert_allclose(got[:, n], want, rtol=1e-4, atol=1e-4)


def test_lambda_return_mixes_n_step_returns_geometrically():
    rng = np.random.default_rng(1)
    L, lam, discount = 9, 0.8, 0.9
    reward, value = rng.normal(size=(2, L))
    n_step = [
        sum(discount**i * reward[1 + i] for i in range(n)) + discount**n * value[n] for n in range(1, L)
    ]
    want = (1 - lam) * sum(lam**i * g for i, g in enumerate(n_step[:-1])) + lam ** (L - 2) * n_step[-1]
    zeros = torch.zeros(L, 1)
    got = lambda_return(column(reward), zeros, zeros, column(value), discount, lam)[0].item()
    assert got == pytest.approx(want, rel=1e-5)


def test_continuation_probabilities_scale_the_future():
    terminal = (0, 0.25, 0.5, 0)
    r2 = 3 + 30
    r1 = 2 + 0.5 * (0.5 * 20 + 0.5 * r2)
    r0 = 1 + 0.75 * (0.5 * 10 + 0.5 * r1)
    assert by_hand(terminal=terminal, discount=1.0) == pytest.approx([r0, r1, r2])


# return scale


def test_percentiles_interpolate_between_returns():
    scale = ReturnScale(1.0, 0.0, 5.0, 95.0)
    assert scale.update(torch.arange(101.0)).item() == pytest.approx(90)
    assert scale.update(torch.tensor([[0.0], [10.0]])).item() == pytest.approx(9)
    assert scale.value.tolist() == pytest.approx([0.5, 9.5])


def test_percentiles_move_from_zero_at_the_given_rate():
    scale = ReturnScale(0.01, 0.0, 5.0, 95.0)
    returns = torch.arange(101.0) + 100  # 5th percentile 105, 95th 195
    for n in range(1, 4):
        got = scale.update(returns).item()
        kept = 1 - 0.99**n
        assert got == pytest.approx(90 * kept, rel=1e-4)
        assert scale.value.tolist() == pytest.approx([105 * kept, 195 * kept], rel=1e-4)


def test_scale_is_at_least_the_limit():
    scale = ReturnScale(1.0, 1.0, 5.0, 95.0)
    assert scale.update(torch.linspace(0, 0.5, 11)).item() == 1.0
    assert scale.value[1].item() == pytest.approx(0.475)
    assert scale.update(torch.linspace(0, 2, 11)).item() == pytest.approx(1.8)


def test_asked_percentiles_are_used():
    scale = ReturnScale(1.0, 0.0, 10.0, 80.0)
    scale.update(torch.arange(11.0))
    assert scale.value.tolist() == pytest.approx([1, 8])


def test_scale_state_round_trip_continues_identically():
    one, two = ReturnScale(0.1, 0.0, 5.0, 95.0), ReturnScale(0.1, 0.0, 5.0, 95.0)
    one.update(torch.arange(50.0))
    state = one.state_dict()
    two.load_state_dict(state)
    one.update(torch.arange(9.0))
    assert not torch.equal(state["value"], one.value)
    two.update(torch.arange(9.0))
    assert torch.equal(one.value, two.value)

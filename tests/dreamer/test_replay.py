"""Replay against a plain list of every row ever added, filled from a counting environment."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from tests.counting import CountingEnv

from lore.base.types import FLAGS, Latent, ObsSpec
from lore.dreamer.replay import ReplayBuffer, columns
from lore.envs.vector import VectorEnv

ACTIONS, D, S = 5, 3, 2
SPEC = {"count": ObsSpec((4,), dtype="float32")}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def make(ticks=40, N=1, seed=0, spec=SPEC, dtype=torch.float32):
    return ReplayBuffer(ticks * N, N, columns(spec, ACTIONS), D, S, rng(seed), dtype)


def latent_of(tick, N):
    """A latent that says which row it belongs to."""
    number = tick * N + torch.arange(N)
    stoch = torch.stack([number % 7, number % 5], -1).to(torch.uint8)
    return Latent(torch.stack([number.float(), number * 2.0, number * -1.0], -1), stoch)


def play(buffer, ticks, ends="alternate", seed=0):
    """Fill from counting environments under random actions, as training does; the log holds every row."""
    N = buffer.num_envs
    makers = [partial(CountingEnv, tag=i, length=3 + i, ends=ends, spread=3) for i in range(N)]
    vec = VectorEnv(makers, seed, split="train")
    chooser = np.random.default_rng(seed)
    log, obs = [], vec.reset()
    for tick in range(ticks):
        action = chooser.integers(ACTIONS, size=N)
        row = {
            "obs/count": obs["count"],
            "reward": obs["reward"],
            "action": action,
            "beta": np.full(N, tick, np.float32),  # says when the row was added
            **{k: obs[k] for k in FLAGS},
        }
        buffer.add({k: torch.from_numpy(v) for k, v in row.items()}, latent_of(tick, N))
        log.append(row)
        obs = vec.step(action)
    return log


def each(batch):
    """Sequences of a batch as (environment, ticks (T,), index in the batch)."""
    for b in range(len(batch.beta)):
        yield int(batch.obs["count"][b, 0, 0]), batch.beta[b].long().tolist(), b


# alignment


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("ticks", [30, 97])
def test_sampled_rows_are_the_rows_that_were_added(N, ticks):
    buffer = make(N=N)
    log = play(buffer, ticks)
    batch = buffer.sample(64, 6)
    for env, when, b in each(batch):
        assert when == list(range(when[0], when[0] + 6))
        for t, tick in enumerate(when):
            row = {k: v[env] for k, v in log[tick].items()}
            assert batch.obs["count"][b, t].tolist() == row["obs/count"].tolist()
            assert batch.reward[b, t] == row["reward"]
            assert batch.action[b, t] == row["action"]
            assert [getattr(batch, k)[b, t].item() for k in FLAGS] == [row[k] for k in FLAGS]


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("ticks", [30, 97])
def test_previous_action_and_context_are_those_of_the_row_before(N, ticks):
    buffer = make(N=N)
    log = play(buffer, ticks)
    batch = buffer.sample(64, 6)
    assert torch.equal(batch.prev_action[:, 1:], batch.action[:, :-1])
    for env, when, b in each(batch):
        before = when[0] - 1
        assert batch.prev_action[b, 0] == log[before]["action"][env]
        assert batch.context.deter[b, 0] == before * N + env
        assert batch.context.stoch[b].tolist() == [(before * N + env) % 7, (before * N + env) % 5]


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("ends", ["terminal", "timeout", "alternate"])
def test_rows_tell_the_story_of_the_counting_environment(N, ends):
    buffer = make(N=N)
    play(buffer, 97, ends)
    batch = buffer.sample(256, 8)
    tag, seed, t, last = batch.obs["count"].unbind(-1)
    first = batch.is_first
    assert torch.equal(first, t == 0) and torch.equal(first, last == -1)
    assert (batch.reward[first] == 0).all()
    # what a row shows and pays follows from the action one row earlier
    torch.testing.assert_close(last[~first], batch.prev_action[~first].float())
    torch.testing.assert_close(batch.reward[~first], t[~first] + batch.prev_action[~first] / 10)
    # steps count on inside an episode, seed and tag stay
    inside = ~first[:, 1:]
    assert ((t[:, 1:] - t[:, :-1])[inside] == 1).all()
    assert (seed[:, 1:] == seed[:, :-1])[inside].all() and (tag[:, 1:] == tag[:, :-1]).all()
    # a first row follows a last row and nothing else does
    assert torch.equal(batch.is_last[:, :-1], first[:, 1:])
    if ends == "terminal":
        assert torch.equal(batch.is_terminal, batch.is_last)
    elif ends == "timeout":
        assert not batch.is_terminal.any() and batch.is_last.any()
    else:
        assert (batch.is_last & ~batch.is_terminal).any() and (batch.is_terminal <= batch.is_last).all()
        assert batch.is_terminal.any()


def test_types_are_those_of_the_batch():
    buffer = make(N=3)
    play(buffer, 20)
    batch = buffer.sample(4, 6)
    assert batch.action.dtype == batch.prev_action.dtype == batch.index.dtype == torch.long
    assert batch.is_first.dtype == batch.is_last.dtype == batch.is_terminal.dtype == torch.bool
    assert batch.context.stoch.dtype == torch.uint8 and batch.reward.dtype == torch.float32
    assert batch.obs["count"].shape == (4, 6, 4) and batch.prior.shape == batch.mask.shape == (4, 6, ACTIONS)


def test_advice_columns_come_back_as_written():
    buffer = make(N=2)
    rows = []
    for tick in range(12):
        g = rng(tick)
        row = {
            "prior": torch.rand(2, ACTIONS, generator=g),
            "mask": torch.rand(2, ACTIONS, generator=g) < 0.5,
            "source": torch.randint(9, (2,), generator=g, dtype=torch.uint8),
            "beta": torch.rand(2, generator=g),
        }
        buffer.add(row, latent_of(tick, 2))
        rows.append(row)
    batch = buffer.sample(8, 4)
    for b in range(8):
        for t in range(4):
            tick, env = divmod(batch.index[b, t].item(), 2)
            for key in ("prior", "mask", "source", "beta"):
                assert torch.equal(getattr(batch, key)[b, t], rows[tick][key][env])


def test_columns_left_out_are_zero_even_over_an_old_row():
    buffer = make(ticks=5)
    ones = {k: torch.ones(1, *shape).to(kind) for k, (shape, kind) in columns(SPEC, ACTIONS).items()}
    for tick in range(7):
        buffer.add(ones, latent_of(tick, 1))
    for tick in range(7, 12):
        buffer.add({"reward": torch.ones(1)}, latent_of(tick, 1))
    for key, value in buffer.rows(7, 12).items():
        assert value.all() if key == "reward" else not value.any(), key


def test_a_sample_is_a_copy():
    buffer = make()
    play(buffer, 20)
    batch = buffer.sample(4, 6)
    before = batch.obs["count"].clone()
    for value in buffer.static.values():
        value.zero_()
    assert torch.equal(batch.obs["count"], before)


# the ring


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("ticks", [11, 20, 21, 53, 60])
def test_sequences_never_straddle_the_write_head(N, ticks):
    buffer = make(ticks=20, N=N)
    play(buffer, ticks)
    held = range(max(0, ticks - 20), ticks)
    seen = set()
    for _ in range(20):
        for _, when, _ in each(buffer.sample(32, 9)):
            assert when == list(range(when[0], when[0] + 9))
            assert when[0] - 1 in held and when[-1] in held  # context included
            seen.add(when[0])
    assert seen == set(range(held[0] + 1, held[-1] - 7))  # from the oldest possible to the newest


def test_length_counts_rows_held():
    buffer = make(ticks=20, N=3)
    lengths = []
    for _ in range(22):
        buffer.add({}, latent_of(0, 3))
        lengths.append(len(buffer))
    assert lengths == [3 * min(t, 20) for t in range(1, 23)]


def test_capacity_is_in_steps_summed_over_environments():
    assert ReplayBuffer(100, 3, columns(SPEC, ACTIONS), D, S, rng()).ticks == 33


def test_all_starts_and_environments_are_equally_likely():
    buffer = make(ticks=12, N=3)
    play(buffer, 30)
    counts = np.zeros((12 - 5, 3))
    for _ in range(20):
        for env, when, _ in each(buffer.sample(500, 5)):
            counts[when[0] - 19, env] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_sampling_follows_its_generator():
    one, two, other = make(seed=1), make(seed=1), make(seed=2)
    for buffer in (one, two, other):
        play(buffer, 30)
    indices = [buffer.sample(16, 4).index for buffer in (one, two, other)]
    assert torch.equal(indices[0], indices[1]) and not torch.equal(indices[0], indices[2])


@pytest.mark.parametrize("N", [1, 3])
def test_too_few_rows_for_a_sequence_and_its_context_is_an_error(N):
    buffer = make(N=N)
    play(buffer, 6)
    with pytest.raises(ValueError, match="6 ticks"):
        buffer.sample(2, 6)
    play(buffer, 1)
    assert buffer.sample(2, 6).reward.shape == (2, 6)


def test_an_unknown_column_is_an_error():
    with pytest.raises(KeyError, match="colour"):
        make().add({"colour": torch.zeros(1)}, latent_of(0, 1))


# refreshed latents


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("ticks", [15, 53])
def test_refresh_writes_to_the_rows_of_the_batch_and_no_other(N, ticks):
    buffer = make(ticks=20, N=N)
    play(buffer, ticks)
    batch = buffer.sample(2, 4)
    fresh = Latent(
        1000 + torch.arange(2 * 4 * D).float().view(2, 4, D),
        100 + torch.arange(2 * 4 * S).view(2, 4, S).to(torch.uint8),
    )
    sampled = {}
    for env, when, b in each(batch):
        for t, tick in enumerate(when):
            sampled.setdefault((tick, env), []).append((fresh.deter[b, t], fresh.stoch[b, t]))
    buffer.refresh(batch.index, fresh)
    for tick in range(max(0, ticks - 20), ticks):
        old = latent_of(tick, N)
        for env in range(N):
            deter, stoch = (buffer.latents[k][tick % 20, env] for k in ("deter", "stoch"))
            choices = sampled.get((tick, env), [(old.deter[env], old.stoch[env])])
            assert any(torch.equal(deter, d) and torch.equal(stoch, s) for d, s in choices)


def test_a_refreshed_latent_is_the_context_of_the_next_row():
    buffer = make(ticks=6)
    play(buffer, 6)
    batch = buffer.sample(1, 5)  # rows 1 to 5, the only choice
    fresh = Latent(torch.full((1, 5, D), 7.0), torch.full((1, 5, S), 3, dtype=torch.uint8))
    buffer.refresh(batch.index, fresh)
    starts = {}
    for _ in range(50):
        again = buffer.sample(1, 2)
        starts[int(again.beta[0, 0])] = again.context.deter[0].tolist()
    assert starts == {1: [0.0, 0.0, 0.0], 2: [7.0] * 3, 3: [7.0] * 3, 4: [7.0] * 3}


def test_latents_are_kept_in_the_compute_type():
    buffer = make(dtype=torch.bfloat16)
    play(buffer, 10)
    buffer.refresh(
        torch.tensor([[0]]),
        Latent(torch.ones(1, 1, D, dtype=torch.bfloat16), torch.ones(1, 1, S, dtype=torch.uint8)),
    )
    assert buffer.sample(1, 2).context.deter.dtype == torch.bfloat16


# resuming


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("ticks", [13, 53])
def test_rows_give_ticks_in_order(N, ticks):
    buffer = make(ticks=20, N=N)
    log = play(buffer, ticks)
    start = max(0, ticks - 20)
    rows = buffer.rows(start, ticks)
    for key in log[0]:
        want = np.stack([log[t][key] for t in range(start, ticks)])
        np.testing.assert_array_equal(rows[key].numpy(), want)


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("ticks", [13, 20, 53])
def test_resumed_replay_samples_and_fills_as_the_uninterrupted_one(N, ticks, tmp_path):
    """Rows are saved in pieces as they come, as checkpoints do; the oldest reaches behind those held."""
    buffer, pieces = make(ticks=20, N=N), {}
    log = play(make(ticks=20, N=N), ticks)
    for tick, row in enumerate(log):
        buffer.add({k: torch.from_numpy(v) for k, v in row.items()}, latent_of(tick, N))
        if tick % 6 == 5 or tick == ticks - 1:
            start = tick // 6 * 6
            pieces[start] = buffer.rows(start, tick + 1)
    batch = buffer.sample(4, 5)
    buffer.refresh(batch.index, Latent(torch.rand(4, 5, D), torch.zeros(4, 5, S, dtype=torch.uint8)))
    torch.save(buffer.state_dict(), tmp_path / "latents.pt")
    resumed = make(ticks=20, N=N)
    resumed.load_state_dict(torch.load(tmp_path / "latents.pt", weights_only=True))
    for start, rows in pieces.items():
        if start + 6 > ticks - 20:
            resumed.load_rows(start, rows)
    resumed.rng.set_state(buffer.rng.get_state())
    assert len(resumed) == len(buffer)
    for _ in range(2):
        for one in (buffer, resumed):
            play(one, 7, seed=1)
        x, y = buffer.sample(16, 5), resumed.sample(16, 5)
        for key in ("action", "prev_action", "reward", "is_first", "is_last", "is_terminal", "index", "beta"):
            assert torch.equal(getattr(x, key), getattr(y, key)), key
        assert torch.equal(x.obs["count"], y.obs["count"])
        assert torch.equal(x.context.deter, y.context.deter)
        assert torch.equal(x.context.stoch, y.context.stoch)


def test_rows_of_other_columns_are_refused():
    rows = make().rows(0, 2)
    other = make(spec={"image": ObsSpec((4,), dtype="float32")})
    with pytest.raises(KeyError, match="columns"):
        other.load_rows(0, rows)


def test_saved_rows_are_a_copy():
    buffer = make(ticks=5)
    play(buffer, 5)
    rows = buffer.rows(0, 5)
    before = rows["reward"].clone()
    play(buffer, 5, seed=3)
    assert torch.equal(rows["reward"], before)


def test_state_holds_the_latents_of_the_rows_held_and_the_count():
    buffer = make(ticks=5, N=3)
    play(buffer, 3)
    state = buffer.state_dict()
    assert state.keys() == {"total", "deter", "stoch"} and state["total"] == 3
    assert state["deter"].shape == (3, 3, D) and state["stoch"].shape == (3, 3, S)


def won_at(buffer: ReplayBuffer, ticks: dict[int, int], count: int) -> None:
    """Fill with `count` ticks; ticks: which tick holds a success -> in which environment."""
    for t in range(count):
        won = torch.tensor([ticks.get(t) == n for n in range(buffer.num_envs)])
        latent = Latent(torch.zeros(buffer.num_envs, 2), torch.zeros(buffer.num_envs, 1, dtype=torch.uint8))
        buffer.add({"success": won, "reward": torch.full((buffer.num_envs,), float(t))}, latent)


def small(capacity: int, envs: int, seed: int = 0) -> ReplayBuffer:
    spec = {"x": ObsSpec((1,), dtype="float32")}
    return ReplayBuffer(capacity, envs, columns(spec, 3), 2, 1, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [40, 90])
@pytest.mark.parametrize("bias", [0.25, 1.0])
def test_the_share_of_sequences_that_hold_a_success_is_the_bias(count: int, bias: float) -> None:
    """Before and after the ring of 50 ticks wraps around; the first tick held can only be context."""
    buffer = small(100, 2)
    last = {count - 30: 0, count - 20: 1}
    won_at(buffer, last, count)
    batch = buffer.sample(4000, 4, bias)
    holds = batch.success.any(1)
    starts = (min(count, 50) - 4) * 2
    by_chance = 2 * 4 / starts
    assert holds.float().mean().item() == pytest.approx(bias + (1 - bias) * by_chance, abs=0.03)
    ticks = {int(t) for t in batch.reward[batch.success]}
    assert ticks == set(last)
    if bias == 1.0:  # uniform over the starts that hold one: each place in the sequence, each success
        places = batch.success.float().mean(0)
        assert places.tolist() == pytest.approx([0.25] * 4, abs=0.04)


def test_a_success_that_only_one_sequence_holds_is_found() -> None:
    buffer = small(200, 1)
    won_at(buffer, {1: 0}, 200)
    batch = buffer.sample(8, 64, 1.0)
    assert batch.success[:, 0].all() and (batch.reward[:, 0] == 1).all()


def test_without_a_success_the_biased_draw_is_the_uniform_one() -> None:
    one, other = small(100, 2), small(100, 2)
    won_at(one, {}, 60)
    won_at(other, {}, 60)
    assert torch.equal(one.sample(50, 5, 1.0).index, other.sample(50, 5).index)


def test_the_biased_draw_goes_on_after_rows_are_stored_and_loaded() -> None:
    buffer, copy = small(100, 2), small(100, 2)
    won_at(buffer, {70: 1, 80: 0}, 90)
    start = buffer.total - buffer.filled
    copy.load_rows(start, buffer.rows(start, buffer.total))
    copy.load_state_dict(buffer.state_dict())
    assert torch.equal(buffer.sample(50, 5, 0.5).index, copy.sample(50, 5, 0.5).index)


# rows of episodes that were won


def story(ticks: int, envs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Episodes of 1 to 9 rows and one of 30, half of them won: where they begin and where they succeed."""
    draw = np.random.default_rng(seed)
    first, success = np.zeros((ticks, envs), bool), np.zeros((ticks, envs), bool)
    for env in range(envs):
        begin = 0
        while begin < ticks:
            first[begin, env] = True
            begin += 30 if begin and not first[:begin, env].sum() % 7 else int(draw.integers(1, 10))
            if begin <= ticks and draw.random() < 0.5:
                success[begin - 1, env] = True
    return first, success


def won_rows(first: np.ndarray, success: np.ndarray) -> np.ndarray:
    """Which rows are of an episode that was won by the last tick, found backwards."""
    won = np.zeros_like(first)
    for env in range(first.shape[1]):
        wins = False
        for t in reversed(range(len(first))):
            wins = bool(success[t, env]) if t + 1 == len(first) or first[t + 1, env] else wins
            won[t, env] = wins
    return won


def tell(buffer: ReplayBuffer, first: np.ndarray, success: np.ndarray) -> None:
    """Add the rows; the reward says the tick."""
    start = buffer.total
    for t, row in enumerate(zip(first, success, strict=True), start):
        latent = Latent(torch.zeros(buffer.num_envs, 2), torch.zeros(buffer.num_envs, 1, dtype=torch.uint8))
        flags = {name: torch.from_numpy(x) for name, x in zip(("is_first", "success"), row, strict=True)}
        buffer.add({**flags, "reward": torch.full((buffer.num_envs,), float(t))}, latent)


def held_won(buffer: ReplayBuffer) -> np.ndarray:
    """`won` of the ticks held, oldest first."""
    slots = torch.arange(buffer.total - buffer.filled, buffer.total) % buffer.ticks
    return buffer.won[slots].numpy()


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("ticks", [1, 19, 20, 21, 47, 100])
def test_won_marks_the_rows_of_episodes_that_ended_with_a_success_and_no_other(envs: int, ticks: int) -> None:
    """Before and after the ring of 20 ticks wraps around, in which an episode of 30 fills it whole."""
    first, success = story(100, envs)
    first, success = first[:ticks], success[:ticks]
    buffer, want = small(20 * envs, envs), won_rows(first, success)
    for t in range(ticks):
        tell(buffer, first[t : t + 1], success[t : t + 1])
        now = won_rows(first[: t + 1], success[: t + 1])[max(0, t - 19) :]
        np.testing.assert_array_equal(held_won(buffer), now)
    if ticks < 6:
        return
    batch = buffer.sample(200, 4)
    env = batch.index % envs
    tick = batch.reward.long()
    assert torch.equal(batch.won, torch.from_numpy(want)[tick, env])
    assert ticks != 100 or 0 < batch.won.float().mean() < 1


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("ticks", [13, 20, 33, 61])
def test_won_is_derived_again_after_a_resume_and_goes_on(envs: int, ticks: int) -> None:
    first, success = story(100, envs)
    whole, other = small(20 * envs, envs), small(20 * envs, envs)
    tell(whole, first[:ticks], success[:ticks])
    tell(other, *story(90, envs, seed=1))  # what a damaged checkpoint had left in it
    start = whole.total - whole.filled
    assert "won" not in whole.rows(start, ticks) and "won" not in whole.state_dict()
    other.load_rows(start, whole.rows(start, ticks))
    other.load_state_dict(whole.state_dict())
    np.testing.assert_array_equal(held_won(other), held_won(whole))
    for buffer in (whole, other):
        for t in range(ticks, 100):
            tell(buffer, first[t : t + 1], success[t : t + 1])
    np.testing.assert_array_equal(held_won(other), held_won(whole))
    np.testing.assert_array_equal(held_won(whole), won_rows(first, success)[-20:])

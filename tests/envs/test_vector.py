from functools import partial

import numpy as np
import pytest
from tests.counting import CountingEnv

from lore.config.options import EnvOptions
from lore.envs import VectorEnv, episode_seed, make_vec


def counting(lengths, seed=0, split="train", **kwargs):
    return VectorEnv(
        [partial(CountingEnv, tag=i, length=n, **kwargs) for i, n in enumerate(lengths)], seed, split=split
    )


def roll(vec, steps, seed=0):
    """Rows and the actions chosen at them: obs key -> (T + 1, N, ...), actions (T, N)."""
    rng = np.random.default_rng(seed)
    rows, actions = [vec.observation or vec.reset()], []
    for _ in range(steps):
        actions.append(rng.integers(vec.num_actions, size=vec.num_envs))
        rows.append(vec.step(actions[-1]))
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}, np.array(actions)


@pytest.mark.parametrize("lengths", [(3,), (1,), (2, 3, 5)])
@pytest.mark.parametrize("ends", ["terminal", "timeout", "alternate"])
def test_actions_rewards_and_flags_stay_aligned(lengths, ends):
    vec = counting(lengths, ends=ends)
    rows, actions = roll(vec, 40)
    for i, length in enumerate(lengths):
        tag, _, t, last = rows["count"][:, i].T
        period = np.arange(41) % (length + 1)  # length transitions and one reset row
        assert (tag == i).all()
        np.testing.assert_array_equal(t, period)
        np.testing.assert_array_equal(rows["is_first"][:, i], period == 0)
        np.testing.assert_array_equal(rows["is_last"][:, i], period == length)
        inside = period[1:] > 0
        np.testing.assert_array_equal(last[1:][inside], actions[inside, i])  # the action of the row before
        assert (last[1:][~inside] == -1).all()  # the action at a last row went nowhere
        expected = np.where(period == 0, 0, t + np.maximum(last, 0) / 10)
        np.testing.assert_allclose(rows["reward"][:, i], expected.astype(np.float32))
        terminal = rows["is_terminal"][:, i]
        if ends == "alternate":
            seeds = [episode_seed("train", 0, len(lengths), i, e) for e in range(41)]
            timed_out = np.array([seeds[k // (length + 1)] % 2 == 1 for k in range(41)])
            np.testing.assert_array_equal(terminal, (period == length) & ~timed_out)
        else:
            np.testing.assert_array_equal(terminal, (period == length) & (ends == "terminal"))


def test_transitions_and_episodes():
    vec = counting((2, 3), spread=4, seed=7)
    rows, _ = roll(vec, 50)
    assert vec.transitions == int((~rows["is_first"][1:]).sum())
    episodes = vec.pop_episodes()
    assert vec.pop_episodes() == []
    assert [e.env_step for e in episodes] == sorted(e.env_step for e in episodes)
    assert len(episodes) == int(rows["is_last"].sum())
    for i in range(2):
        mine = [e for e in episodes if e.env == i]
        assert [e.episode for e in mine] == list(range(len(mine)))
        ends = np.flatnonzero(rows["is_last"][:, i])
        starts = np.flatnonzero(rows["is_first"][:, i])
        for episode, start, end in zip(mine, starts, ends, strict=False):
            assert episode.seed == episode_seed("train", 7, 2, i, episode.episode)
            assert episode.layout == f"{episode.seed % 1000:03d}"
            assert episode.length == end - start == vec.envs[i].episode_length(episode.seed)
            assert episode.return_ == pytest.approx(rows["reward"][start : end + 1, i].sum(), rel=1e-5)
            assert episode.return_ == episode.shaped_return and episode.success
            assert episode.env_step == int((~rows["is_first"][1 : end + 1]).sum())


def test_reset_starts_anew_and_arms_are_recorded():
    vec = counting((2, 3))
    vec.reset()
    vec.advisers[1] = "advised"
    for _ in range(3):
        vec.step(np.zeros(2, np.int64))
    assert [(e.env, e.adviser) for e in vec.pop_episodes()] == [(0, "none"), (1, "advised")]
    obs = vec.reset()
    assert vec.transitions == 0 and obs["is_first"].all() and vec.finished == []


def test_wrong_calls():
    vec = counting((2, 3))
    with pytest.raises(RuntimeError):
        vec.step(np.zeros(2, np.int64))
    with pytest.raises(RuntimeError):
        vec.state_dict()
    vec.reset()
    for bad in (np.zeros(3, np.int64), np.zeros((), np.int64), np.array([5, 0]), np.array([-1, 0])):
        with pytest.raises(ValueError, match="action"):
            vec.step(bad)
    with pytest.raises(ValueError, match="split"):
        counting((2,), split="test")
    with pytest.raises(ValueError, match="share"):
        VectorEnv([CountingEnv, partial(CountingEnv, actions=3)], 0, split="train")


def test_training_and_evaluation_seeds_are_disjoint_and_distinct():
    train = {episode_seed("train", s, 4, e, k) for s in range(5) for e in range(4) for k in range(50)}
    evals = {episode_seed("eval", 0, 1, 0, k) for k in range(1000)}
    assert len(train) == 1000 and len(evals) == 1000
    assert max(train) < 2**31 <= min(evals)


def test_evaluation_set_does_not_depend_on_run_seed_or_num_envs():
    wanted = [episode_seed("eval", 0, 1, 0, k) for k in range(100)]
    for n, seed in ((1, 3), (4, 0), (7, 5), (25, 9)):
        vec = counting((2,) * n, seed=seed, split="eval")
        roll(vec, 3 * 101 if n == 1 else 3 * (100 // n + 2))
        got = {e.episode * n + e.env: e.seed for e in vec.pop_episodes()}
        assert [got[k] for k in range(100)] == wanted


STATES = [
    EnvOptions(id="MiniGrid-DoorKey-5x5-v0", max_steps=17),
    EnvOptions(id="MiniGrid-DoorKey-5x5-v0", shaping=0.5, actions="useful"),
    EnvOptions(id="MiniGrid-ObstructedMaze-1Dlh-v0"),
    EnvOptions(id="MiniGrid-Dynamic-Obstacles-Random-5x5-v0"),
    EnvOptions(id="MiniGrid-Dynamic-Obstacles-6x6-v0", shaping=1.0),
    EnvOptions(id="BabyAI-UnlockPickup-v0"),
    EnvOptions(id="BabyAI-UnlockPickup-v0", shaping=0.3, max_steps=11),
    EnvOptions(id="BabyAI-GoToSeqS5R2-v0", timeout="terminal", clock=True),
]


@pytest.mark.parametrize("options", STATES, ids=lambda o: f"{o.id}-{o.shaping}")
@pytest.mark.parametrize("obs", ["symbolic", "raw147", "rgb64"])
def test_resumed_in_the_middle_goes_on_the_same(options, obs):
    def make():
        return make_vec(options, obs, 3, 11, split="train")

    first = make()
    roll(first, 41, seed=1)
    first.pop_episodes()
    roll(first, 10, seed=2)
    first.advisers[2] = "x"
    state = first.state_dict()
    for second in (make(), first):
        if second is first:
            ahead, _ = roll(first, 60, seed=3)
            done = first.pop_episodes()
        second.load_state_dict(state)
        assert second.state_dict() == state
        rows, _ = roll(second, 60, seed=3)
        if second is not first:
            other, other_done, other_count = rows, second.pop_episodes(), second.transitions
    for key, value in ahead.items():
        np.testing.assert_array_equal(value, other[key])
        np.testing.assert_array_equal(value, rows[key])
    assert done == other_done == first.pop_episodes() and other_count == first.transitions


def test_resume_at_every_moment_of_an_episode():
    for steps in range(9):
        vec = counting((2, 3), ends="alternate")
        roll(vec, steps)
        state = vec.state_dict()
        other = counting((2, 3), ends="alternate")
        other.load_state_dict(state)
        for key, value in vec.observation.items():
            np.testing.assert_array_equal(value, other.observation[key])
        a, b = roll(vec, 7, seed=5)[0], roll(other, 7, seed=5)[0]
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
        assert vec.pop_episodes() == other.pop_episodes()


def test_state_is_plain_and_survives_json():
    import json

    vec = make_vec(EnvOptions(), "symbolic", 2, 0, split="train")
    roll(vec, 400)
    state = json.loads(json.dumps(vec.state_dict()))
    assert state["finished"]
    other = make_vec(EnvOptions(), "symbolic", 2, 0, split="train")
    other.load_state_dict(state)
    assert other.finished == vec.finished


def test_a_state_that_does_not_fit_is_refused():
    vec = make_vec(EnvOptions(), "symbolic", 2, 0, split="train")
    roll(vec, 20)
    state = vec.state_dict()
    with pytest.raises(ValueError, match="repeating"):
        make_vec(EnvOptions(id="MiniGrid-DoorKey-6x6-v0"), "symbolic", 2, 0, split="train").load_state_dict(
            state
        )
    with pytest.raises(ValueError, match="repeating"):
        make_vec(EnvOptions(max_steps=5), "symbolic", 2, 0, split="train").load_state_dict(state)
    with pytest.raises(ValueError, match="seed"):
        make_vec(EnvOptions(), "symbolic", 2, 1, split="train").load_state_dict(state)
    with pytest.raises(ValueError, match="num_envs"):
        make_vec(EnvOptions(), "symbolic", 3, 0, split="train").load_state_dict(state)
    with pytest.raises(ValueError, match="split"):
        make_vec(EnvOptions(), "symbolic", 2, 0, split="eval").load_state_dict(state)

"""env.timeout and env.clock: an episode that its time limit ends for good, and the time left, shown."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from tests.envs.test_own_worlds import WORLD, package  # noqa: F401  (a fixture)

from lore.config.options import EnvOptions
from lore.envs import MODES, VectorEnv, make_env, make_vec
from lore.envs.privileged.shaping import GAMMA

TASKS = [
    EnvOptions(max_steps=17),
    EnvOptions(id="BabyAI-GoToSeqS5R2-v0"),  # its levels set their limit at each reset
    EnvOptions(id="BabyAI-UnlockPickup-v0", max_steps=30),
    EnvOptions(id="MiniGrid-LavaGapS5-v0"),
]


def rows_of(
    options: EnvOptions, obs: str, steps: int, seed: int = 0
) -> tuple[dict[str, np.ndarray], VectorEnv]:
    """Rows of random actions in two environments, key -> (T + 1, 2, ...)."""
    vec = make_vec(options, obs, 2, 5, split="train", remember=True)
    rng, rows = np.random.default_rng(seed), [vec.reset()]
    limits = [[state.max_steps for state in vec.states()]]
    for _ in range(steps):
        rows.append(vec.step(rng.integers(3, size=2)))
        limits.append([state.max_steps for state in vec.states()])
    out = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return out | {"limit": np.array(limits)}, vec


@pytest.mark.parametrize("options", TASKS, ids=lambda options: options.id)
def test_the_clock_is_the_share_of_the_time_left_and_changes_nothing_else(options: EnvOptions) -> None:
    rows, vec = rows_of(replace(options, clock=True), "symbolic", 700)
    plain, plain_vec = rows_of(options, "symbolic", 700)
    step = np.zeros(2)
    for t, first in enumerate(rows["is_first"]):
        step = np.where(first, 0, step + 1)
        left = (rows["limit"][t] - step) / rows["limit"][t]
        np.testing.assert_allclose(rows["clock"][t, :, 0], left, rtol=1e-6)
    assert (len(set(rows["limit"].flat)) > 1) == (options.id == "BabyAI-GoToSeqS5R2-v0")
    clock = rows.pop("clock")
    assert clock.dtype == np.float32 and clock.min() == 0 and clock.max() == 1
    assert rows.keys() == plain.keys()
    for key, value in plain.items():
        np.testing.assert_array_equal(rows[key], value)
    assert vec.pop_episodes() == plain_vec.pop_episodes()


@pytest.mark.parametrize("obs", MODES)
def test_every_mode_has_the_clock(obs: str) -> None:
    env = make_env(EnvOptions(clock=True, max_steps=4), obs)
    without = make_env(EnvOptions(max_steps=4), obs)
    assert env.obs_spec.keys() - without.obs_spec.keys() == {"clock"}
    seen, _ = env.reset(seed=3)
    assert env.observation_space.contains(seen)
    told = [seen["clock"].tolist(), *(env.step(0)[0]["clock"].tolist() for _ in range(4))]
    assert told == [[1.0], [0.75], [0.5], [0.25], [0.0]]


@pytest.mark.parametrize("options", TASKS, ids=lambda options: options.id)
def test_a_terminal_timeout_ends_for_good_and_changes_nothing_else(options: EnvOptions) -> None:
    rows, vec = rows_of(replace(options, timeout="terminal"), "symbolic", 700)
    plain, plain_vec = rows_of(options, "symbolic", 700)
    timed_out = plain["is_last"] & ~plain["is_terminal"]
    assert timed_out.any()
    np.testing.assert_array_equal(rows.pop("is_terminal"), plain.pop("is_terminal") | timed_out)
    for key, value in plain.items():
        np.testing.assert_array_equal(rows[key], value)
    episodes = vec.pop_episodes()
    assert [asdict(e) for e in episodes] == [asdict(e) for e in plain_vec.pop_episodes()]


def test_shaping_ends_in_potential_zero_where_the_timeout_is_terminal() -> None:
    """Discounted, the shaping rewards of any episode sum to -phi(start) = coefficient."""
    env = make_env(EnvOptions(shaping=0.5, max_steps=9, timeout="terminal"), "symbolic")
    for seed in range(5):
        env.reset(seed=seed)
        total, t, terminated = 0.0, 0, False
        while not terminated:
            _, reward, terminated, truncated, info = env.step(seed % 2)
            total += GAMMA**t * (reward - info["raw_reward"])
            t += 1
        assert truncated and t == 9 and total == pytest.approx(0.5)


def test_a_world_of_ones_own_has_both_and_its_registered_limit_counts(package) -> None:  # noqa: F811
    package("timed", f"{WORLD}\ngymnasium.register('Timed-v0', entry_point=World)\n")
    package("limited", f"{WORLD}\ngymnasium.register('Lim-v0', entry_point=World, max_episode_steps=3)\n")
    for env_id, limit in (("timed:Timed-v0", 6), ("limited:Lim-v0", 3)):
        env = make_env(EnvOptions(id=env_id, max_steps=6, timeout="terminal", clock=True), "raw147")
        obs, _ = env.reset(seed=0)
        for step in range(limit):
            assert obs["clock"] == pytest.approx(1 - step / limit)
            obs, _, terminated, truncated, _ = env.step(0)
        assert terminated and truncated and obs["clock"] == 0


def test_an_unknown_timeout_is_refused_by_its_key() -> None:
    with pytest.raises(ValueError, match=r"^env.timeout: 'never' is not known; one of truncate, terminal$"):
        make_env(EnvOptions(timeout="never"), "symbolic")

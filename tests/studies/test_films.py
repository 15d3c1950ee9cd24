"""Films show what happened and what the decoder says, at the right moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lore.base.types import Batch, Latent, ObsSpec
from lore.config.compose import compose
from lore.config.options import Config
from lore.dreamer.agent import DreamerV3Agent
from lore.envs import make_env
from lore.envs.adapter import MiniGridAdapter
from lore.envs.privileged.truth import core, draw
from lore.nn.distributions import symlog
from lore.studies import films
from lore.training.build import build_advised_gate, build_agent

Spec = dict[str, ObsSpec]


def config(obs: str = "symbolic", *overrides: str) -> Config:
    return compose(["+preset=debug", "dtype=float32", f"obs={obs}", "agent.lr=0.003", *overrides])


def recorded(cfg: Config, steps: int, seed: int = 0) -> tuple[films.Recording, MiniGridAdapter]:
    """`steps` random actions in DoorKey, or fewer where the episode ends."""
    env = make_env(cfg.env, cfg.obs)
    recorder = films.Recorder(env)
    recorder.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        _, _, terminated, truncated, _ = recorder.step(int(rng.integers(len(env.action_names))))
        if terminated or truncated:
            break
    return recorder.recording, env


def agent_for(cfg: Config, env: MiniGridAdapter) -> DreamerV3Agent:
    agent = build_agent(cfg, env.obs_spec, len(env.action_names), build_advised_gate(cfg))
    assert isinstance(agent, DreamerV3Agent)
    return agent


class Says(nn.Module):
    """A decoder that answers with `outs`, whatever it is asked, and remembers what that was."""

    def __init__(self, outs: dict[str, Tensor]):
        super().__init__()
        self.outs, self.feat = outs, torch.empty(0)

    def forward(self, feat: Tensor) -> dict[str, Tensor]:
        self.feat = feat
        return self.outs


def panel(frame: np.ndarray, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """The picture of that shape in the middle of a panel."""
    outer = films.PANEL + 2 * films.BORDER
    y = films.HEAD + (outer - shape[0]) // 2
    x = index * outer + (outer - shape[1]) // 2
    return frame[y : y + shape[0], x : x + shape[1]]


def border(frame: np.ndarray, index: int) -> tuple[int, ...]:
    pixel = frame[films.HEAD + 1, index * (films.PANEL + 2 * films.BORDER) + 1]
    return tuple(int(v) for v in pixel)


def test_a_view_is_drawn_as_minigrid_draws_it() -> None:
    cfg = config()
    env = make_env(cfg.env, cfg.obs)
    rng = np.random.default_rng(0)
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        for _ in range(20):
            ours = films.view_of(obs, env.obs_spec)
            assert np.array_equal(ours, core(env).get_pov_render(films.PANEL // 7))
            obs, *_ = env.step(int(rng.integers(7)))


def test_every_code_of_a_cell_can_be_drawn() -> None:
    for corner in np.ndindex(*(films.LIMITS + 1)):
        assert films.draw_view(np.full((7, 7, 3), corner, np.uint8), 28).shape == (28, 28, 3)


def test_a_recorder_changes_nothing_and_keeps_what_belongs_together() -> None:
    cfg = config()
    plain, wrapped = make_env(cfg.env, cfg.obs), make_env(cfg.env, cfg.obs)
    recorder = films.Recorder(wrapped)
    obs, info = plain.reset(seed=3)
    rows = [obs]
    assert recorder.reset(seed=3)[1] == info
    pictures = [draw(plain, films.PANEL)]
    actions = [2, 3, 1, 2, 5, 0, 2]
    for action in actions:
        ours, theirs = plain.step(action), recorder.step(action)
        assert ours[1:] == theirs[1:]
        rows.append(ours[0])
        pictures.append(draw(plain, films.PANEL))
    kept = recorder.recording
    assert kept.actions == actions
    assert len(kept.rewards) == len(kept.terminal) == len(kept.obs) == len(actions) + 1
    for t, row in enumerate(rows):
        assert all(np.array_equal(row[k], kept.obs[t][k]) for k in row)
        assert np.array_equal(kept.picture(t), pictures[t])
    assert pictures[0].shape == (320, 320, 3)


@pytest.mark.slow
def test_the_film_shows_what_the_decoder_says() -> None:
    cfg = config()
    episode, env = recorded(cfg, 9)
    agent, spec = agent_for(cfg, env), env.obs_spec
    rng = np.random.default_rng(1)
    said = {k: rng.integers(s.classes, size=(10, *s.shape)) for k, s in spec.items()}
    for key in ("object", "color", "state"):
        said[key][2] = episode.obs[2][key]  # all right at row 2; at row 3 all but one color
        said[key][3] = episode.obs[3][key]
    said["color"][3][1, 4] = 5 - episode.obs[3]["color"][1, 4]
    outs = {k: nn.functional.one_hot(torch.from_numpy(v), spec[k].classes).float() for k, v in said.items()}
    agent.world_model.decoder = Says(outs)  # type: ignore[assignment]

    dream = films.imagine(agent, spec, episode, seed=0)
    assert all(np.array_equal(dream.obs[k], said[k]) for k in spec)
    same = [[said[k][t] == episode.obs[t][k] for k in ("object", "color", "state")] for t in range(10)]
    right = np.all(same, axis=1).mean((1, 2)).tolist()
    assert dream.accuracy is not None
    assert dream.accuracy.tolist() == pytest.approx(right)
    assert (right[2], right[3]) == (1.0, 48 / 49)

    frames = list(films.imagination_frames(episode, dream, spec, env.action_names))
    assert len(frames) == 10
    for t, frame in enumerate(frames):
        codes = np.stack([said[k][t] for k in ("object", "color", "state")], -1).astype(np.uint8)
        drawn, truth = films.draw_view(codes), films.view_of(episode.obs[t], spec)
        assert np.array_equal(panel(frame, 0, truth.shape), truth)
        assert np.array_equal(panel(frame, 1, drawn.shape), drawn)
        assert border(frame, 1) == (films.SEEN if t < 5 else films.IMAGINED)


def test_it_sees_five_observations_and_then_imagines_with_the_actions_that_were_taken() -> None:
    cfg = config()
    episode, env = recorded(cfg, 12)
    agent, spec = agent_for(cfg, env), env.obs_spec
    heard = Says({k: torch.zeros(13, *s.shape, s.classes) for k, s in spec.items()})
    agent.world_model.decoder = heard  # type: ignore[assignment]

    def first_change(changed: films.Recording) -> int | None:
        films.imagine(agent, spec, episode, 0)
        before = heard.feat
        assert films.imagine(agent, spec, changed, 0).context == 5
        differs = (heard.feat != before).any(-1).tolist()
        return differs.index(True) if any(differs) else None

    def other_row(t: int) -> films.Recording:
        rows = list(episode.obs)
        rows[t] = {k: (v + 1) % spec[k].classes for k, v in rows[t].items()}
        return replace(episode, obs=rows)

    def other_action(t: int) -> films.Recording:
        actions = list(episode.actions)
        actions[t] = (actions[t] + 1) % 7
        return replace(episode, actions=actions)

    assert first_change(episode) is None
    assert first_change(other_row(4)) == 4
    assert [first_change(other_row(t)) for t in range(5, 13)] == [None] * 8
    assert [first_change(other_action(t)) for t in range(12)] == list(range(1, 13))


def test_the_last_imagined_step_is_that_of_the_recurrence() -> None:
    cfg = config()
    episode, env = recorded(cfg, 5)
    agent, spec = agent_for(cfg, env), env.obs_spec
    heard = Says({k: torch.zeros(6, *s.shape, s.classes) for k, s in spec.items()})
    agent.world_model.decoder = heard  # type: ignore[assignment]
    films.imagine(agent, spec, episode, 0)
    rssm, feat = agent.world_model.rssm, heard.feat[4:5]
    action = torch.tensor(episode.actions[4:5])
    deter = rssm.core(feat[:, : rssm.deter], feat[:, rssm.deter :], action, rssm.prepare())
    torch.testing.assert_close(heard.feat[5:, : rssm.deter], deter)


@pytest.mark.parametrize("steps", [1, 5, 60])
def test_length(steps: int) -> None:
    cfg = config()
    episode, env = recorded(cfg, steps)
    assert len(episode.actions) == steps
    dream = films.imagine(agent_for(cfg, env), env.obs_spec, episode, 0)
    assert dream.context == min(5, steps)
    assert len(dream.reward) == len(dream.cont) == min(steps + 1, 50)
    assert dream.accuracy is not None
    assert len(dream.accuracy) == len(dream.reward)


def test_plain_numbers_become_codes_that_exist() -> None:
    spec = {"image": ObsSpec((147,), dtype="float32")}
    numbers = torch.zeros(1, 7, 7, 3)
    numbers[0, 0, 0] = torch.tensor([4.4, 3.6, 1.51])
    numbers[0, 1, 2] = torch.tensor([-3.0, 99.0, 2.6])
    obs = films.likeliest({"image": symlog(numbers).flatten(1)}, spec)
    codes = films.cells(obs, spec)
    assert codes is not None
    assert codes[0, 0, 0].tolist() == [4, 4, 2]
    assert codes[0, 1, 2].tolist() == [0, 5, 2]
    films.draw_view(codes[0])


def test_numbers_and_pixels_are_filmed() -> None:
    for obs in ("raw147", "rgb64"):
        cfg = config(obs)
        episode, env = recorded(cfg, 7)
        dream = films.imagine(agent_for(cfg, env), env.obs_spec, episode, 0)
        assert (dream.accuracy is None) == (obs == "rgb64")
        frames = list(films.imagination_frames(episode, dream, env.obs_spec, env.action_names))
        if obs == "rgb64":
            assert np.array_equal(panel(frames[6], 0, (320, 320))[::5, ::5], episode.obs[6]["image"])
            assert np.array_equal(panel(frames[6], 1, (320, 320))[::5, ::5], dream.obs["image"][6])
        else:
            truth = episode.obs[6]["image"].reshape(7, 7, 3).astype(np.uint8)
            assert np.array_equal(panel(frames[6], 0, (315, 315)), films.draw_view(truth))


@pytest.mark.slow
def test_an_overfitted_model_reconstructs_and_predicts_what_happened() -> None:
    cfg = config("symbolic", "size.units=64", "size.hidden=64", "agent.agc=10")
    episode, env = recorded(cfg, 15)
    agent, spec = agent_for(cfg, env), env.obs_spec
    untrained = films.imagine(agent, spec, episode, 0).accuracy
    batch = batch_of(cfg, episode, spec)
    for _ in range(120):
        agent.update(batch)
    dream = films.imagine(agent, spec, episode, 0)
    assert untrained is not None and dream.accuracy is not None
    assert untrained.mean() < 0.5
    assert dream.accuracy[:5].mean() > 0.95
    assert dream.accuracy[5:].mean() > 0.8
    assert dream.cont.min() > 0.9


def batch_of(cfg: Config, episode: films.Recording, spec: Spec) -> Batch:
    """The whole episode, four times over."""
    B, T = 4, len(episode.obs)

    def row(values: list) -> Tensor:
        return torch.tensor(np.stack(values)).expand(B, T, *np.shape(values[0])).contiguous()

    zeros = torch.zeros(B, T)
    return Batch(
        obs={k: row([o[k] for o in episode.obs]) for k in spec},
        action=row([*episode.actions, 0]),
        prev_action=row([0, *episode.actions]),
        reward=row(episode.rewards).float(),
        is_first=row([True] + [False] * (T - 1)),
        is_last=row([False] * (T - 1) + [True]),
        is_terminal=row(episode.terminal),
        success=zeros.bool(),
        won=zeros.bool(),
        context=Latent(torch.zeros(B, cfg.size.deter), torch.zeros(B, cfg.size.stoch, dtype=torch.uint8)),
        index=torch.arange(B * T).view(B, T),
        prior=torch.zeros(B, T, 7),
        mask=torch.zeros(B, T, 7, dtype=torch.bool),
        confidence=zeros,
        source=zeros.byte(),
        beta=zeros,
        temperature=zeros,
    )


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_a_film_holds_its_frames(tmp_path: Path, ending: str) -> None:
    cfg = config()
    episode, env = recorded(cfg, 6)
    frames = list(films.episode_frames(episode, env.obs_spec, env.action_names))
    assert len(frames) == 7
    path = tmp_path / f"film.{ending}"
    films.write_film(path, iter(frames))
    with imageio.get_reader(path) as film:
        shown = [np.asarray(frame)[..., :3].astype(int) for frame in film]
        if ending == "mp4":
            assert film.get_meta_data()["fps"] == films.FPS
            assert len(shown) == 7 + films.HOLD
        else:
            assert film.get_meta_data(0)["duration"] == 1000 / films.FPS
    assert len(shown) >= 7
    for t, frame in enumerate(frames):
        assert shown[t].shape == frame.shape
        assert np.abs(shown[t] - frame).mean() < 4
    assert np.array_equal(panel(frames[3], 0, (320, 320)), episode.picture(3))

"""Films of episodes, and of what the world model imagines beside what happened.

R rows of an episode (its observations, the first one included), V side of the agent's view.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import WorldObj
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lore.base.rng import generator
from lore.base.types import Carry, GridState, ObsSpec
from lore.dreamer.agent import DreamerV3Agent
from lore.envs.adapter import MiniGridAdapter
from lore.envs.privileged.truth import draw
from lore.nn.distributions import symexp

Obs = dict[str, np.ndarray]

CONTEXT = 5  # observations the world model sees before it imagines
LONGEST = 45  # imagined steps
FPS = 5
HOLD = FPS  # times the last picture is repeated, so that a looping film rests on it
PANEL, BORDER, HEAD, FOOT = 320, 8, 24, 48  # pixels; all even, as H.264 needs
GREY, SEEN, IMAGINED = (70, 70, 70), (70, 130, 230), (240, 140, 40)
TEXT = (235, 235, 235)
LIMITS = np.array([len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX)]) - 1  # largest codes of a cell


@dataclass
class Recording:
    """One episode of R rows.

    Attributes:
        obs: R observations.
        pictures: R pictures of the whole grid, compressed; for humans only.
        shape: Shape of a picture, (H, W, 3).
        actions: R - 1 of them, actions[t] taken at row t.
        rewards: R of them, each came with its row.
        terminal: R of them, whether the row ended the episode for good.
    """

    obs: list[Obs]
    pictures: list[bytes]
    shape: tuple[int, ...]
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=lambda: [0.0])
    terminal: list[bool] = field(default_factory=lambda: [False])

    def picture(self, t: int) -> np.ndarray:
        """Return the whole grid at a row, uint8 (H, W, 3).

        Args:
            t: Number of the row, in [0, R).
        """
        return np.frombuffer(zlib.decompress(self.pictures[t]), np.uint8).reshape(self.shape)


class Recorder:
    """An environment that keeps its latest episode in `recording` and is otherwise the one it wraps."""

    remember = False  # films show the agent alone: no adviser reads a map

    def __init__(self, env: MiniGridAdapter):
        """Wrap an environment.

        Args:
            env: The environment to film.
        """
        self.env, self.obs_spec, self.action_names = env, env.obs_spec, env.action_names
        self.recording: Recording

    @property
    def state(self) -> GridState:
        """What the agent knows now."""
        return self.env.state

    def reset(self, *, seed: int) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode and its recording; see `EpisodicEnv`.

        Args:
            seed: Seed of the episode.
        """
        obs, info = self.env.reset(seed=seed)
        picture = draw(self.env, PANEL)
        self.recording = Recording([obs], [zlib.compress(picture.tobytes(), 1)], picture.shape)
        return obs, info

    def step(self, action: int) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Take an action and record what came of it; see `EpisodicEnv`.

        Args:
            action: Number of the action in `action_names`.
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        kept = self.recording
        kept.obs.append(obs)
        kept.pictures.append(zlib.compress(draw(self.env, PANEL).tobytes(), 1))
        kept.actions.append(action)
        kept.rewards.append(reward)
        kept.terminal.append(terminated)
        return obs, reward, terminated, truncated, info


@dataclass
class Imagination:
    """What the world model makes of the first R rows of an episode.

    Rows before `context` are reconstructions (posterior), the others imagined open loop (prior) with the
    actions that were taken.

    Attributes:
        context: Number of rows that the world model saw.
        obs: Observation key -> (R, *shape), the likeliest.
        reward: Predicted, (R,).
        cont: Predicted probability of going on, (R,).
        accuracy: Share of the V x V cells whose object, color and state are all right, (R,); None for pixels.
    """

    context: int
    obs: Obs
    reward: np.ndarray
    cont: np.ndarray
    accuracy: np.ndarray | None


@torch.no_grad()
def imagine(
    agent: DreamerV3Agent, spec: dict[str, ObsSpec], episode: Recording, seed: int, name: str = "film"
) -> Imagination:
    """Observe the first CONTEXT rows, imagine up to LONGEST more. At least one row is imagined.

    Args:
        agent: The agent whose world model imagines.
        spec: Observation key -> what it is.
        episode: What happened.
        seed: With the name it chooses the random stream that the latents are sampled from.
        name: Name of the random stream.
    """
    model, rng = agent.world_model, generator(seed, name, agent.device)
    context = min(CONTEXT, len(episode.actions))
    rows = min(len(episode.obs), context + LONGEST)
    true = {k: np.stack([o[k] for o in episode.obs[:rows]]) for k in spec}  # (R, *shape)
    seen = {k: torch.from_numpy(v).to(agent.device) for k, v in true.items()}
    actions = torch.tensor([*episode.actions, 0], device=agent.device)  # (>= R,); the last is never used
    carry, feats = agent.initial(1), []
    for t in range(context):
        first = torch.tensor([t == 0], device=agent.device)
        latent, belief = agent.infer(carry, {k: v[t : t + 1] for k, v in seen.items()}, first, rng)
        carry = Carry(latent, actions[t : t + 1])
        feats.append(belief.feat)  # (1, F)
    taken = iter(actions[context - 1 : rows].split(1))
    dream = model.rssm.imagine(feats[-1], lambda _: next(taken), rows - context, rng)
    feat = torch.cat([*feats, dream.feat[1:, 0]])  # (R, F)
    obs = likeliest(model.decoder(feat), spec)
    reward, cont = model.predict(feat)
    codes, true_codes = cells(obs, spec), cells(true, spec)
    right = None
    if codes is not None and true_codes is not None:
        right = np.equal(codes, true_codes).all(-1).mean((1, 2))  # (R,)
    going_on = (cont / model.discount).clamp(max=1.0)  # the head predicts discount * probability
    return Imagination(context, obs, reward.cpu().numpy(), going_on.cpu().numpy(), right)


def likeliest(outs: dict[str, Tensor], spec: dict[str, ObsSpec]) -> Obs:
    """Turn outputs of the decoder into observations: the mode of each distribution.

    Args:
        outs: Observation key -> class logits (R, *shape, K), symlog means (R, *shape) or pixels in [0, 1]
            (R, H, W, C).
        spec: Observation key -> what it is.

    Returns:
        Observation key -> (R, *shape).
    """
    obs = {}
    for key, out in outs.items():
        if spec[key].classes:
            value = out.argmax(-1).to(torch.uint8)
        elif spec[key].is_image:
            value = (out * 255).round().to(torch.uint8)
        else:
            value = symexp(out)
        obs[key] = value.cpu().numpy()
    return obs


def cells(obs: Obs, spec: dict[str, ObsSpec]) -> np.ndarray | None:
    """Read the agent's view from observations.

    Plain numbers (raw147) are rounded and clipped to codes that exist.

    Args:
        obs: Observation key -> (R, *shape).
        spec: Observation key -> what it is.

    Returns:
        Codes of object, color and state, uint8 (R, V, V, 3), indexed [column, row]; None for pixels.
    """
    if "object" in spec:
        return np.stack([obs["object"], obs["color"], obs["state"]], -1)
    if spec["image"].is_image:
        return None
    numbers = obs["image"].reshape(-1, 7, 7, 3)
    return np.clip(np.rint(numbers), 0, LIMITS).astype(np.uint8)


def draw_view(codes: np.ndarray, size: int = PANEL) -> np.ndarray:
    """Draw the agent's view with MiniGrid's tiles.

    Args:
        codes: Codes of object, color and state, (V, V, 3), indexed [column, row].
        size: Largest side of the picture, in pixels; at least V.

    Returns:
        Pixels, uint8 (h, h, 3) with h at most `size`.
    """
    side = len(codes)
    tile = size // side
    picture = np.zeros((side * tile, side * tile, 3), np.uint8)
    for col, row in np.ndindex(side, side):
        code = [int(v) for v in codes[col, row]]
        agent = row == side - 1 and col == side // 2
        picture[row * tile : (row + 1) * tile, col * tile : (col + 1) * tile] = Grid.render_tile(
            WorldObj.decode(*code),
            agent_dir=3 if agent else None,
            highlight=code[0] != OBJECT_TO_IDX["unseen"],
            tile_size=tile,
        )
    return picture


def view_of(obs: Obs, spec: dict[str, ObsSpec]) -> np.ndarray:
    """Draw one observation; the same drawing for what happened and for what was imagined.

    Args:
        obs: Observation key -> (*shape).
        spec: Observation key -> what it is.

    Returns:
        Pixels, uint8 (h, w, 3).
    """
    codes = cells({k: v[None] for k, v in obs.items()}, spec)
    if codes is not None:
        return draw_view(codes[0])
    zoom = PANEL // len(obs["image"])
    return obs["image"].repeat(zoom, 0).repeat(zoom, 1)


def episode_frames(episode: Recording, spec: dict[str, ObsSpec], names: list[str]) -> Iterator[np.ndarray]:
    """Draw the whole grid beside the agent's own view, row by row.

    Args:
        episode: What happened.
        spec: Observation key -> what it is.
        names: Names of the actions.

    Yields:
        One picture for each row, as `frame` makes it.
    """
    for t, obs in enumerate(episode.obs):
        yield frame(
            [("the whole grid", episode.picture(t), GREY), ("what the agent sees", view_of(obs, spec), GREY)],
            [
                _step(episode, t, names),
                f"reward {episode.rewards[t]:.2f}   return {sum(episode.rewards[: t + 1]):.2f}",
            ],
        )


def imagination_frames(
    episode: Recording, dream: Imagination, spec: dict[str, ObsSpec], names: list[str]
) -> Iterator[np.ndarray]:
    """Draw what happened beside what the world model saw or imagined, row by row.

    Args:
        episode: What happened.
        dream: What the world model made of it.
        spec: Observation key -> what it is.
        names: Names of the actions.

    Yields:
        One picture for each row, as `frame` makes it.
    """
    for t in range(len(dream.reward)):
        seen = t < dream.context
        heading = f"reconstructed: it has seen this (row {t + 1} of {dream.context})" if seen else "imagined"
        cells_right = "" if dream.accuracy is None else f"   cells right {dream.accuracy[t]:.0%}"
        yield frame(
            [
                ("what happened", view_of(episode.obs[t], spec), GREY),
                (heading, view_of({k: v[t] for k, v in dream.obs.items()}, spec), SEEN if seen else IMAGINED),
            ],
            [
                _step(episode, t, names) + cells_right,
                f"reward {episode.rewards[t]:.2f}, predicted {dream.reward[t]:.2f}   "
                f"goes on {float(not episode.terminal[t]):.2f}, predicted {dream.cont[t]:.2f}",
            ],
        )


def _step(episode: Recording, t: int, names: list[str]) -> str:
    return f"step {t}   {names[episode.actions[t - 1]] if t else 'start'}"


def frame(panels: list[tuple[str, np.ndarray, tuple[int, int, int]]], lines: list[str]) -> np.ndarray:
    """Set panels side by side over lines of text.

    Args:
        panels: Heading, picture (no side above PANEL pixels) and border color of each panel, left to right.
        lines: Lines of text, at most two.

    Returns:
        Pixels, uint8 (H, W, 3); H and W are even.
    """
    outer = PANEL + 2 * BORDER
    image = Image.new("RGB", (outer * len(panels), HEAD + outer + FOOT))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    for i, (heading, picture, color) in enumerate(panels):
        left = i * outer
        pen.text((left + BORDER, 3), heading, color if color != GREY else TEXT, font)
        pen.rectangle((left, HEAD, left + outer - 1, HEAD + outer - 1), outline=color, width=BORDER - 2)
        height, width = picture.shape[:2]
        corner = (left + (outer - width) // 2, HEAD + (outer - height) // 2)
        image.paste(Image.fromarray(picture), corner)
    for i, line in enumerate(lines):
        pen.text((BORDER, HEAD + outer + 3 + 21 * i), line, TEXT, font)
    return np.asarray(image)


def write_film(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Write a film, picture by picture; the last picture is held.

    Args:
        path: The file; its ending says the format: .mp4 (H.264) or .gif.
        frames: The pictures, uint8 (H, W, 3), all of one size.
    """
    options: dict[str, Any] = {"mode": "I", "duration": 1000 / FPS, "loop": 0}
    if path.suffix == ".mp4":
        options = {"fps": FPS, "codec": "libx264", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    writer: Any
    with imageio.get_writer(path, **options) as writer:
        for picture in frames:
            writer.append_data(picture)
        for _ in range(HOLD):
            writer.append_data(picture)


def write_films(
    agent: DreamerV3Agent,
    recorders: list[Recorder],
    stem: Path,
    ending: str,
    seed: int,
    show: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write two films for each recorded episode: STEM-episode0.ENDING and STEM-imagined0.ENDING, and so on.

    Args:
        agent: Whose world model imagines.
        recorders: With an episode each.
        stem: Folder, and how the names of the files begin.
        ending: mp4 or gif.
        seed: Seed of what is sampled in imagination.
        show: Takes a line about the film under way.

    Returns:
        The files.
    """
    paths: list[Path] = []
    for i, recorder in enumerate(recorders):
        episode, spec, names = recorder.recording, recorder.obs_spec, recorder.action_names
        dream = imagine(agent, spec, episode, seed, f"film/{i}")
        films = {
            "episode": episode_frames(episode, spec, names),
            "imagined": imagination_frames(episode, dream, spec, names),
        }
        for kind, frames in films.items():
            show(f"writing film {len(paths) + 1} of {2 * len(recorders)}")
            paths.append(stem.with_name(f"{stem.name}-{kind}{i}.{ending}"))
            write_film(paths[-1], frames)
    return paths

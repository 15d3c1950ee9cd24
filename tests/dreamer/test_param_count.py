"""Numbers of weights, counted layer by layer from the official networks."""

from pathlib import Path

import pytest
import torch
import yaml

import lore.dreamer.ensembles
import lore.nn.layers
from lore.base.types import ObsSpec
from lore.config.options import AgentOptions, SizeOptions
from lore.dreamer.actor_critic import ActorCritic
from lore.dreamer.world_model import WorldModel

FOLDER = Path(lore.__file__).parent / "conf" / "size"
RAW147 = {"image": ObsSpec((147,), dtype="float32")}
RGB64 = {"image": ObsSpec((64, 64, 3))}
PUBLISHED = {  # name -> deter, hidden, classes, units, depth, from the official configs.yaml
    "1m": (512, 64, 4, 64, 4),
    "12m": (2048, 256, 16, 256, 16),
    "25m": (3072, 384, 24, 384, 24),
    "50m": (4096, 512, 32, 512, 32),
    "100m": (6144, 768, 48, 768, 48),
    "200m": (8192, 1024, 64, 1024, 64),
    "400m": (12288, 1536, 96, 1536, 96),
}


def size(name):
    return SizeOptions(**yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def linear(i, o):
    return i * o + o


def dense(i, o):
    """Linear and the norm's scale."""
    return linear(i, o) + o


def mlp(i, units, layers):
    return dense(i, units) + (layers - 1) * dense(units, units)


def blocks(g, i, o):
    return g * (i // g) * (o // g) + o


def conv(i, o):
    return 25 * i * o + o


def rssm(D, h, z, tokens, actions, g=8):
    dynin = dense(D, h) + dense(z, h) + dense(actions, h)
    dynhid = blocks(g, D + g * 3 * h, D) + D
    gru = blocks(g, D, 3 * D)
    return dynin + dynhid + gru + dense(D + tokens, h) + linear(h, z) + mlp(D, h, 2) + linear(h, z)


def heads(F, u, actions):
    reward, cont = mlp(F, u, 1) + linear(u, 255), mlp(F, u, 1) + linear(u, 1)
    return reward + cont + mlp(F, u, 3) + linear(u, actions) + mlp(F, u, 3) + linear(u, 255)


def raw147(name, actions=7):
    D, h, K, u, _ = PUBLISHED[name]
    z = 32 * K
    decoder = mlp(D + z, u, 3) + linear(u, 147)
    return mlp(147, u, 3) + decoder + rssm(D, h, z, u, actions) + heads(D + z, u, actions)


def rgb64(name, actions=7):
    D, h, K, u, d = PUBLISHED[name]
    z, depths = 32 * K, [2 * d, 3 * d, 4 * d, 4 * d]
    encoder = sum(conv(i, o) + o for i, o in zip([3, *depths[:-1]], depths, strict=True))
    space = 4 * 4 * depths[-1]
    decoder = blocks(8, D, space) + dense(z, 2 * u) + linear(2 * u, space) + depths[-1]
    decoder += sum(conv(i, o) + o for i, o in zip(depths[:0:-1], depths[-2::-1], strict=True))
    decoder += conv(depths[0], 3)
    return encoder + decoder + rssm(D, h, z, space, actions) + heads(D + z, u, actions)


def count(spec, size, monkeypatch):
    """Trained weights of an agent built without memory."""
    monkeypatch.setattr(lore.nn.layers, "trunc_normal", lambda shape, *_: torch.empty(*shape, device="meta"))
    with torch.device("meta"):
        world = WorldModel(spec, 7, AgentOptions(), size, 0)
        behaviour = ActorCritic(world.rssm.features, 7, AgentOptions(), size, 0, torch.float32, "meta")
    return sum(p.numel() for module in (world, behaviour) for p in module.parameters())


def test_size1m_on_raw147_is_the_count_the_official_code_prints(monkeypatch):
    assert count(RAW147, size("1m"), monkeypatch) == 656_473


def test_the_layer_list_gives_the_printed_count():
    assert raw147("1m") == 656_473


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_on_raw147(name, monkeypatch):
    assert count(RAW147, size(name), monkeypatch) == raw147(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_on_rgb64(name, monkeypatch):
    assert count(RGB64, size(name), monkeypatch) == rgb64(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_files_hold_the_published_widths(name):
    s = size(name)
    assert (s.deter, s.hidden, s.classes, s.units, s.depth) == PUBLISHED[name]
    assert (s.stoch, s.blocks) == (32, 8)


def test_default_size_is_size1m():
    assert SizeOptions() == size("1m")


def test_the_optimiser_holds_every_weight_once_and_no_slow_critic():
    from lore.dreamer.agent import DreamerV3Agent

    agent = DreamerV3Agent(RAW147, 7, AgentOptions(), SizeOptions())
    assert agent.optimizer.master.numel() == 656_473
    slow = {id(p) for p in agent.actor_critic.slow.module.parameters()}
    assert not slow & {id(p) for p in agent.optimizer.params}

"""The weights of an agent under the names and in the layouts of danijar/dreamerv3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lore.config.options import AgentOptions, SizeOptions
from lore.dreamer.agent import DreamerV3Agent
from lore.nn.layers import MLP, BlockLinear, Dense, Linear, Norm

SIZE = SizeOptions(deter=32, hidden=8, classes=4, units=8, depth=2, stoch=4, blocks=4)
OPTIONS = AgentOptions(horizon=3, lr=1e-3, warmup=2, bins=31)
"""Size and options of the run that gave parity.npz; what is not named is the default of both codes."""


def _pairs(agent: DreamerV3Agent) -> list[tuple[str, str, nn.Module]]:
    """(official name of the map, official name of its norm, our module): every module that has weights."""
    world, behaviour = agent.world_model, agent.actor_critic
    rssm = world.rssm
    out: list[tuple[str, str, nn.Module]] = [
        ("dyn/dynin0", "dyn/dynin0norm", rssm.in_deter),
        ("dyn/dynin1", "dyn/dynin1norm", rssm.in_stoch),
        ("dyn/dynin2", "dyn/dynin2norm", rssm.in_action),
        ("dyn/dynhid0", "", rssm.core_hidden),
        ("", "dyn/dynhid0norm", rssm.core_norm),
        ("dyn/dyngru", "", rssm.core_gates),
        ("dyn/obs0", "dyn/obs0norm", rssm.posterior_hidden),
        ("dyn/obslogit", "", rssm.posterior_logits),
    ]
    out += _layers(rssm.dynamics_predictor, "dyn/prior{}", "dyn/prior{}norm", "dyn/priorlogit")
    out += _layers(world.encoder.mlp, "enc/mlp{}", "enc/mlp{}norm", "")
    out += _layers(world.decoder.mlp, "dec/mlp/linear{}", "dec/mlp/norm{}", "")
    out += [("dec/vec/cell/logits", "", world.decoder.heads["cell"])]
    out += [("dec/vec/vector/pred", "", world.decoder.heads["vector"])]
    heads = {
        "rew": (world.reward, "logits"),
        "con": (world.cont, "logit"),
        "pol": (behaviour.actor, "action/logits"),
        "val": (behaviour.critic, "logits"),
        "slowval": (behaviour.slow.module, "logits"),
    }
    for name, (mlp, last) in heads.items():
        out += _layers(mlp, f"{name}/mlp/linear{{}}", f"{name}/mlp/norm{{}}", f"{name}/head/{last}")
    return out


def _layers(mlp: nn.Module, dense: str, norm: str, last: str) -> list[tuple[str, str, nn.Module]]:
    assert isinstance(mlp, MLP)
    return [
        (dense.format(i), norm.format(i), layer) if isinstance(layer, Dense) else (last, "", layer)
        for i, layer in enumerate(mlp.layers)
    ]


def official_parameters(agent: DreamerV3Agent) -> dict[str, nn.Parameter]:
    """Official name -> our parameter."""
    out: dict[str, nn.Parameter] = {}
    for name, norm, module in _pairs(agent):
        if isinstance(module, Dense):
            out[f"{norm}/scale"] = module.norm.scale
            module = module.linear
        if isinstance(module, Norm):
            out[f"{norm}/scale"] = module.scale
        else:
            assert isinstance(module, Linear | BlockLinear)
            out[f"{name}/kernel"], out[f"{name}/bias"] = module.weight, module.bias
    return out


def to_official(name: str, ours: Tensor, deter: int) -> Tensor:
    """A weight or gradient in our layout -> in the official one: (in, out), and stoch before deter."""
    if not name.endswith("kernel") or ours.dim() == 3:
        return ours.clone()
    if name == "dec/mlp/linear0/kernel":
        ours = torch.cat([ours[:, deter:], ours[:, :deter]], 1)
    return ours.t().contiguous()


def from_official(name: str, theirs: Tensor, deter: int) -> Tensor:
    """The inverse of `to_official`."""
    if not name.endswith("kernel") or theirs.dim() == 3:
        return theirs.clone()
    if name == "dec/mlp/linear0/kernel":
        stoch = len(theirs) - deter
        theirs = torch.cat([theirs[stoch:], theirs[:stoch]])
    return theirs.t().contiguous()


def official_weights(agent: DreamerV3Agent) -> dict[str, Tensor]:
    """Official name -> weight in the official layout."""
    deter = agent.world_model.rssm.deter
    return {k: to_official(k, p.detach(), deter) for k, p in official_parameters(agent).items()}

"""Small agents and batches, and the networks written out in float64 from the published definitions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lore.base.types import Batch, Latent, ObsSpec
from lore.config.options import AgentOptions, SizeOptions
from lore.dreamer.agent import DreamerV3Agent

TINY = SizeOptions(deter=64, hidden=16, classes=4, units=16, depth=2, stoch=8, blocks=4)
ACTIONS = 5
SPEC = {"cell": ObsSpec((2, 3), classes=4), "vector": ObsSpec((6,), dtype="float32")}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_agent(seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> DreamerV3Agent:
    return DreamerV3Agent(SPEC, ACTIONS, AgentOptions(**options), TINY, seed, dtype=dtype)


def shake(params, seed: int = 0, size: float = 0.2) -> None:
    """Add noise to weights, so that no zero-initialised layer hides a gradient."""
    generator = rng(seed)
    with torch.no_grad():
        for p in params:
            p += size * torch.randn(p.shape, generator=generator)


def shaken_agent(seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> DreamerV3Agent:
    agent = make_agent(seed, dtype, **options)
    shake([agent.optimizer.master], seed)
    agent.optimizer.publish()
    slow = agent.actor_critic.slow
    shake(slow.masters, seed + 1)
    slow.load_state_dict(slow.state_dict())
    return agent


def make_batch(B: int = 3, T: int = 6, seed: int = 0, spec: dict[str, ObsSpec] | None = None) -> Batch:
    """Random sequences in which episodes end, by termination and by time-out, and begin."""
    g = rng(seed)
    obs = {}
    for key, s in (spec or SPEC).items():
        if s.classes:
            obs[key] = torch.randint(s.classes, (B, T, *s.shape), generator=g, dtype=torch.uint8)
        elif s.is_image:
            obs[key] = torch.randint(256, (B, T, *s.shape), generator=g, dtype=torch.uint8)
        else:
            obs[key] = 3 * torch.randn(B, T, *s.shape, generator=g)
    ends = torch.rand(B, T + 1, generator=g) < 0.25
    actions = torch.randint(ACTIONS, (B, T + 1), generator=g)
    index = torch.randint(10_000, (B, 1), generator=g) + torch.arange(T)
    return Batch(
        obs=obs,
        action=actions[:, 1:],
        prev_action=actions[:, :-1],
        reward=torch.randn(B, T, generator=g),
        is_first=ends[:, :-1],
        is_last=ends[:, 1:],
        is_terminal=ends[:, 1:] & (torch.rand(B, T, generator=g) < 0.5),
        won=torch.zeros(B, T, dtype=torch.bool),
        success=torch.zeros(B, T, dtype=torch.bool),
        context=random_latent(B, seed),
        index=index,
        prior=torch.zeros(B, T, ACTIONS),
        mask=torch.zeros(B, T, ACTIONS, dtype=torch.bool),
        confidence=torch.zeros(B, T),
        source=torch.zeros(B, T, dtype=torch.uint8),
        beta=torch.zeros(B, T),
        temperature=torch.zeros(B, T),
    )


def random_latent(n: int, seed: int = 0) -> Latent:
    g = rng(seed + 100)
    stoch = torch.randint(TINY.classes, (n, TINY.stoch), generator=g, dtype=torch.uint8)
    return Latent(torch.rand(n, TINY.deter, generator=g) * 2 - 1, stoch)


# The published networks in float64, as functions of a dict of weights. Nothing of `lore` is called.


def doubles(module: nn.Module, grad: bool = False) -> dict[str, Tensor]:
    return {k: p.detach().double().requires_grad_(grad) for k, p in module.named_parameters()}


def under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix + "."): v for k, v in weights.items() if k.startswith(prefix + ".")}


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def norm(x: Tensor, scale: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-4) * scale


def dense(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.linear.weight"].T + w[f"{name}.linear.bias"]
    return silu(norm(y, w[f"{name}.norm.scale"]))


def mlp(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Weights named layers.I.linear.weight ... and layers.LAST.weight."""
    count = len({k.split(".")[1] for k in w})
    for i in range(count):
        if f"layers.{i}.weight" in w:
            x = x @ w[f"layers.{i}.weight"].T + w[f"layers.{i}.bias"]
        else:
            x = dense(w, f"layers.{i}", x)
    return x


def core(w: dict[str, Tensor], deter: Tensor, stoch: Tensor, action: Tensor, blocks: int) -> Tensor:
    """The block GRU, block by block."""
    shared = [
        dense(w, name, x) for name, x in (("in_deter", deter), ("in_stoch", stoch), ("in_action", action))
    ]
    pieces = deter.chunk(blocks, -1)
    mixed = [torch.cat([piece, *shared], -1) @ w["core_hidden.weight"][g] for g, piece in enumerate(pieces)]
    hidden = silu(norm(torch.cat(mixed, -1) + w["core_hidden.bias"], w["core_norm.scale"]))
    out = []
    bias = w["core_gates.bias"].chunk(blocks)
    for g, (piece, x) in enumerate(zip(pieces, hidden.chunk(blocks, -1), strict=True)):
        reset, candidate, update = (x @ w["core_gates.weight"][g] + bias[g]).chunk(3, -1)
        candidate = torch.tanh(candidate / (1 + torch.exp(-reset)))
        update = 1 / (1 + torch.exp(1 - update))
        out.append(update * candidate + (1 - update) * piece)
    return torch.cat(out, -1)


def probs(logits: Tensor, size: SizeOptions = TINY, mix: float = 0.01) -> Tensor:
    logits = logits.unflatten(-1, (size.stoch, size.classes))
    return (1 - mix) * torch.softmax(logits, -1) + mix / size.classes


def prior(w: dict[str, Tensor], deter: Tensor) -> Tensor:
    return probs(mlp(under(w, "dynamics_predictor"), deter))


def posterior(w: dict[str, Tensor], deter: Tensor, tokens: Tensor) -> Tensor:
    hidden = dense(w, "posterior_hidden", torch.cat([deter, tokens], -1))
    return probs(hidden @ w["posterior_logits.weight"].T + w["posterior_logits.bias"])


def sample(p: Tensor, uniform: Tensor) -> Tensor:
    """p (..., K), uniform (...) -> indices: the first class whose cumulative probability exceeds uniform."""
    return (p.detach().cumsum(-1)[..., :-1] <= uniform.double().unsqueeze(-1)).sum(-1)


def hot(index: Tensor, classes: int) -> Tensor:
    return torch.eye(classes, dtype=torch.float64)[index.long()]

"""DreamerV3 against the official code: losses, gradients and weights of the same updates.

parity.npz holds numbers that danijar/dreamerv3 e3f0224 gave in float32 (jax 0.4.33, CPU) for the weights,
batch and uniform random numbers that are stored with them: the weights of every network, the slow critic
included; losses and gradients of the first update; losses and weights after four. There the samplers were
replaced by the inverse CDF of the stored uniforms; nothing else was changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.dreamer.official import (
    OPTIONS,
    SIZE,
    from_official,
    official_parameters,
    official_weights,
    to_official,
)
from tests.dreamer.samples import ACTIONS, SPEC, make_batch
from torch import Tensor

from lore.base.types import Batch, Latent
from lore.dreamer.agent import DreamerV3Agent
from lore.nn.cpu.native import load_kernels, torch_only

FIXTURE = Path(__file__).with_name("parity.npz")
LOSSES = {"dyn": "dyn", "rep": "rep", "rew": "reward", "con": "cont", "policy": "actor", "value": "critic"}
LOSSES |= {"repval": "replay_critic"}


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    with np.load(FIXTURE) as data:
        return {k: torch.from_numpy(data[k]) for k in data.files}


@pytest.fixture(params=["kernels", "torch"])
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "kernels":
        if load_kernels() is None:
            pytest.skip("no C++ compiler")
        yield
    else:
        with torch_only():
            yield


def under(stored: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}/"): v for k, v in stored.items() if k.startswith(f"{prefix}/")}


@pytest.fixture
def agent(stored: dict[str, Tensor]) -> DreamerV3Agent:
    """An agent with the stored weights."""
    out = DreamerV3Agent(SPEC, ACTIONS, OPTIONS, SIZE)
    parameters, weights = official_parameters(out), under(stored, "weights")
    assert parameters.keys() == weights.keys()
    deter = out.world_model.rssm.deter
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(from_official(name, weights[name], deter))
    slow = out.actor_critic.slow
    slow.load_state_dict([p.detach().clone() for p in slow.module.parameters()])
    return out


@pytest.fixture
def batch(stored: dict[str, Tensor]) -> Batch:
    rows = under(stored, "batch")
    out = make_batch(*rows["is_first"].shape)
    out.obs = under(stored, "obs")
    for name, value in rows.items():
        setattr(out, name, value)
    out.context = Latent(stored["context/deter"], stored["context/stoch"])
    return out


@pytest.fixture
def uniform(
    stored: dict[str, Tensor], agent: DreamerV3Agent, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """The stored uniforms in place of torch.rand, in turn by shape; [update] says of which update."""
    tables, update, taken = under(stored, "uniform"), [0], [0]

    def rand(*shape: int, **_: object) -> Tensor:
        for name in ("posterior", "latent"):
            if shape == tables[name].shape[1:]:
                return tables[name][update[0]]
        taken[0] += 1
        return tables["action"][update[0], (taken[0] - 1) % tables["action"].shape[1]].view(shape)

    monkeypatch.setattr(torch, "rand", rand)
    return update


def close(ours: Tensor, theirs: Tensor, share: float) -> None:
    """Equal to within `share` of the largest entry."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=share * max(float(theirs.abs().max()), 1e-6))


def compare_losses(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    named = {name: theirs[key] for key, name in LOSSES.items()}
    named["obs"] = theirs["cell"] + theirs["vector"]
    assert ours.keys() == named.keys()
    for name, loss in ours.items():
        close(loss.detach(), named[name], 2e-6)


def test_losses_and_gradients(
    stored: dict[str, Tensor], agent: DreamerV3Agent, batch: Batch, uniform: list[int], path: None
) -> None:
    losses, _, _ = agent.losses(batch)
    compare_losses(losses, under(stored, "losses/0"))
    torch.stack([agent.options.scales[k] * v.mean() for k, v in losses.items()]).sum().backward()
    grads, deter = under(stored, "grads"), agent.world_model.rssm.deter
    assert grads.keys() == {k for k in official_parameters(agent) if not k.startswith("slowval/")}
    for name, parameter in official_parameters(agent).items():
        if name in grads:
            assert parameter.grad is not None
            close(to_official(name, parameter.grad, deter), grads[name], 1e-5)


def test_weights_after_four_updates(
    stored: dict[str, Tensor], agent: DreamerV3Agent, batch: Batch, uniform: list[int], path: None
) -> None:
    for update in range(len(stored["uniform/action"])):
        uniform[0] = update
        mean = {k: float(v.mean()) for k, v in under(stored, f"losses/{update}").items()}
        metrics, _ = agent.update(batch)
        for theirs, ours in LOSSES.items():
            assert float(metrics[f"loss/{ours}"]) == pytest.approx(mean[theirs], rel=2e-5, abs=2e-5), ours
    after, weights = under(stored, "after"), official_weights(agent)
    moved = max(float((after[k] - v).abs().max()) for k, v in under(stored, "weights").items())
    assert moved > 1e-3  # four updates that did something
    for name, weight in weights.items():
        close(weight, after[name], 1e-5)
    close(agent.actor_critic.returns.value, stored["return_range"], 1e-5)

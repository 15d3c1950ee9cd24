"""The update on a graphics card; and, without one, that nothing in it waits for a value."""

import pytest
import torch
from tests.dreamer.samples import ACTIONS, SPEC, TINY, make_batch, shaken_agent
from tests.dreamer.test_scan import random_case, run
from torch._subclasses.fake_tensor import FakeTensorMode

from lore.base.types import Batch, Latent
from lore.config.options import AgentOptions
from lore.dreamer.agent import DreamerV3Agent
from lore.nn.cpu.native import torch_only

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")


def each(batch, change):
    """The batch with every tensor changed."""

    def walk(value):
        if isinstance(value, Latent):
            return Latent(change(value.deter), change(value.stoch))
        return {k: change(v) for k, v in value.items()} if isinstance(value, dict) else change(value)

    return Batch(**{name: walk(value) for name, value in vars(batch).items()})


def test_no_value_is_read_on_the_way_through_an_update():
    """Tensors without values: to read one (item, bool, a shape that depends on it) raises."""
    agent, batch = shaken_agent(critic_ensemble=2, disagreement_ensemble=2), make_batch()
    with torch_only(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        metrics, latent = agent.update(each(batch, mode.from_tensor))
    assert latent.deter.shape[:2] == batch.is_first.shape
    assert metrics["loss/disagreement_ensemble"].shape == ()


@cuda
def test_the_scan_on_a_card_is_the_scan_on_the_cpu():
    *tensors, weights = random_case(5, 3, 4, 8, 16, 8, 4)
    want, want_grads = run((*tensors, weights))

    def carry(x):
        return x.detach().cuda().requires_grad_(x.requires_grad)

    got, grads = run((*map(carry, tensors), type(weights)(*map(carry, weights))))
    assert torch.equal(got[3].cpu(), want[3])
    for a, b in zip((*got[:3], *grads), (*want[:3], *want_grads), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_agent_on_a_card_learns_and_the_host_does_not_wait(dtype):
    agent = DreamerV3Agent(SPEC, ACTIONS, AgentOptions(), TINY, device="cuda", dtype=dtype)
    batch = each(make_batch(), lambda x: x.cuda())
    first, _ = agent.update(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(300):
            last, _ = agent.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert last["loss/obs"] < first["loss/obs"]

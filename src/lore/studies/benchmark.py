"""How long a gradient step takes, in seconds and in units of this machine's float32 matrix product."""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from lore.base.allocator import keep_freed_memory
from lore.base.rng import generator
from lore.base.types import Batch, ObsSpec
from lore.config.options import Config
from lore.dreamer.agent import REGION, DreamerV3Agent
from lore.nn.cpu.native import torch_only
from lore.nn.products import ONEDNN
from lore.training.build import build_advised_gate, build_agent, build_replay, compute_type

SPEC = {"image": ObsSpec((147,), 0, "float32")}
ACTIONS = 7
UNIT_SIZE = 1024
WARM_UP, REPEATS = 3, 20
PROFILED = 5  # gradient steps
TRACE = "bench-trace.json"
# getrusage counts bytes on macOS, KiB elsewhere
_RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10


def run_benchmark(cfg: Config, profile: bool = False) -> None:
    """Print the measurement as one JSON object, the last line.

    Args:
        cfg: The options of the agent and of its batches.
        profile: Whether a table by region is printed before, and a trace of every call is written to TRACE.
    """
    row = measure(cfg)
    if profile:
        print(table(cfg, TRACE))
        print(f"trace for chrome://tracing or ui.perfetto.dev: {TRACE}")
    print(f"{row['median_s']} s a gradient step, {row['matmul_units']} matmul units", file=sys.stderr)
    print(json.dumps(row))


def measure(cfg: Config, repeats: int = REPEATS) -> dict[str, Any]:
    """Time agent.update on random data of the reference workload's shape, with the replay memory full.

    Unit and step are measured in turn, so that both see the same machine. The unit is one float32 product
    of two 1024 x 1024 matrices on one thread; no precision setting is changed in this process.

    Args:
        cfg: The options of the agent and of its batches.
        repeats: Steps and units that are timed, at least 1; the medians count.

    Returns:
        Values that JSON can hold: workload, device, dtype, size and params; median_s (a gradient step) and
        matmul_s (the unit) in seconds, matmul_units (their ratio), gflop of a gradient step, peak_rss_mb.
    """
    agent, batch = _prepare(cfg)
    wait = torch.cuda.synchronize if agent.device.type == "cuda" else _nothing
    replay = build_replay(cfg, SPEC, ACTIONS, generator(cfg.seed, "replay", cfg.device))
    for store in (*replay.static.values(), *replay.latents.values()):
        store.fill_(1)  # memory counts once it is touched
    matrix = torch.randn(UNIT_SIZE, UNIT_SIZE)
    for _ in range(WARM_UP):
        agent.update(batch)
    steps, units = [], []
    for _ in range(repeats):
        units.append(_seconds(lambda: matrix @ matrix, _nothing))
        steps.append(_seconds(lambda: agent.update(batch), wait))
    step, unit = statistics.median(steps), statistics.median(units)
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # before torch alone takes its own
    return {
        "workload": f"{_shape(cfg)} raw147 {ACTIONS} actions",
        "device": torch.cuda.get_device_name(agent.device) if agent.device.type == "cuda" else "cpu",
        "dtype": compute_type(cfg.dtype, cfg.device),
        "size": f"{cfg.size.deter}/{cfg.size.hidden}/{cfg.size.classes}/{cfg.size.units}",
        "params": sum(agent.optimizer.sizes),
        "median_s": float(f"{step:.4g}"),
        "matmul_s": float(f"{unit:.4g}"),
        "matmul_units": round(step / unit, 2),
        "gflop": float(f"{_count_flops(lambda: agent.update(batch)) / 1e9:.4g}"),
        "peak_rss_mb": round(peak_rss / _RSS_UNITS_PER_MB),
    }


def busy_share(cfg: Config, steps: int = PROFILED) -> float:
    """Measure the share of the wall time of gradient steps in which the device computes.

    Args:
        cfg: The options of the agent and of its batches.
        steps: Gradient steps that are looked at.

    Returns:
        On a card, time in its kernels over wall time; on a CPU, time of this process over wall time.
    """
    agent, batch = _prepare(cfg)
    for _ in range(WARM_UP):
        agent.update(batch)
    if agent.device.type != "cuda":
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            agent.update(batch)
        return (time.process_time() - cpu) / (time.perf_counter() - wall)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        for _ in range(steps):
            agent.update(batch)
        torch.cuda.synchronize()
        wall = time.perf_counter() - started
    return sum(e.self_device_time_total for e in profiler.key_averages()) / 1e6 / wall


def table(cfg: Config, trace: str) -> str:
    """Show where the time of a gradient step goes: by region, and by operation.

    Args:
        cfg: The options of the agent and of its batches.
        trace: File that takes every call, in Chrome's trace format.

    Returns:
        Lines of text.
    """
    agent, batch = _prepare(cfg)
    activities = [ProfilerActivity.CPU]
    if agent.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    for _ in range(WARM_UP):
        agent.update(batch)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED):
            agent.update(batch)
    profiler.export_chrome_trace(trace)
    events = profiler.key_averages()
    whole = sum(e.self_cpu_time_total for e in events)
    regions = [(e.key, e.cpu_time_total, e.count) for e in events if e.key.startswith(REGION)]
    calls = [(e.key, e.self_cpu_time_total, e.count) for e in events if not e.key.startswith(REGION)]
    lines = []
    for title, rows in (("region", regions), ("operation", sorted(calls, key=lambda r: -r[1])[:20])):
        lines.append(f"{title:40s} {'ms a step':>10s} {'share':>7s} {'calls':>7s}")
        for name, micros, count in rows:
            spent, label = micros / PROFILED / 1e3, name.removeprefix(REGION)[:40]
            lines.append(f"{label:40s} {spent:10.2f} {micros / whole:7.1%} {count / PROFILED:7.0f}")
        lines.append("")
    return "\n".join(lines)


def _prepare(cfg: Config) -> tuple[DreamerV3Agent, Batch]:
    keep_freed_memory()
    torch.set_num_threads(cfg.threads)
    agent = build_agent(cfg, SPEC, ACTIONS, build_advised_gate(cfg))
    assert isinstance(agent, DreamerV3Agent)
    return agent, random_batch(agent, cfg)


def _count_flops(work: Callable[[], object]) -> int:
    """Count the operations of products in `work`, done by torch alone: the counter sees into no kernel."""
    with torch_only(), FlopCounterMode(display=False, custom_mapping=FLOPS) as flops:
        work()
    return flops.get_total_flops()


def _linear_flops(
    x: torch.Size, weight: torch.Size, *args: object, out_shape: object = None, **kwargs: object
) -> int:
    return 2 * math.prod(x) * weight[0]


FLOPS = {ONEDNN: _linear_flops} if ONEDNN else {}


def _shape(cfg: Config) -> str:
    return f"{cfg.agent.batch_size}x{cfg.agent.seq_len} H{cfg.agent.horizon}"


def random_batch(agent: DreamerV3Agent, cfg: Config) -> Batch:
    """Draw observations, actions, rewards and episode ends at random, from a fixed seed.

    Args:
        agent: The agent that learns from the batch; the batch is on its device.
        cfg: The options that give B, T.

    Returns:
        A batch (B, T) without advice.
    """
    B, T = cfg.agent.batch_size, cfg.agent.seq_len
    rng = torch.Generator().manual_seed(0)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=rng).to(agent.device)

    ends = integers(50, B, T) == 0
    return Batch(
        obs={"image": integers(11, B, T, 147).float()},
        action=integers(ACTIONS, B, T),
        prev_action=integers(ACTIONS, B, T),
        reward=ends.float(),
        is_first=ends.roll(1, 1),
        is_last=ends,
        is_terminal=ends,
        success=ends,
        won=torch.zeros_like(ends),
        context=agent.initial(B).latent,
        index=torch.arange(B * T, device=agent.device).view(B, T),
        prior=torch.zeros(B, T, ACTIONS, device=agent.device),
        mask=torch.zeros(B, T, ACTIONS, dtype=torch.bool, device=agent.device),
        confidence=torch.zeros(B, T, device=agent.device),
        source=torch.zeros(B, T, dtype=torch.uint8, device=agent.device),
        beta=torch.zeros(B, T, device=agent.device),
        temperature=torch.zeros(B, T, device=agent.device),
    )


def _seconds(work: Callable[[], object], wait: Callable[[], object]) -> float:
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def _nothing() -> None:
    pass

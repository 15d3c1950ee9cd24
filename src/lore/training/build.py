"""From options to objects: one table for each group."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from lore.base.rng import seed_of
from lore.base.types import ObsSpec
from lore.config.options import Config
from lore.dreamer.agent import DreamerV3Agent
from lore.dreamer.replay import ReplayBuffer, columns
from lore.envs.vector import VectorEnv
from lore.gate import Gate, build_gate
from lore.llm.asking.controller import LLMController
from lore.llm.prior_net import PriorNet
from lore.nn.products import BFLOAT16
from lore.training.acting import Guidance
from lore.training.build_adviser import is_advised
from lore.training.families import EnvFamily
from lore.training.learning import GuidedLearning
from lore.training.random_agent import RandomAgent
from lore.training.teaching import build_teacher
from lore.training.trial import Trial, build_trial

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Spec = dict[str, ObsSpec]


def compute_type(dtype: str, device: str) -> str:
    """Choose the compute type of the networks.

    Without AVX-512 torch emulates bfloat16 products, at a tenth of float32's speed.

    Args:
        dtype: float32, bfloat16 or auto: bfloat16 on a GPU and on processors that have it.
        device: cpu, cuda or cuda:N.

    Returns:
        float32 or bfloat16.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if device != "cpu" or BFLOAT16 else "float32"


def _dtype(cfg: Config) -> torch.dtype:
    return DTYPES[compute_type(cfg.dtype, cfg.device)]


def teacher_name(cfg: Config) -> str:
    """Name the teacher of a run.

    Args:
        cfg: The options of the run.

    Returns:
        teach.name; "mix" where gate.mix_in_imagination, its former name, is on; "none" without an adviser.
    """
    if not is_advised(cfg):
        return "none"
    return "mix" if cfg.gate.mix_in_imagination else cfg.teach.name


def build_envs(cfg: Config, family: EnvFamily) -> VectorEnv:
    """Build the training environments of a run.

    Args:
        cfg: The options of the run.
        family: Makes them.
    """
    remember = is_advised(cfg) or cfg.explore.valid_noise
    make = partial(family.make, cfg.env, cfg.obs, remember=remember)
    return VectorEnv([make] * cfg.run.envs, cfg.seed, split="train")


def build_advised_gate(cfg: Config) -> Gate | None:
    """Build the gate of a run.

    Args:
        cfg: The options of the run.

    Returns:
        The gate; None without advice.

    Raises:
        BadInput: `gate.name` is not known.
    """
    return build_gate(cfg.gate, cfg.device) if is_advised(cfg) else None


def _dreamer(cfg: Config, spec: Spec, num_actions: int, gate: Gate | None) -> DreamerV3Agent:
    """The agent; with a gate also the ensembles that the gate reads, and the distilled adviser."""
    options, size = cfg.agent, cfg.size
    read = dict.fromkeys(gate.reads, gate.members) if gate else {}
    if gate and gate.options.veto:
        read["value_var"] = gate.members or gate.options.members
    options = replace(
        options,
        critic_ensemble=options.critic_ensemble or read.get("value_var", 0),
        disagreement_ensemble=options.disagreement_ensemble or read.get("disagreement", 0),
    )
    features = size.deter + size.stoch * size.classes
    heads: dict[str, nn.Module] = {}  # name of a loss -> what learns by it from detached features
    net = guide = None
    if gate and cfg.prior_net.enabled:
        heads["prior_net"] = net = PriorNet(cfg.prior_net, features, num_actions, size.units, cfg.seed)
    if gate:
        teacher = build_teacher(replace(cfg.teach, name=teacher_name(cfg)), options.entropy, net)
        guide = GuidedLearning(gate, net.logits if net else None, options.replay_value, teacher)
    return DreamerV3Agent(spec, num_actions, options, size, cfg.seed, cfg.device, _dtype(cfg), heads, guide)


def _random(cfg: Config, spec: Spec, num_actions: int, gate: Gate | None) -> RandomAgent:
    return RandomAgent(num_actions, cfg.device)


AGENTS: dict[str, Callable[[Config, Spec, int, Gate | None], DreamerV3Agent | RandomAgent]] = {
    "dreamer": _dreamer,
    "random": _random,
    "prior": _random,  # what it does without advice
}


def build_agent(cfg: Config, spec: Spec, num_actions: int, gate: Gate | None) -> DreamerV3Agent | RandomAgent:
    """Build the agent that `agent=NAME` stands for, untrained.

    Args:
        cfg: The options of the run.
        spec: Observation key -> what it is.
        num_actions: A.
        gate: The gate of the run: what `build_advised_gate` gives.
    """
    return AGENTS[cfg.agent.name](cfg, spec, num_actions, gate)


def build_advice_trial(cfg: Config, envs: VectorEnv) -> Trial:
    """Build what decides in which episodes advice may act.

    Args:
        cfg: The options of the run.
        envs: The training environments.

    Raises:
        BadInput: `trial=paired` and the task does not declare the range of its returns.
    """
    rng = random.Random(seed_of(cfg.seed, "trial"))
    return build_trial(cfg.trial, envs.num_envs, rng, envs.return_range)


def build_guidance(
    cfg: Config,
    gate: Gate | None,
    adviser: LLMController | None,
    agent: DreamerV3Agent | RandomAgent,
    rng: torch.Generator,
) -> Guidance | None:
    """Bundle how a policy is advised.

    Args:
        cfg: The options of the run.
        gate: What `build_advised_gate` gives.
        adviser: What `build_adviser` gives.
        agent: With a head prior_net, it also gives the distilled advice.
        rng: Draws the gate's dropout.

    Returns:
        The bundle; None without advice.
    """
    if gate is None or adviser is None:
        return None
    distilled = agent.heads.get("prior_net") if isinstance(agent, DreamerV3Agent) else None
    return Guidance(gate, adviser, distilled, 1.0 - 1.0 / cfg.agent.discount_horizon, rng)


def build_replay(cfg: Config, spec: Spec, num_actions: int, rng: torch.Generator) -> ReplayBuffer:
    """Build an empty replay of cfg.replay.capacity rows on the agent's device.

    Args:
        cfg: The options of the run.
        spec: Observation key -> what it is.
        num_actions: A.
        rng: Draws the sequences; on the agent's device.
    """
    return ReplayBuffer(
        cfg.replay.capacity,
        cfg.run.envs,
        columns(spec, num_actions),
        cfg.size.deter,
        cfg.size.stoch,
        rng,
        _dtype(cfg),
        cfg.device,
    )

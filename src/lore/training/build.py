"""From options to objects: one table for each group."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lore.base.errors import BadInput
from lore.base.files import user_path
from lore.base.rng import seed_of
from lore.base.types import ObsSpec
from lore.config.options import Config, LLMOptions
from lore.dreamer.agent import DreamerV3Agent
from lore.dreamer.replay import ReplayBuffer, columns
from lore.envs.vector import VectorEnv
from lore.gate import Gate, build_gate
from lore.llm.asking.asker import Asker
from lore.llm.asking.breaker import Breaker
from lore.llm.asking.budget import Budget
from lore.llm.asking.cache import AnswerCache
from lore.llm.asking.controller import AskLimits, LLMController
from lore.llm.asking.journal import Journal
from lore.llm.asking.ledger import SweepLedger
from lore.llm.asking.triggers import Triggers
from lore.llm.prior_net import PriorNet
from lore.llm.providers import CorruptedProvider, build_provider, check_provider, may_cost_money
from lore.nn.products import BFLOAT16
from lore.training.acting import Guidance
from lore.training.families import EnvFamily, refuse_what_is_missing
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


def is_advised(cfg: Config) -> bool:
    """Say whether an adviser takes part in a run: there is one, and a gate that lets it.

    Args:
        cfg: The options of the run.
    """
    return cfg.llm.provider != "none" and cfg.gate.name != "none"


def check_plugins(cfg: Config) -> None:
    """Refuse an advised run whose gate or provider cannot work, before anything of it is built or written.

    Args:
        cfg: options of the run.

    Raises:
        BadInput: There is no such gate or provider, it lacks something, the provider's own check refuses, or
            asking would cost money without a limit.
    """
    if is_advised(cfg):
        build_gate(cfg.gate)
        check_provider(cfg.llm)
        _check_budget(may_cost_money(cfg.llm), cfg.llm)


def _check_budget(paid: bool, llm: LLMOptions) -> None:
    if paid and llm.budget_total is None and llm.budget_usd is None:
        raise BadInput("llm.budget_usd", "is needed: without llm.budget_total every ask costs money")


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
    advised = is_advised(cfg)
    remember = advised or cfg.explore.valid_noise
    make = partial(family.make, cfg.env, cfg.obs, remember=remember)
    envs = VectorEnv([make] * cfg.run.envs, cfg.seed, split="train")
    envs.advisers = [cfg.llm.provider if advised else "none"] * cfg.run.envs
    return envs


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


def open_cache(path: str | None, say: Callable[[str], None]) -> AnswerCache | None:
    """Open the store of answers that runs share.

    Args:
        path: `llm.cache`. The default is a convenience: where it cannot be had (no home folder, or one that
            is read-only or without locks), the run goes on without, which is said.
        say: Takes a line for the user.

    Returns:
        The cache; None for null, and where the default cannot be had.

    Raises:
        BadInput: Another path than the default cannot be used.
    """
    if path is None:
        return None
    try:
        return AnswerCache(user_path(path, "llm.cache"), say)
    except BadInput as error:
        if path != LLMOptions.cache:
            raise
        say(f"{error}; going on without a cache of answers (llm.cache=FILE names another place)")
        return None


def build_adviser(
    cfg: Config, envs: VectorEnv, run_dir: Path, say: Callable[[str], None]
) -> LLMController | None:
    """Build the controller around the adviser that `llm=NAME` stands for.

    Args:
        cfg: The options of the run.
        envs: The training environments; a privileged adviser sees them whole.
        run_dir: Takes the journal of asks.
        say: Takes a line for the user.

    Returns:
        The controller; None without advice.

    Raises:
        BadInput: The adviser cannot work with these options.
    """
    llm = cfg.llm
    if not is_advised(cfg):
        return None
    if llm.provider == "local" and llm.calibration == "batch":
        raise BadInput(
            "llm.calibration", "batch depends on what was asked before; a run takes contextual or none"
        )
    check_plugins(cfg)
    provider, family = build_provider(llm, cfg.seed), refuse_what_is_missing(cfg.env, True, False)
    _check_budget(provider.paid, llm)
    optimal = family.optimal_actions
    if provider.privileged and optimal is None:
        raise BadInput(
            "llm.provider", f"{provider.name} needs an oracle, env.family={cfg.env.family} has none"
        )
    assert family.wording is not None
    ledger = None
    if llm.ledger is not None and llm.ledger_limit is not None:
        ledger = SweepLedger(user_path(llm.ledger, "llm.ledger"), llm.ledger_limit)
    asker = Asker(
        provider,
        Journal(run_dir / "llm.jsonl"),
        Budget(llm.budget_total, llm.budget_usd, llm.budget_tokens),
        Breaker(llm.breaker_failures, llm.breaker_pause),
        say,
        cache=open_cache(llm.cache, say),
        ledger=ledger,
        timeout_s=llm.timeout_s,
        retries=llm.api_retries,
        wait=llm.wait,
        is_corrupted=provider.corrupts if isinstance(provider, CorruptedProvider) else lambda plan_key: False,
    )
    alone = cfg.agent.name == "prior"  # follows advice alone: neither gate nor cooldown
    limits = AskLimits(
        None if alone else llm.cooldown_steps,
        None if alone else llm.success_cooldown_steps,
        llm.triggers,
        llm.latch,
    )
    return LLMController(
        asker,
        Triggers(llm.novelty_threshold, llm.td_error_threshold, llm.plateau_window),
        limits,
        tuple(envs.action_names),
        envs.num_envs,
        llm.max_tokens,
        privileged=None if optimal is None else lambda i: sorted(optimal(envs.envs[i]) or ()),
        wording=family.wording,
    )


def describe_adviser(llm: LLMOptions, adviser: LLMController) -> dict[str, Any]:
    """Say who advises a run, for summary.json.

    Args:
        llm: The options of the group `llm`.
        adviser: What `build_adviser` gives.

    Returns:
        provider, model, dataset (None where nothing recorded is replayed), corruption, and corruption_kind
        (None without any).
    """
    assert adviser.asker is not None
    return {
        "provider": llm.provider,
        "model": adviser.asker.provider.model,
        "dataset": llm.dataset if llm.provider == "recorded" else None,
        "corruption": llm.corruption,
        "corruption_kind": llm.corruption_kind if llm.corruption > 0 else None,
    }


def build_advice_trial(cfg: Config, envs: VectorEnv) -> Trial:
    """Build what decides in which episodes advice may act.

    Args:
        cfg: The options of the run.
        envs: The training environments.

    Raises:
        BadInput: `trial=paired` and the task does not declare the range of its returns.
    """
    bounds = envs.return_range or (-math.inf, math.inf)
    return build_trial(cfg.trial, envs.num_envs, random.Random(seed_of(cfg.seed, "trial")), bounds)


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

"""What the types cannot say: ranges, choices and combinations of options, checked before anything is built.

Pure: takes the dataclasses of `lore.config.options`, raises `BadInput`. torch is imported only to look for a
GPU that was asked for. What can be wrong with the task itself is said where it is made, by `lore.envs.make`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from operator import attrgetter

from lore.base.errors import BadInput
from lore.base.secrets import check_address, keep_secret, refuse_secret
from lore.config.ablations import check_arm
from lore.config.command_options import EvalOptions
from lore.config.options import AgentOptions, Config, GateOptions
from lore.config.plugins import TEACHERS

CHOICES = {
    "dtype": ("auto", "bfloat16", "float32"),
    "obs": ("symbolic", "raw147", "rgb64"),
    "env.actions": ("all", "useful"),
    "env.timeout": ("truncate", "terminal"),
    "agent.name": ("dreamer", "random", "prior"),
    "agent.replay_value": ("keep", "weight", "drop"),
    "gate.temperature": ("entropy", "match", "fixed"),
    "teach.name": ("none", *TEACHERS),
    "gate.kl.mode": ("none", "penalty", "project"),
    "trial.name": ("none", "coin", "paired", "jumpstart"),
    "llm.corruption_kind": ("random", "systematic"),
    "logger.wandb": ("auto", "offline", "disabled"),
    "logger.terminal": ("auto", "live", "plain", "off"),
}
AT_LEAST = {
    "seed": 0,
    "threads": 1,
    "run.steps": 1,
    "run.envs": 1,
    "run.prefill": 0,
    "run.eval_every": 0,
    "run.eval_episodes": 1,
    "run.save_every": 1,
    "run.log_every": 1,
    "env.shaping": 0,
    "size.deter": 1,
    "size.hidden": 1,
    "size.classes": 2,
    "size.units": 1,
    "size.depth": 1,
    "size.stoch": 1,
    "size.blocks": 1,
    "replay.capacity": 1,
    "agent.batch_size": 1,
    "agent.seq_len": 1,
    "agent.horizon": 1,
    "agent.discount_horizon": 1,
    "agent.entropy": 0,
    "agent.warmup": 0,
    "agent.free_nats": 0,
    "agent.bins": 3,
    "agent.slow_reg": 0,
    "agent.critic_ensemble": 0,
    "agent.disagreement_ensemble": 0,
    "explore.anneal_steps": 1,
    "explore.actor_warmup": 0,
    "gate.beta": 0,
    "gate.beta_max": 0,
    "gate.kappa": 0,
    "gate.warmup_steps": 0,
    "gate.members": 2,
    "gate.norm_updates": 1,
    "gate.follow_steps": 0,
    "gate.beta_imagine_max": 0,
    "gate.kl.delta_target": 0,
    "gate.kl.kl_lr": 0,
    "gate.kl.lambda_max": 0,
    "prior_net.members": 2,
    "teach.eta_q": 0,
    "teach.weight": 0,
    "teach.anneal_steps": 1,
    "teach.margin": 0,
    "trial.horizon": 1,
    "health.kl_rows": 1,
    "llm.api_retries": 0,
    "llm.max_tokens": 1,
    "llm.budget_total": 0,
    "llm.budget_usd": 0,
    "llm.budget_tokens": 0,
    "llm.cooldown_steps": 0,
    "llm.success_cooldown_steps": 0,
    "llm.novelty_threshold": 0,
    "llm.td_error_threshold": 0,
    "llm.plateau_window": 2,
    "llm.breaker_failures": 1,
    "llm.breaker_pause": 1,
    "llm.ledger_limit": 0,
}
AT_MOST = {"threads": 1024, "llm.timeout_s": 86_400}  # beyond, a library crashes
ABOVE_ZERO = (
    "llm.timeout_s",
    "agent.train_ratio",
    "agent.lr",
    "agent.agc",
    "agent.opt_eps",
    "agent.return_limit",
    "explore.temperature_start",
    "explore.temperature_end",
    "gate.entropy_share",
    "gate.fixed_temperature",
    "teach.mi_max",
    "trial.alpha",
)
SHARES = (
    "agent.lam",
    "agent.beta1",
    "agent.beta2",
    "agent.unimix",
    "agent.slow_rate",
    "agent.return_rate",
    "replay.success_bias",
    "explore.epsilon_start",
    "explore.epsilon_end",
    "gate.off_scale",
    "gate.dropout",
    "gate.entropy_share",
    "teach.w_max",
    "prior_net.max_entropy",
    "prior_net.max_disagreement",
    "trial.share",
    "trial.alpha",
    "trial.eps",
    "trial.cap",
    "llm.corruption",
)


SHORTEST = 2  # steps of a replayed sequence
UNMIXED = ("none", "follow", "hint")  # gates that add nothing to the policy
LARGEST = 2**63  # what a 64-bit whole number can hold ends before it


def check(cfg: Config) -> None:
    """Check the ranges, the choices and the combinations of all options of a run.

    Args:
        cfg: Options of the run.

    Raises:
        BadInput: At the first option, or combination of options, that cannot be run; the key is named.
    """
    _secrets(cfg)
    _ranges(cfg)
    if cfg.agent.name == "dreamer":
        _replay(cfg)
        _entries("agent.scales", cfg.agent.scales, AgentOptions().scales, "loss")
    if cfg.size.deter % cfg.size.blocks:
        raise BadInput("size.deter", f"{cfg.size.deter} must be a multiple of size.blocks={cfg.size.blocks}")
    check_arm(cfg)
    _gate(cfg)
    _trial(cfg)
    _llm(cfg)
    _device(cfg.device)


def check_eval(options: EvalOptions) -> None:
    """Check the options of lore-eval; the run folder itself is not looked at.

    Args:
        options: Options of the command.

    Raises:
        BadInput: An option is missing or out of range; the key is named.
    """
    if not options.run:
        raise BadInput("run", "is missing; give a run folder, as in run=outputs/DATE/NAME")
    if options.episodes < 1:
        raise BadInput("episodes", f"{options.episodes} must be at least 1")
    _choice("policy", options.policy, ("sampled", "greedy"))
    _choice("video_format", options.video_format, ("mp4", "gif"))


def _choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadInput(key, f"unknown value {value!r}; use one of {', '.join(allowed)}")


def _ranges(cfg: Config) -> None:
    for key, allowed in CHOICES.items():
        _choice(key, attrgetter(key)(cfg), allowed)
    for key, least in AT_LEAST.items():
        value = attrgetter(key)(cfg)
        if value is not None and not least <= value < LARGEST:
            rule = f"at least {least}" if not value >= least else f"below {LARGEST}"
            raise BadInput(key, f"{value} must be {rule}")
    for key in ABOVE_ZERO:
        value = attrgetter(key)(cfg)
        if not 0 < value < math.inf:
            raise BadInput(key, f"{value} must be above 0")
    for key in SHARES:
        value = attrgetter(key)(cfg)
        if not 0 <= value <= 1:
            raise BadInput(key, f"{value} must lie between 0 and 1")
    for key, most in AT_MOST.items():
        value = attrgetter(key)(cfg)
        if value > most:
            raise BadInput(key, f"{value} must be at most {most}")
    for key, single in _single_values(cfg):
        if isinstance(single, float) and not math.isfinite(single):
            raise BadInput(key, f"needs a finite number, not {single}")
    agent = cfg.agent
    if not 0 <= agent.return_low < agent.return_high <= 100:
        raise BadInput(
            "agent.return_low",
            f"{agent.return_low} must lie below agent.return_high={agent.return_high}, both within 0 and 100",
        )
    if agent.bins % 2 == 0:
        raise BadInput("agent.bins", f"{agent.bins} must be odd, so that one bin is zero")
    if cfg.env.max_steps is not None and cfg.env.max_steps < 1:
        raise BadInput("env.max_steps", f"{cfg.env.max_steps} must be at least 1, or null for the task's own")


def _replay(cfg: Config) -> None:
    agent, run, capacity = cfg.agent, cfg.run, cfg.replay.capacity
    sequence = agent.seq_len + 1  # one row of context before each sequence
    if agent.seq_len < SHORTEST:
        raise BadInput(
            "agent.seq_len",
            f"{agent.seq_len} is too short: the losses on replayed values and on disagreement compare a step "
            f"with the next; use at least {SHORTEST}",
        )
    if agent.batch_size * sequence > capacity:
        fits = capacity // sequence
        key = "agent.batch_size" if fits else "replay.capacity"
        raise BadInput(
            key,
            f"a batch of {agent.batch_size} x ({agent.seq_len} + 1) steps is longer than "
            f"replay.capacity={capacity}; use "
            + (f"at most agent.batch_size={fits} or " if fits else "")
            + f"at least replay.capacity={agent.batch_size * sequence}",
        )
    if capacity // run.envs < sequence:
        raise BadInput(
            "replay.capacity",
            f"{capacity} over run.envs={run.envs} holds no sequence of agent.seq_len={agent.seq_len}; "
            f"use at least {sequence * run.envs}",
        )
    if run.prefill // run.envs < sequence:
        raise BadInput(
            "run.prefill",
            f"{run.prefill} over run.envs={run.envs} holds no sequence of agent.seq_len={agent.seq_len}; "
            f"use at least {sequence * run.envs}",
        )
    if run.prefill >= run.steps:
        raise BadInput(
            "run.prefill",
            f"{run.prefill} leaves no step to train in run.steps={run.steps}; lower it or raise run.steps",
        )


def _entries(key: str, values: dict[str, float], known: dict[str, float], what: str) -> None:
    """A mapping with exactly the known names, each number at least 0; `what` a name stands for."""
    for name in values.keys() ^ known.keys():
        wrong = f"unknown {what}" if name in values else "is missing"
        raise BadInput(f"{key}.{name}", f"{wrong}; known are {', '.join(known)}")
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise BadInput(f"{key}.{name}", f"{value} must be at least 0")


def _llm(cfg: Config) -> None:
    llm = cfg.llm
    if (llm.ledger is None) != (llm.ledger_limit is None):
        missing = "llm.ledger" if llm.ledger is None else "llm.ledger_limit"
        raise BadInput(missing, "is needed: a ledger is a file (llm.ledger) and a limit (llm.ledger_limit)")
    if llm.base_url is not None:
        check_address("llm.base_url", llm.base_url)
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", llm.key_variable):
        raise BadInput("llm.key_variable", "must name an environment variable; it is never the key itself")


def _secrets(cfg: Config) -> None:
    """No text among the options holds a secret: config.yaml, W&B and messages repeat them."""
    keep_secret(cfg.llm.key_variable)
    for key, value in _single_values(cfg):
        if isinstance(value, str):
            refuse_secret(key, value)


def _single_values(cfg: Config) -> Iterator[tuple[str, object]]:
    """(dotted key, value) of all options, groups, mappings and lists opened."""
    values: list[tuple[str, object]] = list(asdict(cfg).items())
    for key, value in values:
        if isinstance(value, dict):
            values += [(f"{key}.{name}", part) for name, part in value.items()]
        elif isinstance(value, list):
            values += [(key, part) for part in value]
        else:
            yield key, value


def _gate(cfg: Config) -> None:
    gate, learner = cfg.gate, cfg.agent.name
    _entries("gate.weights", gate.weights, GateOptions().weights, "term of u")
    if gate.tau_low > gate.tau_high:
        raise BadInput("gate.tau_low", f"{gate.tau_low} must not lie above gate.tau_high={gate.tau_high}")
    if learner == "random" and (gate.name, cfg.llm.provider) != ("none", "none"):
        key = "gate" if gate.name != "none" else "llm"
        raise BadInput(key, "agent=random takes no advice; use agent=prior to follow an adviser alone")
    if learner == "prior" and gate.name != "follow":
        raise BadInput("gate", f"agent=prior follows its adviser: gate=follow, not {gate.name}")
    if cfg.prior_net.enabled and learner != "dreamer":
        raise BadInput(
            "prior_net.enabled", f"agent={learner} has no features to distil into; use agent=dreamer"
        )
    if cfg.prior_net.enabled and gate.name == "none":
        raise BadInput(
            "prior_net.enabled", "gate=none lets no advice in that could be distilled; use gate=lore or fixed"
        )
    if gate.mix_in_imagination and not (cfg.prior_net.enabled and gate.name not in UNMIXED):
        raise BadInput(
            "gate.mix_in_imagination",
            "needs prior_net.enabled=true and a gate that mixes: in imagination only PriorNet advises",
        )
    _teach(cfg)
    if gate.name == "hint" and not cfg.env.hint:
        raise BadInput("env.hint", "gate=hint shows advice in the observation, so it needs env.hint=true")
    if gate.name == "hint" and gate.kl.mode != "none":
        raise BadInput("gate.kl.mode", f"gate=hint mixes nothing: none, not {gate.kl.mode}")
    if gate.veto and (learner != "dreamer" or gate.name in UNMIXED):
        raise BadInput(
            "gate.veto", "needs critics and advice that is mixed in; agent=dreamer, gate=lore or fixed"
        )
    if gate.name == "follow":
        if gate.kl.mode != "none":
            raise BadInput("gate.kl.mode", f"gate=follow mixes nothing: none, not {gate.kl.mode}")
        if cfg.agent.replay_value == "weight":
            raise BadInput("agent.replay_value", "gate=follow mixes nothing to weigh by; use keep or drop")


def _teach(cfg: Config) -> None:
    teach, gate = cfg.teach.name, cfg.gate
    if teach == "none":
        return
    if gate.name == "none":
        raise BadInput("teach", f"gate=none lets no advice in that could teach; use teach=none, not {teach}")
    if cfg.llm.provider == "none":
        raise BadInput("llm", f"none gives no advice for teach={teach} to learn from; use teach=none too")
    if cfg.agent.name != "dreamer":
        raise BadInput("teach", f"agent={cfg.agent.name} learns nothing; use teach=none, not {teach}")
    if teach != "clone" and not cfg.prior_net.enabled:
        raise BadInput("prior_net.enabled", f"teach={teach} learns from PriorNet; use true")
    if gate.mix_in_imagination and teach != "mix":
        raise BadInput(
            "gate.mix_in_imagination", f"is teach=mix, and so goes not with teach={teach}; leave one out"
        )
    if teach == "mix" and gate.name in UNMIXED:
        raise BadInput("teach", f"gate={gate.name} mixes nothing; use gate=lore or fixed with teach=mix")


def _trial(cfg: Config) -> None:
    trial = cfg.trial
    if trial.name == "none":
        return
    for key, value in (("gate", cfg.gate.name), ("llm", cfg.llm.provider)):
        if value == "none":
            raise BadInput(key, f"none leaves trial={trial.name} no advice to try; use trial=none too")
    if trial.name == "paired" and trial.share == 1:
        raise BadInput("trial.share", "1.0 leaves trial=paired no episode to compare with; use less than 1")


def _device(device: str) -> None:
    if device == "cpu":
        return
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise BadInput("device", f"unknown value {device!r}; use cpu, cuda or cuda:N")
    import torch

    if not torch.cuda.is_available():
        raise BadInput("device", f"{device!r} needs a GPU that torch can use, none found; use device=cpu")
    last = torch.cuda.device_count() - 1
    if int(match[1] or 0) > last:
        raise BadInput("device", f"{device!r} does not exist; the last GPU is cuda:{last}")

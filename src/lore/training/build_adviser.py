"""From options to the adviser of a run: whether there is one, what it lacks, and the controller around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lore.base.errors import BadInput
from lore.base.files import user_path
from lore.config.options import Config, LLMOptions
from lore.envs.vector import VectorEnv
from lore.gate import build_gate
from lore.llm.asking.asker import Asker
from lore.llm.asking.breaker import Breaker
from lore.llm.asking.budget import Budget
from lore.llm.asking.cache import AnswerCache
from lore.llm.asking.controller import AskLimits, LLMController
from lore.llm.asking.journal import Journal
from lore.llm.asking.ledger import SweepLedger
from lore.llm.asking.triggers import Triggers
from lore.llm.providers import CorruptedProvider, build_provider, check_provider, may_cost_money
from lore.training.families import refuse_what_is_missing


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

"""Every adviser by name: the rows of PROVIDERS, and what installed packages offer as entry points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from lore.base.plugins import faults_of_call, load, missing, refuse_faulty
from lore.config.options import LLMOptions
from lore.config.plugins import PROVIDER_GROUP, PROVIDERS
from lore.llm.providers.corrupted import CorruptedProvider
from lore.llm.request import FAILURES, Provider, ProviderError, Reply, Request

__all__ = [
    "FAILURES",
    "PROVIDERS",
    "CorruptedProvider",
    "Provider",
    "ProviderError",
    "Reply",
    "Request",
    "build_provider",
    "check_provider",
    "may_cost_money",
]

FREE_CONTROLS = ("adversarial", "none", "oracle", "shuffled", "uniform")
"""Rows of PROVIDERS that are functions, and so have no attribute `paid`."""
ATTRIBUTES, METHODS = ("name", "model", "paid", "privileged"), ("identity", "ask", "max_cost_usd")
"""What every provider has; see Provider."""


class Named(Protocol):
    """Options that say which provider they are for."""

    provider: str


class Priced(Named, Protocol):
    """Options that may also give the provider's prices, in dollars; None: not given."""

    prices: Any


def build_provider(options: LLMOptions, seed: int = 0) -> Provider:
    """Make the provider that `options.provider` names, after `check_provider`.

    With `llm.corruption` it is corrupted.

    Args:
        options: The options of the group `llm`.
        seed: Seed of the run; draws what `llm.corruption` spoils.

    Returns:
        The provider, ready to be asked.

    Raises:
        BadInput: See `check_provider`; or the provider lacks something. Whatever the factory raises is passed
            on.
    """
    check_provider(options)
    provider = _factory(options)(options)
    _refuse(options, missing(provider, ATTRIBUTES, METHODS))
    if options.corruption == 0:
        return provider
    return CorruptedProvider(provider, options.corruption, options.corruption_kind, seed)


def check_provider(options: Named) -> None:
    """Refuse, within seconds and before anything is built, a provider that cannot work with these options.

    A factory may have a function `check(options)`, which is called then. It raises BadInput naming the
    option, and neither loads a model nor sends anything.

    Args:
        options: The options of the group `llm`.

    Raises:
        BadInput: The name is unknown, claimed twice or cannot be imported, what it stands for is no provider,
            or the provider's check refuses.
    """
    factory = _factory(options)
    lacking = missing(factory, (), METHODS) if isinstance(factory, type) else []
    _refuse(options, [*lacking, *faults_of_call(factory, "the options of the group llm", 1)])
    check = getattr(factory, "check", None)
    if check is not None:
        check(options)


def may_cost_money(options: Priced) -> bool:
    """Say whether an ask of this provider may cost money, without building the provider.

    Args:
        options: The options of the group `llm`.

    Returns:
        The factory's attribute `paid`; True where it has none. False where all given prices are 0.

    Raises:
        BadInput: The name is unknown, claimed twice or cannot be imported.
    """
    if options.prices is not None and not any(vars(options.prices).values()):
        return False
    return bool(getattr(_factory(options), "paid", options.provider not in FREE_CONTROLS))


def _refuse(options: Named, faults: list[str]) -> None:
    """Raise BadInput if anything is wrong with the provider."""
    name = options.provider
    refuse_faulty(PROVIDER_GROUP, PROVIDERS, name, "llm.provider", "adviser", faults, "docs/advisers.md")


def _factory(options: Named) -> Callable[[Named], Provider]:
    factory: Callable[[Named], Provider] = load(
        PROVIDER_GROUP, PROVIDERS, options.provider, "llm.provider", "provider"
    )
    return factory

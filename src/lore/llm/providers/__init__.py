"""Every adviser by name: the rows of PROVIDERS, and what installed packages offer as entry points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from lore.base.plugins import load
from lore.config.plugins import PROVIDER_GROUP, PROVIDERS
from lore.llm.request import FAILURES, Provider, ProviderError, Reply, Request

__all__ = [
    "FAILURES",
    "PROVIDERS",
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


class Named(Protocol):
    """Options that say which provider they are for."""

    provider: str


class Priced(Named, Protocol):
    """Options that may also give the provider's prices, in dollars; None: not given."""

    prices: Any


def build_provider(options: Named) -> Provider:
    """Make the provider that `options.provider` names, after `check_provider`.

    Args:
        options: The options of the group `llm`.

    Returns:
        The provider, ready to be asked.

    Raises:
        BadInput: See `check_provider`. Whatever the factory raises is passed on.
    """
    check_provider(options)
    return _factory(options)(options)


def check_provider(options: Named) -> None:
    """Refuse, within seconds and before anything is built, a provider that cannot work with these options.

    A factory may have a function `check(options)`, which is called then. It raises BadInput naming the
    option, and neither loads a model nor sends anything.

    Args:
        options: The options of the group `llm`.

    Raises:
        BadInput: The name is unknown, claimed twice or cannot be imported, or the provider's check refuses.
    """
    check = getattr(_factory(options), "check", None)
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


def _factory(options: Named) -> Callable[[Named], Provider]:
    factory: Callable[[Named], Provider] = load(
        PROVIDER_GROUP, PROVIDERS, options.provider, "llm.provider", "provider"
    )
    return factory

"""Every adviser by name: the rows of PROVIDERS, and what installed packages offer as entry points."""

from __future__ import annotations

from typing import Protocol

from lore.base.plugins import load
from lore.llm.request import FAILURES, Provider, ProviderError, Reply, Request

__all__ = ["FAILURES", "PROVIDERS", "Provider", "ProviderError", "Reply", "Request", "build_provider"]

GROUP = "lore.providers"
PROVIDERS = {
    "adversarial": "lore.llm.providers.controls:adversarial",
    "anthropic": "lore.llm.providers.anthropic:AnthropicProvider",
    "local": "lore.llm.providers.local:LocalProvider",
    "none": "lore.llm.providers.controls:none",
    "oracle": "lore.llm.providers.controls:oracle",
    "recorded": "lore.llm.providers.recorded:RecordedProvider",
    "scripted": "lore.llm.providers.scripted:ScriptedProvider",
    "shuffled": "lore.llm.providers.controls:shuffled",
    "uniform": "lore.llm.providers.controls:uniform",
}
"""Name -> its factory, written as an entry point. A factory takes the options and returns a Provider."""


class Named(Protocol):
    """Options that say which provider they are for."""

    provider: str


def build_provider(options: Named) -> Provider:
    """The provider that `options.provider` names, made from the options.

    Raises BadInput where the name is unknown, claimed twice or cannot be imported, and whatever the factory
    raises.
    """
    return load(GROUP, PROVIDERS, options.provider, "llm.provider", "provider")(options)

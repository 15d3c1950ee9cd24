"""Every adviser by name: the rows of PROVIDERS, and what installed packages offer as entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from lore.llm.providers.base import FAILURES, Provider, ProviderError, Reply, Request
from lore.options import BadInput

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
    table = [EntryPoint(name, value, GROUP) for name, value in PROVIDERS.items()]
    points = {(point.name, point.value): point for point in [*table, *entry_points(group=GROUP)]}
    found = [point for (name, _), point in points.items() if name == options.provider]
    if not found:
        known = ", ".join(sorted({name for name, _ in points}))
        raise BadInput("llm.provider", f"unknown provider {options.provider!r}; use one of {known}")
    if len(found) > 1:
        claims = " and ".join(point.value for point in found)
        raise BadInput("llm.provider", f"{options.provider!r} is claimed by {claims}; uninstall one of them")
    try:
        factory = found[0].load()
    except (ImportError, AttributeError) as error:
        raise BadInput("llm.provider", f"{options.provider!r} cannot be loaded: {error}") from error
    return factory(options)

"""Which world `env.id` names: a registered id, an id of the user's own package, or an entry point.

    env.id=MiniGrid-DoorKey-5x5-v0       an id that Gymnasium knows
    env.id=my_package:MyLab-v0           the same, after my_package was imported (Gymnasium's own form)
    env.id=my_lab                        an entry point of the group `lore.envs`: my_lab = "my_package:MyLab"

docs/environments.md is the page for people.
"""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches

import gymnasium as gym
import minigrid  # noqa: F401  (registers its ids when imported)
from gymnasium.envs.registration import EnvSpec

from lore.base.errors import BadInput
from lore.base.plugins import load, names

GROUP = "lore.envs"
"""Entry points of this group are classes or functions that return an environment."""


def find_world(env_id: str) -> EnvSpec:
    """Look up an `env.id`, and import the package that it names.

    Args:
        env_id: ID, PACKAGE:ID, or the name of an entry point.

    Returns:
        What `gymnasium.make` takes.

    Raises:
        BadInput: The id is not known, or its package cannot be imported or registers no such id.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        _import(module)
    if name in gym.registry:
        spec = gym.registry[name]
    elif colon:
        raise BadInput("env.id", f"{module} registers no {name!r}; {_registered_by(module)}")
    elif name in names(GROUP, {}):
        factory = load(GROUP, {}, name, "env.id", "environment")
        spec = EnvSpec(name, entry_point=factory, disable_env_checker=True)
    else:
        raise BadInput("env.id", f"{name!r} is not registered; {_hint(name)}")
    return spec


def _import(module: str) -> None:
    if not all(part.isidentifier() for part in module.split(".")):
        raise BadInput(
            "env.id", f"{module!r} is no name of a package; write PACKAGE:ID, as in my_package:MyLab-v0"
        )
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise BadInput(
                "env.id", f"there is no package {module!r} here; install it, or put its folder on PYTHONPATH"
            ) from error
        raise BadInput("env.id", f"{module} needs {error.name}, which is not installed") from error
    except (ImportError, SyntaxError) as error:
        raise BadInput("env.id", f"{module} cannot be imported: {error}") from error


def _registered_by(module: str) -> str:
    """Say which ids point into a package, or how it registers one."""
    package = module.partition(".")[0]
    found = [name for name, spec in gym.registry.items() if _package_of(spec) == package]
    if found:
        return f"it registers {', '.join(found)}"
    return "call gymnasium.register(id=..., entry_point=...) where the package is imported"


def _package_of(spec: EnvSpec) -> str:
    point = spec.entry_point
    where = (
        point if isinstance(point, str) else "" if point is None else sys.modules[point.__module__].__name__
    )
    return where.partition(":")[0].partition(".")[0]


def _hint(name: str) -> str:
    known = [*(n for n in gym.registry if n.startswith(("MiniGrid-", "BabyAI-"))), *names(GROUP, {})]
    close = get_close_matches(name, known, n=3)
    ids = f"did you mean {', '.join(close)}?" if close else "see MiniGrid's ids, e.g. MiniGrid-DoorKey-5x5-v0"
    return f"{ids} An id of your own package is written PACKAGE:ID"

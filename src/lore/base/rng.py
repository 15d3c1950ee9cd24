"""Named random streams: each module draws from a stream by name, so no module changes what others draw."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(seed: int, name: str) -> int:
    """Derive the seed of a stream: equal on every platform and in every process.

    Args:
        seed: Seed of the run.
        name: Name of the stream.

    Returns:
        A whole number of 63 bits.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator that stands at the start of a stream.

    Args:
        seed: Seed of the run.
        name: Name of the stream.
        device: Device on which the numbers are drawn.
    """
    return torch.Generator(device=device).manual_seed(seed_of(seed, name))


class Streams:
    """Generators by name, made when first asked for. Its state saves and restores all of them."""

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.seed = seed
        self.device = torch.device(device)
        self._generators: dict[str, torch.Generator] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        if name not in self._generators:
            self._generators[name] = generator(self.seed, name, self.device)
        return self._generators[name]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of every stream by name."""
        return {name: g.get_state() for name, g in self._generators.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set every stream, in place: a holder of a generator goes on with the same object.

        Args:
            state: Name of the stream -> state of its generator; a stream that is not in it starts anew.
        """
        for name in self._generators.keys() | state.keys():
            if name in state:
                self[name].set_state(state[name])
            else:
                self[name].manual_seed(seed_of(self.seed, name))

"""Named random streams: who draws what is fixed by a name, so switching one module on moves no other."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(seed: int, name: str) -> int:
    """A 63-bit seed for stream `name` of run `seed`: equal on every platform and in every process."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that stands at the start of stream `name`."""
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
        return {name: g.get_state() for name, g in self._generators.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set every stream, in place: who holds a generator goes on with it.

        Args:
            state: name -> state of the generator; a stream that is not in it starts anew.
        """
        for name in self._generators.keys() | state.keys():
            if name in state:
                self[name].set_state(state[name])
            else:
                self[name].manual_seed(seed_of(self.seed, name))

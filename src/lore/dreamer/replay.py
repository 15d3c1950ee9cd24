"""Replay memory: rows in the order they came, sampled as sequences with the latents stored beside them.

Source: Hafner et al. 2023 (arXiv 2301.04104), "Replay buffer": uniform over all sequences, across episode
boundaries, starting from stored latents that every update refreshes. Letters: N environments, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lore.base.types import FLAGS, Batch, Latent, ObsSpec

Column = tuple[tuple[int, ...], torch.dtype]
LATENTS = ("deter", "stoch")
_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


def columns(spec: dict[str, ObsSpec], num_actions: int) -> dict[str, Column]:
    """List what a row holds besides its latent.

    success: the episode ended here, with a reward. prior, mask, confidence, source, beta and temperature are
    the advice the step was taken under; zeros without advice.

    Args:
        spec: Observation key -> what it is.
        num_actions: A.

    Returns:
        Column -> shape of one entry, and type.
    """
    obs: dict[str, Column] = {f"obs/{k}": (s.shape, _DTYPES[s.dtype]) for k, s in spec.items()}
    flags: dict[str, Column] = dict.fromkeys(FLAGS, ((), torch.bool))
    return (
        obs
        | flags
        | {
            "reward": ((), torch.float32),
            "success": ((), torch.bool),
            "action": ((), torch.uint8),
            "prior": ((num_actions,), torch.float32),
            "mask": ((num_actions,), torch.bool),
            "confidence": ((), torch.float32),
            "source": ((), torch.uint8),
            "beta": ((), torch.float32),
            "temperature": ((), torch.float32),
        }
    )


class ReplayBuffer:
    """A ring of `capacity` rows, N of them a tick.

    Tick t lives in slot t % ticks. `total` counts all ticks ever added, `filled` those still held. `won`,
    (ticks, N) bool, says which rows are of an episode that has ended with a success; it follows from the
    columns, so it is not stored.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        columns: Mapping[str, Column],
        deter: int,
        stoch: int,
        rng: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        """
        Args:
            capacity: Rows, all environments together.
            num_envs: N.
            columns: What a row holds, see `columns`.
            deter: Units of the recurrent state.
            stoch: Number of the categorical latents.
            rng: Draws the sequences; on `device`.
            dtype: Type of the recurrent state.
            device: Where all of it is held.
        """
        self.ticks, self.num_envs, self.rng = capacity // num_envs, num_envs, rng
        self.device = torch.device(device)
        self.total = 0
        self.static = {k: self._empty(shape, kind) for k, (shape, kind) in columns.items()}
        self.won = self._empty((), torch.bool)
        self._began = [0] * num_envs  # tick at which each environment's episode began
        self.latents = {"deter": self._empty((deter,), dtype), "stoch": self._empty((stoch,), torch.uint8)}

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(self.ticks, self.num_envs, *shape, dtype=dtype, device=self.device)

    @property
    def filled(self) -> int:
        """Number of ticks held."""
        return min(self.total, self.ticks)

    def __len__(self) -> int:
        """Rows held."""
        return self.filled * self.num_envs

    def add(self, row: Mapping[str, Tensor], latent: Latent) -> None:
        """Append one tick.

        Args:
            row: Column -> (N, *shape); a column that is left out is zero.
            latent: (N, ...).

        Raises:
            KeyError: A column was not declared.
        """
        slot = self.total % self.ticks
        for key, store in self.static.items():
            if key in row:
                store[slot] = row[key]
            else:
                store[slot].zero_()
        unknown = row.keys() - self.static.keys()
        if unknown:
            raise KeyError(f"replay has no column {', '.join(sorted(unknown))}")
        self._note_success(self.total)
        self.latents["deter"][slot] = latent.deter
        self.latents["stoch"][slot] = latent.stoch
        self.total += 1

    def _note_success(self, tick: int) -> None:
        """Mark the rows of the episodes that end at a tick with a success."""
        slot = tick % self.ticks
        self.won[slot] = False
        first, success = self.static["is_first"][slot].tolist(), self.static["success"][slot].tolist()
        for i in range(self.num_envs):
            self._began[i] = tick if first[i] else self._began[i]
            if success[i]:
                oldest = max(self._began[i], tick + 1 - self.ticks)
                self.won[torch.arange(oldest, tick + 1, device=self.device) % self.ticks, i] = True

    def sample(self, batch_size: int, seq_len: int, success_bias: float = 0.0) -> Batch:
        """Draw sequences, uniformly over all starts, with one row of context before each.

        Args:
            batch_size: B, sequences.
            seq_len: T, rows in each.
            success_bias: Probability of a sequence to be drawn from those starts alone whose T rows hold a
                success; without any such start it is drawn from all.

        Raises:
            ValueError: There are fewer than T + 1 ticks.
        """
        starts = self.filled - seq_len  # a sequence takes seq_len + 1 ticks
        if starts < 1:
            raise ValueError(f"replay holds {self.filled} ticks, a sequence needs {seq_len + 1}")
        draw = torch.randint(starts * self.num_envs, (batch_size,), generator=self.rng, device=self.device)
        if success_bias > 0:
            draw = self._towards_success(draw, seq_len, success_bias)
        start = self.total - self.filled + draw // self.num_envs  # (B,), in ticks
        span = start.unsqueeze(1) + torch.arange(seq_len + 1, device=self.device)  # (B, T+1)
        index = span % self.ticks * self.num_envs + (draw % self.num_envs).unsqueeze(1)
        now = index[:, 1:]
        rows = {k: _gather(v, now) for k, v in self.static.items() if k != "action"}
        action = _gather(self.static["action"], index).long()
        return Batch(
            obs={k.removeprefix("obs/"): v for k, v in rows.items() if k.startswith("obs/")},
            action=action[:, 1:],
            prev_action=action[:, :-1],
            reward=rows["reward"],
            is_first=rows["is_first"],
            is_last=rows["is_last"],
            is_terminal=rows["is_terminal"],
            success=rows["success"],
            won=_gather(self.won, now),
            context=Latent(*(_gather(self.latents[k], index[:, 0]) for k in LATENTS)),
            index=now,
            prior=rows["prior"],
            mask=rows["mask"],
            confidence=rows["confidence"],
            source=rows["source"],
            beta=rows["beta"],
            temperature=rows["temperature"],
        )

    def _towards_success(self, draw: Tensor, seq_len: int, bias: float) -> Tensor:
        """Replace each start (B,) with probability `bias` by a start whose sequence holds a success."""
        won = self.static["success"][: self.filled]  # (slots, N)
        if self.filled == self.ticks:
            won = won.roll(-(self.total % self.ticks), 0)  # oldest tick first
        seen = torch.zeros(self.filled + 1, self.num_envs, dtype=torch.int32, device=self.device)
        seen[1:] = won.cumsum(0, dtype=torch.int32)  # (filled + 1, N): successes before each tick
        holds = (seen[seq_len + 1 :] > seen[1:-seq_len]).flatten()  # (starts * N)
        found = holds.nonzero().squeeze(1)
        if not len(found):
            return draw
        shares = torch.rand(2, len(draw), generator=self.rng, device=self.device)
        chosen = found[(shares[0] * len(found)).long().clamp(max=len(found) - 1)]
        return torch.where(shares[1] < bias, chosen, draw)

    def refresh(self, index: Tensor, latent: Latent) -> None:
        """Write fresh latents back.

        Args:
            index: The rows of a batch, (B, T).
            latent: (B, T, ...).
        """
        flat = index.flatten()
        for key, value in zip(LATENTS, (latent.deter, latent.stoch), strict=True):
            self.latents[key].flatten(0, 1)[flat] = value.flatten(0, 1)

    def rows(self, start: int, stop: int) -> dict[str, Tensor]:
        """Copy the static columns of some ticks, in order, into main memory.

        Args:
            start: First tick.
            stop: The tick after the last; all of them are still in the replay.

        Returns:
            Column -> (stop - start, N, *shape).
        """
        slots = torch.arange(start, stop, device=self.device) % self.ticks
        return {k: v[slots].cpu() for k, v in self.static.items()}

    def load_rows(self, start: int, rows: Mapping[str, Tensor]) -> None:
        """Put back what `rows` gave.

        Args:
            start: The first tick.
            rows: Column -> (ticks, N, *shape).

        Raises:
            KeyError: The columns differ from those of this replay.
        """
        if rows.keys() != self.static.keys():
            raise KeyError(f"stored replay has columns {sorted(rows)}, this run has {sorted(self.static)}")
        count = len(next(iter(rows.values())))
        slots = torch.arange(start, start + count, device=self.device) % self.ticks
        for key, value in rows.items():
            self.static[key][slots] = value.to(self.device)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Copy the latents (which training rewrites all over), and the count; `rows` gives the rest."""
        held = {k: v[: self.filled].to("cpu", copy=True) for k, v in self.latents.items()}
        return {"total": self.total} | held

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from a state; `load_rows` puts back the rest.

        Args:
            state: What `state_dict` gave, on any device.
        """
        self.total, self._began = state["total"], [0] * self.num_envs
        for tick in range(self.total - self.filled, self.total):
            self._note_success(tick)
        for key in LATENTS:
            self.latents[key][: self.filled] = state[key].to(self.device)


def _gather(store: Tensor, index: Tensor) -> Tensor:
    """store (ticks, N, ...), flat index (...) -> (..., ...)."""
    return store.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, *store.shape[2:])

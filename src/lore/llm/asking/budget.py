"""What one run may spend on its adviser: asks, dollars and tokens, reserved before a request is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

NANO = 10**9  # money is counted in whole nano-dollars, costs rounded up: sums are exact


class Budget:
    """The counts of one run against its limits; None is no limit.

    An ask counts from the moment it is reserved, for good: also when the cache serves it (usd = tokens = 0)
    or when it fails. Its dollars and tokens are held at their upper bound until the ask is settled with what
    it took. So the sum of what is spent and held never passes a limit while the bounds are true. An ask that
    took more than its bound is booked as it was; where the sum then passes a limit, only asks that cost
    nothing are granted.

    Attributes:
        asks: Asks reserved so far.
        tokens: Tokens of settled asks.
    """

    def __init__(self, total: int | None, usd: float | None = None, tokens: int | None = None) -> None:
        """Begin with nothing spent.

        Args:
            total: Most asks.
            usd: Most dollars.
            tokens: Most tokens, in and out together.

        Raises:
            ValueError: A limit is below zero or not finite.
        """
        self._total = None if total is None else _whole(total)
        self._limit_nano = None if usd is None else _nano(usd, ROUND_FLOOR)
        self._limit_tokens = None if tokens is None else _whole(tokens)
        self.asks = 0
        self.tokens = 0  # of settled asks
        self._nano = 0  # of settled asks
        self._held: dict[int, tuple[int, int]] = {}  # ask -> nano-dollars and tokens, of asks not settled

    @property
    def usd(self) -> float:
        """Dollars of settled asks."""
        return self._nano / NANO

    @property
    def remaining(self) -> int | None:
        """Asks left; None without a limit."""
        return None if self._total is None else self._total - self.asks

    def can_reserve(self, usd: float, tokens: int) -> bool:
        """Say whether `reserve` would grant this ask.

        Args:
            usd: Upper bound of the ask, in dollars.
            tokens: Upper bound of the ask, tokens in and out together.

        Returns:
            True where every limit has room for the bounds.

        Raises:
            ValueError: A bound is below zero or not finite.
        """
        nano, tokens = _nano(usd), _whole(tokens)
        held_nano, held_tokens = (sum(held[i] for held in self._held.values()) for i in (0, 1))
        return (
            _fits(1, self.asks, self._total)
            and _fits(nano, self._nano + held_nano, self._limit_nano)
            and _fits(tokens, self.tokens + held_tokens, self._limit_tokens)
        )

    def reserve(self, usd: float, tokens: int) -> int | None:
        """Charge an ask, and hold its upper bounds.

        Args:
            usd: Upper bound of the ask, in dollars.
            tokens: Upper bound of the ask, tokens in and out together.

        Returns:
            The ask's number, from 1, to settle it by; None where a limit refuses it.

        Raises:
            ValueError: A bound is below zero or not finite.
        """
        if not self.can_reserve(usd, tokens):
            return None
        self.asks += 1
        self._held[self.asks] = (_nano(usd), _whole(tokens))
        return self.asks

    def settle(self, ask: int, usd: float | None = None, tokens: int | None = None) -> None:
        """Book what an ask took; all that was held where the amount is not known, as after a time-out.

        Args:
            ask: The number from `reserve`.
            usd: Dollars; None where they are not known.
            tokens: Tokens in and out together; None where they are not known.

        Raises:
            ValueError: An amount is below zero or not finite, or `ask` is not open. Nothing has changed then.
        """
        if ask not in self._held:
            raise ValueError(f"ask {ask} was never reserved, or is settled")
        held_nano, held_tokens = self._held[ask]
        nano = held_nano if usd is None else _nano(usd)
        spent = held_tokens if tokens is None else _whole(tokens)
        del self._held[ask]
        self._nano += nano
        self.tokens += spent

    def state_dict(self) -> dict[str, Any]:
        """Return the counts as whole numbers, without the limits."""
        held = [[ask, nano, tokens] for ask, (nano, tokens) in self._held.items()]
        return {"asks": self.asks, "nano_usd": self._nano, "tokens": self.tokens, "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; the limits stay.

        Args:
            state: What `state_dict` returned.
        """
        self.asks, self._nano, self.tokens = state["asks"], state["nano_usd"], state["tokens"]
        self._held = {ask: (nano, tokens) for ask, nano, tokens in state["held"]}


def _fits(more: int, used: int, limit: int | None) -> bool:
    return limit is None or more == 0 or used + more <= limit


def _nano(usd: float, rounding: str = ROUND_CEILING) -> int:
    """Dollars as nano-dollars, taken as the decimal number that Python prints: 0.1 is one tenth."""
    if not 0 <= usd < math.inf:
        raise ValueError(f"{usd} dollars: must be a number of at least 0")
    return int((Decimal(repr(float(usd))) * NANO).to_integral_value(rounding))


def _whole(count: int) -> int:
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"{count}: must be a whole number of at least 0")
    return count

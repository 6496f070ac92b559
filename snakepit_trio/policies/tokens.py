"""Tokens, of which there are so many in a second, and the line of those that wait for one."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import anyio

from snakepit_trio._bell import Bell

__all__ = ["TokenBucket", "TokenLine"]

#: Seconds. What is no further off than this is now: a clock may be read a little before the time that was waited for.
_TICK = 1e-6


class TokenBucket:
    """So many calls in a second, and a few more after a quiet time; without a clock of its own.

    It is the virtual scheduling form of https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm

    Args:
        rate: Calls per second.
        burst: How many may begin at once after a quiet time.

    Attributes:
        reserved: How many tokens are kept for calls that have yet to begin.
    """

    __slots__ = ("_burst", "_full_at", "_interval", "reserved")

    def __init__(self, rate: float, burst: int) -> None:
        self.reserved: int = 0
        self._interval = 1.0 / rate
        self._burst = burst
        # When it is full again if nobody takes anything.
        self._full_at = -math.inf

    def delay(self, now: float) -> float:
        """Seconds until there is a token, whether or not it is reserved."""
        return self._until(1, now)

    def spare_delay(self, now: float) -> float:
        """Seconds until there is a token that is not reserved; infinity while all that there may be are."""
        return math.inf if self.reserved >= self._burst else self._until(self.reserved + 1, now)

    def take(self, now: float) -> None:
        """A call begins."""
        self._full_at = max(self._full_at, now) + self._interval

    def rests(self, now: float) -> bool:
        """Whether it is full."""
        return self._full_at <= now

    def _until(self, tokens: int, now: float) -> float:
        delay = max(self._full_at, now) + (tokens - self._burst) * self._interval - now
        return delay if delay > _TICK else 0.0


class TokenLine:
    """Calls that wait for tokens, first come, first served: only the first looks at the time."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Bell, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def ring(self) -> None:
        """Something has changed for the first."""
        if self._waiting:
            next(iter(self._waiting)).ring()

    async def wait(self, delay: Callable[[], float]) -> None:
        """Wait until one is the first and ``delay()``, in seconds, is 0. A cancellation leaves nothing behind."""
        bell = Bell()
        self._waiting[bell] = None
        try:
            while left := delay() if next(iter(self._waiting)) is bell else math.inf:
                with anyio.move_on_after(left):
                    await bell.wait()
        finally:
            del self._waiting[bell]
            self.ring()

"""A token bucket, and the queue of calls that wait for a token."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import anyio

from snakepit_trio._bell import Bell

__all__ = ["TokenBucket", "TokenLine"]

#: Seconds. A smaller difference counts as zero, because a clock may be read slightly before the awaited time.
_TICK = 1e-6


class TokenBucket:
    """A rate of calls per second with bursts after a quiet time, without a clock of its own.

    It is the virtual scheduling form of https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm

    Args:
        rate: Calls per second.
        burst: The number of calls that may begin at once after a quiet time.

    Attributes:
        reserved: The number of tokens reserved for calls that have not begun.
    """

    __slots__ = ("_burst", "_full_at", "_interval", "reserved")

    def __init__(self, rate: float, burst: int) -> None:
        self.reserved: int = 0
        self._interval = 1.0 / rate
        self._burst = burst
        # The time at which the bucket is full again if no token is taken.
        self._full_at = -math.inf

    def delay(self, now: float) -> float:
        """Return the seconds until there is a token, reserved or not."""
        return self._until(1, now)

    def spare_delay(self, now: float) -> float:
        """Return the seconds until there is an unreserved token; infinity while the whole burst is reserved."""
        return math.inf if self.reserved >= self._burst else self._until(self.reserved + 1, now)

    def take(self, now: float) -> None:
        """Take a token as a call begins."""
        self._full_at = max(self._full_at, now) + self._interval

    def rests(self, now: float) -> bool:
        """Return whether the bucket is full."""
        return self._full_at <= now

    def _until(self, tokens: int, now: float) -> float:
        delay = max(self._full_at, now) + (tokens - self._burst) * self._interval - now
        return delay if delay > _TICK else 0.0


class TokenLine:
    """A queue of calls that wait for tokens, first come, first served; only the first waits for time."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Bell, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def ring(self) -> None:
        """Make the first call check its delay again."""
        if self._waiting:
            next(iter(self._waiting)).ring()

    async def wait(self, delay: Callable[[], float]) -> None:
        """Wait until this call is the first and ``delay()``, in seconds, is 0. A cancellation leaves nothing behind."""
        bell = Bell()
        self._waiting[bell] = None
        try:
            while left := delay() if next(iter(self._waiting)) is bell else math.inf:
                with anyio.move_on_after(left):
                    await bell.wait()
        finally:
            del self._waiting[bell]
            self.ring()

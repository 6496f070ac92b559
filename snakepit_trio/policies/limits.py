"""Limits of how many calls run at once and how many begin in a second."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from snakepit_trio.errors import QueueFull, QuotaExceeded, RequestTimeout

if TYPE_CHECKING:
    from .options import LimitConfig

__all__ = ["Limit", "TokenBucket"]

#: With more keys than this, those that are at rest are forgotten.
_MANY = 1000


class TokenBucket:
    """So many calls in a second, and a few more after a quiet time; without a clock of its own.

    It is the virtual scheduling form of https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm

    Args:
        rate: Calls per second.
        burst: How many may begin at once after a quiet time.
    """

    __slots__ = ("_burst", "_full_at", "_interval")

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1.0 / rate
        self._burst = burst
        # When it is full again if nobody takes anything.
        self._full_at = float("-inf")

    def delay(self, now: float) -> float:
        """How long a call that came now would have to wait, in seconds; takes nothing."""
        return max(0.0, max(self._full_at, now) + self._interval - self._interval * self._burst - now)

    def take(self, now: float) -> float:
        """Take a call's share; returns how long the call has to wait, in seconds."""
        delay = self.delay(now)
        self._full_at = max(self._full_at, now) + self._interval
        return delay

    def give_back(self) -> None:
        """The last call that took a share, and waited, has left without beginning."""
        self._full_at -= self._interval

    def rests(self, now: float) -> bool:
        """Whether it is full."""
        return self._full_at <= now


class _Gate:
    """What one key has."""

    def __init__(self, config: LimitConfig) -> None:
        self.seats = None if config.concurrency is None else anyio.Semaphore(config.concurrency)
        self.bucket = None
        if config.rate is not None:
            burst = max(1, int(config.rate)) if config.burst is None else config.burst
            self.bucket = TokenBucket(config.rate, burst)
        self.inside = 0
        self.waiting = 0

    def rests(self, now: float) -> bool:
        """Whether it is as a new one would be."""
        return not self.inside and (self.bucket is None or self.bucket.rests(now))


class Limit:
    """One configured limit, with what it counts by key.

    Args:
        config: What is allowed.
        told: Called when a call comes too early, with ``"rate"`` or ``"concurrency"`` and whether it is refused.
    """

    def __init__(self, config: LimitConfig, told: Callable[[str, str, bool], object]) -> None:
        self._config = config
        self._told = told
        self._gates: dict[str, _Gate] = {}

    def __repr__(self) -> str:
        return f"<Limit per={self._config.per} keys={len(self._gates)}>"

    def key(self, tool: str, session: str | None) -> str | None:
        """What a call is counted by; None when the limit is not for it."""
        config = self._config
        if config.tools and tool not in config.tools:
            return None
        return {"tool": tool, "session": session, "pool": ""}[config.per]

    @asynccontextmanager
    async def inside(self, key: str, tool: str, deadline: float) -> AsyncIterator[None]:
        """Wait until a call may begin, and count it until the block ends. A cancellation leaves nothing counted.

        Raises:
            QuotaExceeded: It comes too early, and calls don't wait here.
            QueueFull: As many wait as may.
            RequestTimeout: The deadline has come, or the wait would be longer than until then.
        """
        gate = self._gate(key)
        gate.inside += 1
        try:
            await self._enter(gate, tool, deadline)
            try:
                yield
            finally:
                if gate.seats is not None:
                    gate.seats.release()
        finally:
            gate.inside -= 1
            if gate.rests(anyio.current_time()) and self._gates.get(key) is gate:
                del self._gates[key]

    def _gate(self, key: str) -> _Gate:
        gate = self._gates.get(key)
        if gate is None:
            if len(self._gates) >= _MANY:
                now = anyio.current_time()
                self._gates = {key: gate for key, gate in self._gates.items() if not gate.rests(now)}
            gate = self._gates[key] = _Gate(self._config)
        return gate

    async def _enter(self, gate: _Gate, tool: str, deadline: float) -> None:
        if gate.seats is not None:
            try:
                gate.seats.acquire_nowait()
            except anyio.WouldBlock:
                self._too_early(gate, tool, "concurrency", self._config.concurrency)
                with self._waits(gate), anyio.CancelScope(deadline=deadline) as scope:
                    await gate.seats.acquire()
                if scope.cancelled_caught:
                    raise _out_of_time(tool) from None
        try:
            await self._take(gate, tool, deadline)
        except BaseException:
            if gate.seats is not None:
                gate.seats.release()
            raise

    async def _take(self, gate: _Gate, tool: str, deadline: float) -> None:
        bucket = gate.bucket
        if bucket is None:
            return
        now = anyio.current_time()
        delay = bucket.delay(now)
        if delay:
            self._too_early(gate, tool, "rate", self._config.rate)
            if now + delay > deadline:
                raise _out_of_time(tool)
        bucket.take(now)
        if delay:
            try:
                with self._waits(gate):
                    await anyio.sleep_until(now + delay)
            except BaseException:
                bucket.give_back()
                raise

    def _too_early(self, gate: _Gate, tool: str, limit: str, allowed: float | None) -> None:
        config = self._config
        refused = not config.wait or gate.waiting >= config.max_waiting
        self._told(tool, limit, refused)
        if not config.wait:
            raise QuotaExceeded(
                f"{tool!r} is at its limit of {allowed:g} {'calls a second' if limit == 'rate' else 'calls at once'}",
                details={"quota": limit, "limit": allowed, "used": gate.inside - 1, "asked": 1, "tool": tool},
                retryable=True,
            )
        if refused:
            raise QueueFull(
                f"{gate.waiting} calls of {tool!r} wait for its limit already",
                details={"limit": config.max_waiting, "queued": gate.waiting, "tool": tool},
            )

    @staticmethod
    def _waits(gate: _Gate) -> _Waiting:
        return _Waiting(gate)


class _Waiting:
    """Counts one that waits."""

    def __init__(self, gate: _Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate.waiting += 1

    def __exit__(self, *exc: object) -> None:
        self._gate.waiting -= 1


def _out_of_time(tool: str) -> RequestTimeout:
    return RequestTimeout(
        f"{tool!r} was waiting for its limit when its time was spent", details={"phase": "queued", "tool": tool}
    )

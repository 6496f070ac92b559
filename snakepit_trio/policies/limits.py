"""Limits of how many calls run at once and how many begin in a second."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from snakepit_trio.errors import QueueFull, QuotaExceeded, RequestTimeout, WouldDeadlock
from snakepit_trio.tools.waits import Permit

if TYPE_CHECKING:
    from snakepit_trio.tools.waits import Waits

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
        self.holders: dict[Permit, None] = {}
        self.queue: dict[Permit, anyio.Event] = {}
        self.bucket = None
        if config.rate is not None:
            burst = max(1, int(config.rate)) if config.burst is None else config.burst
            self.bucket = TokenBucket(config.rate, burst)
        self.inside = 0
        self.waiting = 0

    def hopeless(self, blocked: Container[object]) -> bool:
        """Whether each permit is held by one of these."""
        return all(permit in blocked for permit in self.holders)

    def leave(self, permit: Permit) -> None:
        """A permit is given back, or waited for no longer; does nothing when it was neither held nor waited for."""
        if permit in self.holders:
            del self.holders[permit]
            if self.queue:
                following = next(iter(self.queue))
                self.holders[following] = None
                self.queue.pop(following).set()
        else:
            self.queue.pop(permit, None)

    def rests(self, now: float) -> bool:
        """Whether it is as a new one would be."""
        return not self.inside and (self.bucket is None or self.bucket.rests(now))


class Limit:
    """One configured limit, with what it counts by key.

    Args:
        config: What is allowed.
        waits: Where it is seen that a wait for a permit would never end.
        told: Called when a call comes too early, with ``"rate"`` or ``"concurrency"`` and whether it is refused.
    """

    def __init__(self, config: LimitConfig, waits: Waits, told: Callable[[str, str, bool], object]) -> None:
        self._config = config
        self._waits = waits
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
    async def inside(
        self, key: str, tool: str, deadline: float, chain: tuple[Any, ...]
    ) -> AsyncIterator[Permit | None]:
        """Wait until a call may begin, and count it until the block ends. A cancellation leaves nothing counted.

        Gives the permit, None when only the rate is limited.

        Args:
            key: What :meth:`key` says.
            tool: The tool.
            deadline: When the wait ends at the latest.
            chain: Whoever can't go on before the call does.

        Raises:
            QuotaExceeded: It comes too early, and calls don't wait here.
            QueueFull: As many wait as may.
            RequestTimeout: The deadline has come, or the wait would be longer than until then.
            WouldDeadlock: Whoever could make way waits for this call, or for one like it.
        """
        gate = self._gate(key)
        permit = None if self._config.concurrency is None else Permit()
        gate.inside += 1
        try:
            if permit is not None:
                await self._enter(gate, permit, tool, deadline, chain)
            await self._take(gate, tool, deadline)
            yield permit
        finally:
            if permit is not None:
                gate.leave(permit)
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

    async def _enter(self, gate: _Gate, permit: Permit, tool: str, deadline: float, chain: tuple[Any, ...]) -> None:
        most = self._config.concurrency
        assert most is not None
        if len(gate.holders) < most:
            gate.holders[permit] = None
            return
        self._too_early(gate, tool, "concurrency", most)
        ready = gate.queue[permit] = anyio.Event()
        refused = False

        def refuse() -> None:
            nonlocal refused
            refused = True
            gate.leave(permit)
            ready.set()

        with _Waiting(gate), anyio.CancelScope(deadline=deadline) as scope:
            if chain:
                self._waits.add(permit, chain, gate.hopeless, refuse)
            try:
                await ready.wait()
            finally:
                self._waits.remove(permit)
        if refused:
            raise WouldDeadlock(
                f"{tool!r} would wait for its limit of {most} calls at once, and each of them waits for a call like it",
                details={"tool": tool, "limit": most},
            )
        if scope.cancelled_caught:
            raise _out_of_time(tool)

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
                with _Waiting(gate):
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

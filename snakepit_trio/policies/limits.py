"""Limits on concurrent calls and on the rate of calls.

Theory of operation ------------------- A limit has a *gate* for each key that it counts by. A call needs a *permit* of
the gate if concurrency is limited, and a *token* if the rate is limited. A permit is held until the call has ended and
its tool has stopped. A token is reserved first, and taken when the call begins, together with the tokens of its other
limits. So a call that leaves before that has used nothing, and tokens reserved long ago do not add to the burst.

A call passes its gates from the narrowest to the widest, and keeps what it holds of earlier gates while it waits.
:class:`~snakepit_trio.tools.waits.Waits` finds waits for permits that would never end. The holder of a reservation may
be waiting for a permit, so a call for which others wait ignores reservations and waits for time alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio

from snakepit_trio.errors import QueueFull, QuotaExceeded, RequestTimeout, WouldDeadlock
from snakepit_trio.tools.waits import Permit

from .token_bucket import TokenBucket, TokenLine

if TYPE_CHECKING:
    from snakepit_trio._timeouts import TimeLimit
    from snakepit_trio.tools.waits import Waits

    from .options import LimitConfig

__all__ = ["Admission", "Limit", "Pass", "out_of_time"]

#: With more keys than this, idle keys are forgotten.
_MANY = 1000


class _Gate:
    """The state of one key."""

    def __init__(self, config: LimitConfig) -> None:
        self.holders: dict[Permit, None] = {}
        self.queue: OrderedDict[Permit, anyio.Event] = OrderedDict()
        self.bucket: TokenBucket | None = None
        if config.rate is not None:
            burst = max(1, int(config.rate)) if config.burst is None else config.burst
            self.bucket = TokenBucket(config.rate, burst)
        self.line: TokenLine = TokenLine()
        self.nested_line: TokenLine = TokenLine()
        self.inside = 0
        self.waiting = 0

    def hopeless(self, blocked: Container[object]) -> bool:
        """Return whether each permit is given back only after one of these has ended."""
        return all(permit.is_kept(blocked) for permit in self.holders)

    def leave(self, permit: Permit) -> None:
        """Give a permit back, or stop waiting for it; does nothing for a permit that was neither held nor awaited."""
        if permit in self.holders:
            del self.holders[permit]
            if self.queue:
                following, ready = self.queue.popitem(last=False)
                self.holders[following] = None
                ready.set()
        else:
            self.queue.pop(permit, None)

    def ring(self) -> None:
        """Wake a waiter, because a reservation was given up."""
        self.line.ring()
        self.nested_line.ring()

    def rests(self, now: float) -> bool:
        """Return whether the gate is in the state of a new one."""
        return not self.inside and not self.holders and (self.bucket is None or self.bucket.rests(now))


class Pass:
    """A call's permit, reserved token, or both, of one limit.

    Attributes:
        permit: The permit; None if only the rate is limited.
        key, gate: The key that the call counts for, and its gate.
    """

    __slots__ = ("_given", "_left", "_limit", "_reserved", "gate", "key", "permit")

    def __init__(self, limit: Limit, key: str, gate: _Gate) -> None:
        self.permit: Permit | None = None
        self._limit = limit
        self.key: str = key
        self.gate: _Gate = gate
        self._reserved = False
        self._left = self._given = False
        gate.inside += 1

    def reserve(self) -> None:
        """Reserve a token."""
        bucket = self.gate.bucket
        assert bucket is not None
        bucket.reserved += 1
        self._reserved = True

    def delay(self, now: float) -> float:
        """Return the seconds until the call may begin: 0, unless calls that ignore reservations have taken its token."""
        bucket = self.gate.bucket
        return 0.0 if bucket is None else bucket.delay(now)

    def begin(self, now: float) -> None:
        """Take the token as the call begins."""
        bucket = self.gate.bucket
        if bucket is not None:
            bucket.take(now)
            self._unreserve(bucket)

    def leave(self) -> None:
        """Record the end of the call. The permit is given back when the tool has stopped too. Idempotent; after an
        exception, another call of this method completes it.
        """
        if not self._left:
            gate = self.gate
            if self.permit is not None and not self._given:
                self.permit.leave()
                self._given = True
            if gate.bucket is not None:
                self._unreserve(gate.bucket)
            self._left = True
            gate.inside -= 1
            self._limit.tidy(self.key)

    def _unreserve(self, bucket: TokenBucket) -> None:
        if self._reserved:
            self._reserved = False
            bucket.reserved -= 1
            self.gate.ring()


class Admission:
    """The passes of a call through all its limits; a context manager that gives them back."""

    __slots__ = ("passes",)

    def __init__(self, passes: Sequence[Pass] = ()) -> None:
        self.passes: list[Pass] = list(passes)

    @property
    def permits(self) -> tuple[Permit, ...]:
        """The permits of concurrency limits."""
        return tuple(found.permit for found in self.passes if found.permit is not None)

    def delay(self, now: float) -> float:
        """Return the seconds until the call may begin."""
        return max((found.delay(now) for found in self.passes), default=0.0)

    def begin(self, now: float) -> None:
        """Take the tokens as the call begins; see :meth:`delay`."""
        for found in self.passes:
            found.begin(now)

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        failure: Exception | None = None
        for found in reversed(self.passes):
            try:
                found.leave()
            except Exception as error:
                # Give the rest back, because other calls may wait for it; the exception is raised to the caller
                # afterwards.
                failure = error
                found.leave()
        if failure is not None:
            raise failure


class Limit:
    """One configured limit, with its gates by key.

    Args:
        config: The configuration.
        waits: Finds waits for permits that would never end.
        told: Called when a call is beyond the limit, with ``"rate"`` or ``"concurrency"`` and whether the call is
            refused.
    """

    def __init__(self, config: LimitConfig, waits: Waits, told: Callable[[str, str, bool], object]) -> None:
        self._config = config
        self._waits = waits
        self._told = told
        self._gates: dict[str, _Gate] = {}

    def __repr__(self) -> str:
        return f"<Limit per={self._config.per} keys={len(self._gates)}>"

    @property
    def width(self) -> int:
        """Return a number that orders limits by how many calls share a gate; see the theory of operation."""
        return ("session", "tool", "pool").index(self._config.per)

    def key(self, tool: str, session: str | None) -> str | None:
        """Return the key that a call counts for; None if the limit does not apply to it."""
        config = self._config
        if config.tools and tool not in config.tools:
            return None
        return {"tool": tool, "session": session, "pool": ""}[config.per]

    async def enter(
        self,
        key: str,
        tool: str,
        deadline: float,
        chain: tuple[Any, ...],
        pausing: Callable[[], AbstractContextManager[object]],
        *,
        limit: TimeLimit,
        nested: bool,
    ) -> Pass:
        """Wait until this limit allows a call to begin. A cancellation leaves nothing counted.

        Args:
            key: The result of :meth:`key`.
            tool: The tool.
            deadline: The time at which the wait ends.
            chain: The chain of the call; see :mod:`snakepit_trio.tools.waits`.
            pausing: Wraps a wait, and raises the error that ends it.
            limit: The limit that sets the deadline.
            nested: Whether others wait for the call.

        Raises:
            QuotaExceeded: The call is beyond the limit, and ``wait`` is false.
            QueueFull: ``max_waiting`` calls are already waiting.
            RequestTimeout: The deadline has passed, or passes before there can be a token.
            WouldDeadlock: Every holder of a permit waits for this call, or for one like it.
        """
        made = Pass(self, key, self._gate(key))
        try:
            await self._get_permit(made, tool, chain, pausing)
            await self._get_token(made, tool, deadline, pausing, limit=limit, nested=nested)
        except BaseException:
            Admission([made]).__exit__(None, None, None)
            raise
        return made

    def enter_nowait(self, key: str) -> Pass | None:
        """Return a pass for a call that begins now, or None if the call would have to wait."""
        gate = self._gate(key)
        bucket = gate.bucket
        if self._is_full(gate) or (bucket is not None and (len(gate.line) or bucket.spare_delay(anyio.current_time()))):
            return None
        made = Pass(self, key, gate)
        if self._config.concurrency is not None:
            made.permit = self._permit(key, gate)
            gate.holders[made.permit] = None
        if bucket is not None:
            made.reserve()
        return made

    def tidy(self, key: str) -> None:
        """Forget an idle key."""
        gate = self._gates.get(key)
        if gate is not None and gate.rests(anyio.current_time()):
            del self._gates[key]

    # ---- inside ----------------------------------------------------------------------------------

    def _gate(self, key: str) -> _Gate:
        gate = self._gates.get(key)
        if gate is None:
            if len(self._gates) >= _MANY:
                now = anyio.current_time()
                self._gates = {key: gate for key, gate in self._gates.items() if not gate.rests(now)}
            gate = self._gates[key] = _Gate(self._config)
        return gate

    def _is_full(self, gate: _Gate) -> bool:
        most = self._config.concurrency
        return most is not None and len(gate.holders) >= most

    def _permit(self, key: str, gate: _Gate) -> Permit:
        def give_back(permit: Permit) -> None:
            gate.leave(permit)
            self.tidy(key)

        return Permit(give_back)

    async def _get_permit(
        self, made: Pass, tool: str, chain: tuple[Any, ...], pausing: Callable[[], AbstractContextManager[object]]
    ) -> None:
        most = self._config.concurrency
        if most is None:
            return
        gate = made.gate
        if not self._is_full(gate):
            made.permit = self._permit(made.key, gate)
            gate.holders[made.permit] = None
            return
        self._too_early(gate, tool, "concurrency", most)
        permit = made.permit = self._permit(made.key, gate)
        ready = gate.queue[permit] = anyio.Event()
        refused = False

        def refuse() -> None:
            nonlocal refused
            refused = True
            gate.leave(permit)
            ready.set()

        gate.waiting += 1
        try:
            with pausing():
                if chain:
                    self._waits.add(permit, chain, gate.hopeless, refuse)
                try:
                    await ready.wait()
                finally:
                    self._waits.remove(permit)
        finally:
            gate.waiting -= 1
        if refused:
            raise WouldDeadlock(
                f"{tool!r} would wait for its limit of {most} calls at once, and none ends before a call that waits for it",
                details={"tool": tool, "limit": most},
            )

    async def _get_token(
        self,
        made: Pass,
        tool: str,
        deadline: float,
        pausing: Callable[[], AbstractContextManager[object]],
        *,
        limit: TimeLimit,
        nested: bool,
    ) -> None:
        gate = made.gate
        bucket = gate.bucket
        if bucket is None:
            return
        delay = bucket.delay if nested else bucket.spare_delay
        line = gate.nested_line if nested else gate.line
        now = anyio.current_time()
        if len(line) or delay(now):
            self._too_early(gate, tool, "rate", self._config.rate)
            if now + bucket.delay(now) > deadline:
                raise out_of_time(tool, "its limit", limit)
            gate.waiting += 1
            try:
                with pausing():
                    await line.wait(lambda: delay(anyio.current_time()))
            finally:
                gate.waiting -= 1
        made.reserve()

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


def out_of_time(tool: str, what: str, limit: TimeLimit) -> RequestTimeout:
    """Return the error of a call whose deadline passed while it waited for ``what``."""
    return RequestTimeout(
        f"{tool!r} was waiting for {what} when {limit} was spent",
        details={"phase": "queued", "tool": tool, "option": limit.option, "limit": limit.seconds},
    )

"""The observer of a pool's requests: events, the flight recorder's ring, durations, traces, and the detection of waits
that can't end.

It is called for each step of each request, so an unused function costs one comparison, and the ring one append.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import attrs

from snakepit_trio.errors import QueueFull, WouldDeadlock

from .scheduling.request import Outcome, Request

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.observe.events import EventBus
    from snakepit_trio.tools.waits import Waits

    from .fleet.supervisor import ScaledFleet, Supervisor
    from .scheduling.ledger import Ledger
    from .scheduling.scheduler import Scheduler

__all__ = ["NestedRequests", "RequestObserver", "Timings"]

_QUEUED, _DISPATCHED = "queued", "dispatched"
_CANCELLED, _REJECTED = Outcome.CANCELLED.value, Outcome.REJECTED.value
_NAMES = {event: f"request.{event}" for event in (_QUEUED, _DISPATCHED, *(outcome.value for outcome in Outcome))}


class Timings(Protocol):
    """Counts the durations of requests."""

    def ended(self, pool: str, tool: str, outcome: str, wait: float, duration: float) -> None:
        """Count an ended request; ``wait`` is nan if it was not dispatched. Times are in seconds."""


@attrs.frozen
class Ended:
    """An ended request, for the flight recorder; times are those of the event loop."""

    outcome: str
    request_id: str
    tool: str
    session_id: str | None
    worker_id: str | None
    attempt: int
    error: str | None
    submitted_at: float
    dispatched_at: float
    ended_at: float


class NestedRequests:
    """Registers a pool's nested requests, and those that hold permits, with :class:`~snakepit_trio.tools.waits.Waits`.

    Args:
        config: The pool's configuration.
        waits: The nested waits of all pools.
        scheduler: The pool's scheduler.
        supervisor: Knows which workers will come.
    """

    def __init__(self, config: PoolConfig, waits: Waits, scheduler: Scheduler, supervisor: Supervisor) -> None:
        self._config = config
        self._waits = waits
        self._scheduler = scheduler
        self._supervisor = supervisor

    def follow(self, event: str, request: Request) -> None:
        """Handle a step of a request for which a tool, or a waiter for its permits, waits: check whether its own wait can
        end.
        """
        waits = self._waits
        if event == "queued":
            waits.add(
                request,
                (*request.chain, *request.permits),
                lambda blocked: self._scheduler.hopeless(request, blocked) and not self._expecting(request, blocked),
                lambda: self._scheduler.end(request, self._would_deadlock(request), anyio.current_time()),
            )
        else:
            waits.remove(request)

    def _expecting(self, request: Request, blocked: Container[object]) -> bool:
        """Return whether a worker will come that may run a request, although none of these ends before."""
        if request.pin is not None:
            return False
        return self._supervisor.expects(blocked) or self._supervisor.size < (self._config.max_size or 0)

    def _would_deadlock(self, request: Request) -> WouldDeadlock:
        return WouldDeadlock(
            f"{request.tool!r} would wait for a worker of pool {self._config.name!r}, and none has room before a call ends that "
            "waits for it",
            details={"tool": request.tool, "pool": self._config.name},
        )


class RequestObserver:
    """The observer of one pool's scheduler.

    Args:
        pool: The pool's name.
        prefix: The prefix that makes a request's number its id.
        events: The event bus.
        keep: The number of ended requests that are kept.
        timings: Counts durations of requests, or None.
        ledger: The pool's tables.
        nested: Follows requests for which tools, or waiters for their permits, wait.
        scaled: Called when a request begins to wait; None if the pool does not scale.
    """

    def __init__(
        self,
        pool: str,
        prefix: str,
        events: EventBus,
        keep: int,
        timings: Timings | None,
        ledger: Ledger,
        nested: NestedRequests,
        scaled: ScaledFleet | None,
    ) -> None:
        self._pool = pool
        self._prefix = prefix
        self._events = events
        # Plain values only, because a request would keep its payload and its result.
        self._ended: deque[tuple[Any, ...]] = deque(maxlen=keep)
        self._timings = timings
        self._ledger = ledger
        self._nested = nested
        self._scaled = scaled
        # The largest number of waiting requests, after one was refused; None before.
        self._saturated: int | None = None

    def __repr__(self) -> str:
        return f"<RequestObserver of {self._pool!r} ended={len(self._ended)}>"

    def ended(self) -> Iterator[Ended]:
        """Yield the last ended requests, oldest first."""
        for outcome, number, *rest in self._ended:
            yield Ended(outcome, f"{self._prefix}{number}", *rest)

    def __call__(self, event: str, request: Request, now: float) -> None:
        """See :class:`~snakepit_trio.pool.scheduling.ledger.Observer`."""
        if event == _DISPATCHED:
            if self._saturated is not None:
                self._note_room(self._saturated)
        elif event == _QUEUED:
            if self._scaled is not None:
                self._scaled.poke()
        else:
            self._ended.append(
                (
                    event,
                    request.id,
                    request.tool,
                    request.session,
                    request.worker_id,
                    request.attempt,
                    None if request.error is None else _error(event, request),
                    request.submitted_at,
                    request.dispatched_at,
                    now,
                )
            )
            if self._timings is not None:
                wait = request.dispatched_at - request.submitted_at
                self._timings.ended(self._pool, request.tool, event, wait, now - request.submitted_at)
            if event == _REJECTED:
                self._note_refusal(request)
        if self._events.active and self._events.wanted(_NAMES[event]):
            self._publish(event, request, now)
        if request.trace is not None:
            request.trace.note(event, request, now)
        if request.chain or request.permits:
            self._nested.follow(event, request)

    def _note_refusal(self, request: Request) -> None:
        error = request.error
        if isinstance(error, QueueFull) and self._saturated is None:
            self._saturated = error.details["limit"]
            self._events.emit("queue.saturated", {"queued": self._ledger.queued}, pool=self._pool)

    def _note_room(self, limit: int) -> None:
        queued = self._ledger.queued
        if queued <= limit // 2:
            self._saturated = None
            self._events.emit("queue.relieved", {"queued": queued}, pool=self._pool)

    def _publish(self, event: str, request: Request, now: float) -> None:
        measurements: dict[str, float] = {}
        metadata: dict[str, Any] = {
            "request_id": f"{self._prefix}{request.id}",
            "pool": self._pool,
            "tool": request.tool,
        }
        if request.session is not None:
            metadata["session_id"] = self._events.clean(request.session)
        if request.worker_id is not None:
            metadata["worker_id"] = request.worker_id
        if event == _DISPATCHED:
            measurements["queue_wait"] = now - request.submitted_at
            metadata["attempt"] = request.attempt
        elif event != _QUEUED:
            measurements["duration"] = now - request.submitted_at
            error = _error(event, request)
            if error is not None:
                metadata["error"] = error
        self._events.emit_frequent(_NAMES[event], measurements, metadata)


def _error(event: str, request: Request) -> str | None:
    """Return the code of the error with which a request ended.

    A request whose caller has left ended without one, although the worker may have noticed the end of the caller's
    scope first.
    """
    return None if request.error is None or event == _CANCELLED else request.error.code

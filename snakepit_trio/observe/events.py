"""The event bus of a runtime. Emitting an event without subscribers costs almost nothing."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import attrs

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import managed, protected
from snakepit_trio.errors import InvalidParameter

from .catalogue import CATALOGUE, EVENT_NAME
from .redaction import redact_value

__all__ = ["Event", "EventBus", "EventStream"]

_log = logging.getLogger("snakepit_trio.events")


@attrs.frozen
class Event:
    """One event.

    Attributes:
        name: A dotted name, such as ``"request.completed"``.
        measurements: Numbers; durations in seconds, sizes in bytes.
        metadata: The affected objects: ``pool``, ``request_id``, ``worker_id``, ``tool``, as far as known.
        time: Wall-clock time, in seconds since the epoch.
    """

    name: str
    measurements: Mapping[str, float] = attrs.field(factory=dict)
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    time: float = attrs.field(factory=time.time)


class EventStream:
    """A subscription: an async iterator over events, for one task.

    Attributes:
        dropped: The number of events lost because the subscriber did not keep up; the oldest are dropped first.
    """

    def __init__(self, prefixes: tuple[str, ...], capacity: int) -> None:
        self._prefixes = prefixes
        self._events: deque[Event] = deque(maxlen=capacity)
        self._arrived = anyio.Event()
        self._closed = False
        self.dropped: int = 0

    def __repr__(self) -> str:
        return f"<EventStream {', '.join(self._prefixes) or 'all'} waiting={len(self._events)} dropped={self.dropped}>"

    def _wants(self, name: str) -> bool:
        return not self._prefixes or name.startswith(self._prefixes)

    def _offer(self, event: Event) -> None:
        if len(self._events) == self._events.maxlen:
            self.dropped += 1
        self._events.append(event)
        self._arrived.set()

    def _close(self) -> None:
        self._closed = True
        self._arrived.set()

    def receive_nowait(self) -> Event | None:
        """Return the oldest waiting event, or None."""
        return self._events.popleft() if self._events else None

    def __aiter__(self) -> EventStream:
        return self

    @protected
    async def __anext__(self) -> Event:
        """Wait for the next event. A cancellation loses no event. Ends when the runtime does, after the waiting events."""
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._arrived = anyio.Event()
            await self._arrived.wait()
        await anyio.lowlevel.checkpoint()
        return self._events.popleft()


class EventBus:
    """The event bus of a runtime.

    Args:
        keep: The number of last rare events that are kept for the flight recorder.
        redact: Removes secrets from metadata.

    Attributes:
        history: The last events of :meth:`emit`, oldest first.
        errors: Reports an event that can't be created; nothing ends by that.
    """

    #: Set by tests: checks each emitted event.
    check: ClassVar[Callable[[str, Mapping[str, float], Mapping[str, Any]], None] | None] = None

    def __init__(self, keep: int = 0, redact: Callable[[Any], Any] = redact_value) -> None:
        self.history: deque[Event] = deque(maxlen=keep)
        self.errors: InternalErrors = InternalErrors()
        self._redact = redact
        self._streams: dict[EventStream, None] = {}
        #: Whether there is any subscription.
        self.active: bool = False
        # The subscriptions by event name, for the library's own names only, so the table stays small.
        self._listeners: dict[str, tuple[EventStream, ...]] = {}
        self._closed = False

    def wanted(self, name: str) -> bool:
        """Return whether an event has a subscriber, so that the emitter can skip creating it."""
        return self.active and bool(self._who(name))

    def clean(self, value: Any) -> Any:
        """Return a value without secrets, for :meth:`emit_frequent`."""
        return self._redact(value)

    def _who(self, name: str) -> tuple[EventStream, ...]:
        found = self._listeners.get(name)
        if found is None:
            found = tuple(stream for stream in self._streams if stream._wants(name))
            if name in CATALOGUE:
                self._listeners[name] = found
        return found

    def emit(self, name: str, measurements: Mapping[str, float] | None = None, /, **metadata: Any) -> None:
        """Emit a rare event, and keep it in the history. Never waits, and raises nothing."""
        with self.errors.bulkhead("observer"):
            if self.history.maxlen or self.wanted(name):
                found = measurements or {}
                cls = type(self)
                if cls.check is not None:
                    cls.check(name, found, metadata)
                event = Event(name, found, self._redact(metadata))
                self.history.append(event)
                self._offer(event)
                if _log.isEnabledFor(logging.DEBUG):
                    _log.debug("%s", name, extra={"event": name, **event.measurements, **event.metadata})

    def emit_frequent(self, name: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """Emit a frequent event, which is not kept. ``metadata`` must hold no secrets: pass the application's values
        through :meth:`clean`.
        """
        if self.wanted(name):
            cls = type(self)
            if cls.check is not None:
                cls.check(name, measurements, metadata)
            self._offer(Event(name, measurements, metadata))

    def emit_from_tool(self, name: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """Emit an event of a tool.

        Raises:
            ValueError: The name is malformed or reserved, or a measurement is not a number.
        """
        if name in CATALOGUE or not EVENT_NAME.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is no name for an event of a tool")
        for key, value in measurements.items():
            if not isinstance(key, str) or isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"the measurements of {name} are not numbers by name")
        if self.wanted(name):
            self._offer(Event(name, measurements, self._redact(metadata)))

    def _offer(self, event: Event) -> None:
        for stream in self._who(event.name):
            stream._offer(event)

    @managed
    async def subscribe(self, *prefixes: str, capacity: int = 10_000) -> AsyncIterator[EventStream]:
        """Subscribe to events whose names begin with one of ``prefixes``; without prefixes, to all events.

        Leaving the block, also by a cancellation, ends the subscription.

        Args:
            prefixes: Prefixes of names, such as ``"worker."`` or ``"request.completed"``.
            capacity: The number of events that wait for the subscriber before the oldest is dropped.

        Raises:
            InvalidParameter: An argument is invalid.
        """
        for prefix in prefixes:
            if not isinstance(prefix, str):
                raise InvalidParameter(
                    f"events are chosen by what their names begin with, not by {prefix!r}", details={"path": "prefixes"}
                )
        if type(capacity) is not int or capacity < 1:
            raise InvalidParameter(f"capacity must be a positive int, not {capacity!r}", details={"path": "capacity"})
        stream = EventStream(prefixes, capacity)
        if self._closed:
            stream._close()
        self._streams[stream] = None
        self.active = True
        self._listeners.clear()
        try:
            yield stream
        finally:
            del self._streams[stream]
            self.active = bool(self._streams)
            self._listeners.clear()

    def close(self) -> None:
        """End every subscription after its waiting events."""
        self._closed = True
        for stream in self._streams:
            stream._close()

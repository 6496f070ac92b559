"""Events: what happens in a runtime, told to whoever subscribes, at no cost to what happens."""

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
    """One thing that happened.

    Attributes:
        name: Dotted, such as ``"request.completed"``.
        measurements: Numbers; durations in seconds, sizes in bytes.
        metadata: What it happened to: ``pool``, ``request_id``, ``worker_id``, ``tool``, where known.
        time: Wall-clock time, in seconds since the epoch.
    """

    name: str
    measurements: Mapping[str, float] = attrs.field(factory=dict)
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    time: float = attrs.field(factory=time.time)


class EventStream:
    """A subscription: an async iterator of events, for one task.

    Attributes:
        dropped: How many events were lost because the subscriber did not read; the oldest go first.
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
        """The oldest event that waits, or None."""
        return self._events.popleft() if self._events else None

    def __aiter__(self) -> EventStream:
        return self

    @protected
    async def __anext__(self) -> Event:
        """Wait for the next event. A cancellation loses none. Ends when the runtime does, after what still waits."""
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._arrived = anyio.Event()
            await self._arrived.wait()
        await anyio.lowlevel.checkpoint()
        return self._events.popleft()


class EventBus:
    """Where events are emitted and subscribed to. One per runtime.

    Args:
        keep: How many of the last events that come singly are kept for the flight recorder.
        redact: Takes secrets out of metadata.

    Attributes:
        history: The last events that were emitted by :meth:`emit`, the oldest first.
        errors: Where it is told when an event can't be made, which ends nothing.
    """

    #: Set by tests: called with each emission, which it checks.
    check: ClassVar[Callable[[str, Mapping[str, float], Mapping[str, Any]], None] | None] = None

    def __init__(self, keep: int = 0, redact: Callable[[Any], Any] = redact_value) -> None:
        self.history: deque[Event] = deque(maxlen=keep)
        self.errors: InternalErrors = InternalErrors()
        self._redact = redact
        self._streams: dict[EventStream, None] = {}
        #: Whether anybody listens to anything.
        self.active: bool = False
        # Who listens to what; of the library's own names only, so that it stays small.
        self._listeners: dict[str, tuple[EventStream, ...]] = {}
        self._closed = False

    def wanted(self, name: str) -> bool:
        """Whether anybody listens to this event: an emitter may save itself the making of it."""
        return self.active and bool(self._who(name))

    def clean(self, value: Any) -> Any:
        """A value for :meth:`emit_frequent` without secrets."""
        return self._redact(value)

    def _who(self, name: str) -> tuple[EventStream, ...]:
        found = self._listeners.get(name)
        if found is None:
            found = tuple(stream for stream in self._streams if stream._wants(name))
            if name in CATALOGUE:
                self._listeners[name] = found
        return found

    def emit(self, name: str, measurements: Mapping[str, float] | None = None, /, **metadata: Any) -> None:
        """Tell the subscribers, and remember it. For what happens now and then. Never waits, and raises nothing."""
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
        """Tell the subscribers what happens often: it is not remembered. ``metadata`` holds no secrets:
        what the application has chosen goes through :meth:`clean` first."""
        if self.wanted(name):
            cls = type(self)
            if cls.check is not None:
                cls.check(name, measurements, metadata)
            self._offer(Event(name, measurements, metadata))

    def emit_from_tool(self, name: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """Tell the subscribers of an event that is not the library's own: a tool's.

        Raises:
            ValueError: Its name is none, or one of the library's, or it measures what is no number.
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
        """Listen to events whose names begin with one of ``prefixes``; to all without any.

        Args:
            prefixes: Such as ``"worker."`` or ``"request.completed"``.
            capacity: How many events wait for the subscriber before the oldest is dropped.

        Raises:
            InvalidParameter: An argument is refused.
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
        """End every subscription, after what still waits in it."""
        self._closed = True
        for stream in self._streams:
            stream._close()

"""Events: what happens in a runtime, told to whoever subscribes, at no cost to what happens."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import attrs

__all__ = ["Event", "EventBus", "EventStream"]


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
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<EventStream {', '.join(self._prefixes) or 'all'} waiting={len(self._events)} dropped={self.dropped}>"

    def _offer(self, event: Event) -> None:
        if self._prefixes and not event.name.startswith(self._prefixes):
            return
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
    """Where events are emitted and subscribed to. One per runtime."""

    def __init__(self) -> None:
        self._streams: dict[EventStream, None] = {}
        self._closed = False

    @property
    def active(self) -> bool:
        """Whether anybody listens: an emitter may save itself the making of an event."""
        return bool(self._streams)

    def emit(self, name: str, measurements: Mapping[str, float] | None = None, /, **metadata: Any) -> None:
        """Tell the subscribers. Never waits, never raises for a slow one."""
        if self._streams:
            event = Event(name, measurements or {}, metadata)
            for stream in self._streams:
                stream._offer(event)

    @asynccontextmanager
    async def subscribe(self, *prefixes: str, capacity: int = 10_000) -> AsyncIterator[EventStream]:
        """Listen to events whose names begin with one of ``prefixes``; to all without any.

        Args:
            prefixes: Such as ``"worker."`` or ``"request.completed"``.
            capacity: How many events wait for the subscriber before the oldest is dropped.
        """
        stream = EventStream(prefixes, capacity)
        if self._closed:
            stream._close()
        self._streams[stream] = None
        try:
            yield stream
        finally:
            del self._streams[stream]

    def close(self) -> None:
        """End every subscription, after what still waits in it."""
        self._closed = True
        for stream in self._streams:
            stream._close()

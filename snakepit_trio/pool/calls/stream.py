"""The consumer's side of a streaming call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from snakepit_trio._chunks import Chunks
from snakepit_trio.wire.frames import Payload

from ..scheduling.request import Outcome, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from snakepit_trio._bulkhead import InternalErrors
    from snakepit_trio._waiting import EventLoop

    from ..scheduling.request import Request

__all__ = ["STREAM_BYTES", "STREAM_WINDOW", "ChunkStream"]

#: The largest number of chunks of one stream that may be in transit or wait for the consumer, and of their bytes, which
#: one chunk may exceed.
STREAM_WINDOW, STREAM_BYTES = 64, 16 * 1024 * 1024


class ChunkStream(Chunks[Payload]):
    """The chunks of one call of a pool; see :class:`snakepit_trio._chunks.Chunks`.

    Up to ``window`` chunks are in transit or wait here, and no chunk is sent while they have ``window_bytes`` or more,
    so a paused consumer pauses the tool's generator.

    The iteration raises the errors of a call (``ToolError``, ``RequestTimeout``, ``WorkerCrashed`` and so on) after the
    chunks that arrived before; a timeout is raised at once.
    """

    def __init__(
        self,
        window: int,
        window_bytes: int,
        decode: Callable[[Payload], Any],
        loop: EventLoop,
        errors: InternalErrors,
    ) -> None:
        super().__init__(loop, errors)
        self.request: Request | None = None
        self.window = window
        self.window_bytes = window_bytes
        #: Called when the bytes of the waiting chunks have changed.
        self.on_held: Callable[[], object] | None = None
        # The number of chunks that the worker may still send.
        self._credits = window
        self._room = window_bytes
        self._decode = decode
        self._taken = 0
        self._taken_bytes = 0
        self._given = False
        # Whether a reader was waiting when the call ended.
        self._starved = False
        self.released: anyio.Event = anyio.Event()

    def __repr__(self) -> str:
        return f"<ChunkStream {self.request!r} waiting={len(self._chunks)}>"

    @property
    def held(self) -> int:
        """The bytes of the waiting chunks."""
        return 0 if self._left else self.window_bytes - self._room - self._taken_bytes

    def put(self, chunk: Payload) -> None:
        """Add a received chunk.

        Raises:
            ValueError: The worker had no credit for it.
        """
        if self._credits <= 0 or self._room <= 0:
            raise ValueError("a chunk beyond its credit")
        self._credits -= 1
        self._room -= chunk.size if chunk.buffers else len(chunk.data)
        if self._left:
            return
        self._chunks.append(chunk)
        if self.on_held is not None:
            self.on_held()
        if self._consumer is not None:
            self._consumer.wake()

    def wake(self) -> None:
        """Wake the consumer, because the call has ended."""
        self._starved = self._consumer is not None
        self._wake()

    def verdict(self, *, gone: bool) -> BaseException | bool | None:
        """Return the call's outcome for the circuit breaker as its reader leaves: the failure, True for a success, None
        for neither.

        Args:
            gone: Whether the reader was cancelled.
        """
        request = self.request
        assert request is not None
        if request.outcome is None:
            return None if gone or not self._given else True
        if request.outcome is Outcome.EXPIRED and not self._starved:
            # The reader caused the delay.
            return None
        return True if request.outcome is Outcome.COMPLETED else request.error

    def leave(self) -> None:
        """Record that the consumer has left; further reads raise ClosedResourceError."""
        self.on_held = None
        super().leave()

    def _take(self) -> Any:
        request = self.request
        assert request is not None
        if request.outcome is Outcome.EXPIRED and request.error is not None:
            raise request.error
        self._given = True
        chunk = self._chunks.popleft()
        self._taken += 1
        self._taken_bytes += chunk.size if chunk.buffers else len(chunk.data)
        half = self._taken * 2 >= self.window or self._taken_bytes * 2 >= self.window_bytes
        if self.on_held is not None:
            self.on_held()
        if half and request.phase is Phase.RUNNING and request.seats is not None:
            # Credits are returned in halves of the window: one frame for many chunks, and the tool never runs out of
            # credit.
            self._credits += self._taken
            self._room += self._taken_bytes
            request.seats.port.credit(request, self._taken, self._taken_bytes)
            self._taken = self._taken_bytes = 0
        return self._decode(chunk)

    async def _ended(self) -> bool:
        request = self.request
        assert request is not None
        if request.phase is not Phase.DONE:
            return False
        if request.error is not None:
            if request.outcome is Outcome.CANCELLED:
                # The worker noticed the deadline of the caller's scope a moment before the scope does.
                await anyio.sleep_until(request.scope_deadline)
            raise request.error
        return True

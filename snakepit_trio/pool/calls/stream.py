"""The consumer's side of a streaming call."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from snakepit_trio._interrupts import protected
from snakepit_trio.errors import SnakepitError

from ..scheduling.request import Outcome, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from snakepit_trio._bulkhead import InternalErrors
    from snakepit_trio._waiting import EventLoop, Waiter
    from snakepit_trio.wire.frames import Payload

    from ..scheduling.request import Request

__all__ = ["STREAM_BYTES", "STREAM_WINDOW", "ChunkStream"]

#: How many chunks of one stream may be under way or wait for the consumer; and bytes, beyond which one chunk may go.
STREAM_WINDOW, STREAM_BYTES = 64, 16 * 1024 * 1024
#: After so many chunks that were there already, other tasks get their turn.
_IN_A_ROW = 16


class ChunkStream:
    """The chunks of one call: an async iterator of the values that the tool yields, for one task: a second one that
    reads at the same time gets ``anyio.BusyResourceError``, and one that reads when the block has been left before the end, or
    is waiting then, ``anyio.ClosedResourceError``, as from any stream of anyio's.

    Up to ``window`` chunks are under way or wait here, and none comes once those have ``window_bytes`` or more; a consumer
    that pauses makes the tool's generator pause.

    Raises, out of the iteration: what a call raises (``ToolError``, ``RequestTimeout``, ``WorkerCrashed`` and so on), after
    the chunks that came before it; a spent timeout comes at once.
    """

    def __init__(
        self,
        window: int,
        window_bytes: int,
        credit: Callable[[int, int], None],
        decode: Callable[[Payload], Any],
        loop: EventLoop,
        errors: InternalErrors,
    ) -> None:
        self._errors = errors
        self.request: Request | None = None
        self.window = window
        self.window_bytes = window_bytes
        #: Called when the bytes of the chunks that wait here have changed.
        self.on_held: Callable[[], object] | None = None
        # What the worker may still send.
        self._credits = window
        self._room = window_bytes
        self._credit = credit
        self._decode = decode
        self._chunks: deque[Payload] = deque()
        self._taken = 0
        self._taken_bytes = 0
        self._in_a_row = 0
        self._left = False
        self._given = False
        self._exhausted = False
        # A reader was waiting when the call ended.
        self._starved = False
        self._reading = False
        self._loop = loop
        self._consumer: Waiter | None = None
        self.released: anyio.Event = anyio.Event()

    def __repr__(self) -> str:
        return f"<ChunkStream {self.request!r} waiting={len(self._chunks)}>"

    @property
    def held(self) -> int:
        """Bytes of the chunks that wait here."""
        return 0 if self._left else self.window_bytes - self._room - self._taken_bytes

    def put(self, chunk: Payload) -> None:
        """A chunk has arrived.

        Raises:
            ValueError: It is beyond what the worker was given credit for.
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
        """The call has ended."""
        self._starved = self._consumer is not None
        if self._consumer is not None:
            self._consumer.wake()

    def verdict(self, *, gone: bool) -> BaseException | bool | None:
        """What the call, which its reader leaves now, says of the tool: how it has failed; True: it did well; None: nothing.

        Args:
            gone: The reader was cancelled.
        """
        request = self.request
        assert request is not None
        if request.outcome is None:
            return None if gone or not self._given else True
        if request.outcome is Outcome.EXPIRED and not self._starved:
            # It was the reader that took so long.
            return None
        return True if request.outcome is Outcome.COMPLETED else request.error

    def leave(self) -> None:
        """The consumer has left; nothing more can be had here."""
        self._left = True
        self.on_held = None
        self._chunks.clear()

    def __aiter__(self) -> ChunkStream:
        return self

    @protected
    async def __anext__(self) -> Any:
        """Wait for the next chunk. A cancellation loses none.

        Raises:
            anyio.BusyResourceError: Another task waits for it already.
            anyio.ClosedResourceError: The block has been left.
        """
        try:
            request = self.request
            assert request is not None
            if self._reading:
                raise anyio.BusyResourceError("reading from")
            self._reading = True
            try:
                if not self._chunks:
                    await self._arrival(request)
                    self._in_a_row = 0
                if request.outcome is Outcome.EXPIRED and request.error is not None:
                    raise request.error
                self._in_a_row += 1
                if self._in_a_row >= _IN_A_ROW:
                    self._in_a_row = 0
                    await anyio.lowlevel.checkpoint()
                else:
                    await self._loop.check()
            finally:
                self._reading = False
            if self._left:
                raise anyio.ClosedResourceError
            self._given = True
            chunk = self._chunks.popleft()
            self._taken += 1
            self._taken_bytes += chunk.size if chunk.buffers else len(chunk.data)
            half = self._taken * 2 >= self.window or self._taken_bytes * 2 >= self.window_bytes
            if self.on_held is not None:
                self.on_held()
            if half and request.phase is Phase.RUNNING:
                # Credits go back in halves of the window: a frame for many chunks, and the tool never runs dry.
                self._credits += self._taken
                self._room += self._taken_bytes
                self._credit(self._taken, self._taken_bytes)
                self._taken = self._taken_bytes = 0
            return self._decode(chunk)
        except (SnakepitError, StopAsyncIteration, anyio.BusyResourceError, anyio.ClosedResourceError):
            raise
        except Exception as exc:
            raise self._errors.caller(exc, "stream") from exc

    async def _arrival(self, request: Request) -> None:
        """Wait until there is a chunk.

        Raises:
            StopAsyncIteration: There will be none, for the call has ended well.
            anyio.ClosedResourceError: The block has been left.
        """
        while not self._chunks:
            if self._left and not self._exhausted:
                raise anyio.ClosedResourceError
            if request.phase is Phase.DONE:
                if request.error is not None:
                    if request.outcome is Outcome.CANCELLED:
                        # The worker saw the end of the caller's scope a moment before the scope itself does.
                        await anyio.sleep_until(request.scope_deadline)
                    raise request.error
                self._exhausted = True
                raise StopAsyncIteration
            self._consumer = self._loop.waiter()
            try:
                await self._consumer.wait()
            finally:
                self._consumer = None

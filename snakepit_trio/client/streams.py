"""What a client iterates over: the chunks of a stream."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import protected
from snakepit_trio.errors import RequestTimeout, SnakepitError
from snakepit_trio.wire.tool_messages import PayloadAnswer

from .channel import LAST_WORD, Opened, failure
from .values import decode

__all__ = ["RemoteChunks"]

#: Chunks that may wait for the consumer before the server is held back, and few enough to go on; and their bytes.
_MANY, _FEW = 64, 16
_MANY_BYTES, _FEW_BYTES = 16 * 1024 * 1024, 4 * 1024 * 1024


class RemoteChunks:
    """The chunks of one call: an async iterator of the values that the tool yields, for one task: a second one that
    reads at the same time gets ``anyio.BusyResourceError``, and one that reads when the block has been left before the end, or
    is waiting then, ``anyio.ClosedResourceError``, as from any stream of anyio's.

    A consumer that pauses makes the tool's generator pause. Errors come out of the iteration, after the chunks before them.
    """

    def __init__(self, timeout: float | None, limit: int, errors: InternalErrors) -> None:
        self._errors = errors
        self.opened: Opened | None = None
        self._deadline = math.inf if timeout is None else anyio.current_time() + timeout
        self._limit = limit
        self._messages: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._held = False
        self._reading = False
        self._left = False
        self._exhausted = False
        self._status: tuple[int, str] | None = None
        self._news = anyio.Event()

    def __repr__(self) -> str:
        return f"<RemoteChunks waiting={len(self._messages)}>"

    def on_message(self, message: bytes) -> None:
        """A chunk has arrived."""
        self._messages.append(message)
        self._waiting_bytes += len(message)
        self._news.set()
        many = len(self._messages) >= _MANY or self._waiting_bytes >= _MANY_BYTES
        if many and not self._held and self.opened is not None:
            self._held = True
            self.opened.rpc.pipe.hold()

    def on_end(self, status: int, message: str) -> None:
        """The call has ended."""
        self._status = status, message
        self._news.set()

    def __aiter__(self) -> RemoteChunks:
        return self

    def leave(self) -> None:
        """The consumer has left; nothing more can be had here."""
        self._left = True
        self._messages.clear()
        self._waiting_bytes = 0
        self._news.set()

    @protected
    async def __anext__(self) -> Any:
        """Wait for the next chunk. A cancellation loses none.

        Raises:
            anyio.BusyResourceError: Another task waits for it already.
            anyio.ClosedResourceError: The block has been left.
        """
        try:
            assert self.opened is not None
            if self._reading:
                raise anyio.BusyResourceError("reading from")
            self._reading = True
            try:
                await self._arrival(self.opened)
                await anyio.lowlevel.checkpoint()
            finally:
                self._reading = False
            if self._left:
                raise anyio.ClosedResourceError
            message = self._messages.popleft()
            self._waiting_bytes -= len(message)
            if self._held and len(self._messages) <= _FEW and self._waiting_bytes <= _FEW_BYTES:
                self._held = False
                self.opened.rpc.pipe.release()
            return decode(PayloadAnswer.parse(message).payload, what="chunk", limit=self._limit)
        except (SnakepitError, StopAsyncIteration, anyio.BusyResourceError, anyio.ClosedResourceError):
            raise
        except Exception as exc:
            raise self._errors.caller(exc, "stream") from exc

    async def _arrival(self, opened: Opened) -> None:
        """Wait until there is a chunk.

        Raises:
            StopAsyncIteration: There will be none, for the call has ended well.
            anyio.ClosedResourceError: The block has been left.
        """
        while not self._messages:
            if self._left and not self._exhausted:
                raise anyio.ClosedResourceError
            if self._status is not None:
                if opened.rpc.unprocessed and await self._again(opened):
                    continue
                status, words = self._status
                if status:
                    raise failure(status, words, opened.rpc.trailers)
                self._exhausted = True
                raise StopAsyncIteration
            self._news = anyio.Event()
            with anyio.CancelScope(deadline=self._deadline + LAST_WORD) as scope:
                await self._news.wait()
            if scope.cancelled_caught:
                opened.rpc.cancel()
                raise RequestTimeout("the stream took too long", details={"phase": "running"})

    async def _again(self, opened: Opened) -> bool:
        """The host has not begun the call: whether it has been sent again."""
        status, self._status = self._status, None
        sent = False
        try:
            with anyio.CancelScope(deadline=self._deadline + LAST_WORD) as scope:
                sent = await opened.again()
        finally:
            if not sent:
                self._status = status
        if scope.cancelled_caught:
            raise RequestTimeout("the host had no room for the stream in time", details={"phase": "queued"})
        return sent

"""The chunks of a client's stream."""

from __future__ import annotations

import math
from typing import Any

import anyio
import sniffio

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._chunks import Chunks
from snakepit_trio._timeouts import TimeLimit
from snakepit_trio._waiting import Waiter, event_loop
from snakepit_trio.errors import RequestTimeout
from snakepit_trio.wire.tool_messages import PayloadAnswer

from .channel import LAST_WORD, Opened, failure
from .values import decode

__all__ = ["RemoteChunks"]

#: Above this number of waiting chunks the client stops reading from the server, and below the second number it continues;
#: and the same in bytes.
_MANY, _FEW = 64, 16
_MANY_BYTES, _FEW_BYTES = 16 * 1024 * 1024, 4 * 1024 * 1024


class RemoteChunks(Chunks[bytes]):
    """The chunks of one call of a client; see :class:`snakepit_trio._chunks.Chunks`.

    A paused consumer pauses the tool's generator. The iteration raises errors after the chunks that arrived before
    them.
    """

    def __init__(self, timeout: float | None, limit: int, errors: InternalErrors) -> None:
        super().__init__(event_loop(sniffio.current_async_library()), errors)
        self.opened: Opened | None = None
        self._deadline = math.inf if timeout is None else anyio.current_time() + timeout
        self._timeout = timeout
        self._limit = limit
        self._waiting_bytes = 0
        self._held = False
        self._status: tuple[int, str] | None = None

    def __repr__(self) -> str:
        return f"<RemoteChunks waiting={len(self._chunks)}>"

    def on_message(self, message: bytes) -> None:
        """Add a received chunk."""
        self._chunks.append(message)
        self._waiting_bytes += len(message)
        self._wake()
        many = len(self._chunks) >= _MANY or self._waiting_bytes >= _MANY_BYTES
        if many and not self._held and self.opened is not None:
            self._held = True
            self.opened.rpc.pipe.hold()

    def on_end(self, status: int, message: str) -> None:
        """Record the end of the call."""
        self._status = status, message
        self._wake()

    def leave(self) -> None:
        """Record that the consumer has left; further reads raise ClosedResourceError."""
        self._waiting_bytes = 0
        super().leave()

    def _take(self) -> Any:
        assert self.opened is not None
        message = self._chunks.popleft()
        self._waiting_bytes -= len(message)
        if self._held and len(self._chunks) <= _FEW and self._waiting_bytes <= _FEW_BYTES:
            self._held = False
            self.opened.rpc.pipe.release()
        return decode(PayloadAnswer.parse(message).payload, what="chunk", limit=self._limit)

    async def _ended(self) -> bool:
        assert self.opened is not None
        if self._status is None or (self.opened.rpc.unprocessed and await self._again(self.opened)):
            return False
        status, words = self._status
        if status:
            raise failure(status, words, self.opened.rpc.trailers)
        return True

    async def _wait(self, news: Waiter) -> None:
        assert self.opened is not None
        with anyio.CancelScope(deadline=self._deadline + LAST_WORD) as scope:
            await news.wait()
        if scope.cancelled_caught:
            self.opened.rpc.cancel()
            raise self._too_late("the stream had not ended", "running")

    def _too_late(self, what: str, phase: str) -> RequestTimeout:
        """Return the error for a timeout that was spent; there is one, or nothing would have passed."""
        limit = TimeLimit(self._timeout)
        return RequestTimeout(
            f"{what} when {limit} was spent", details={"phase": phase, "option": limit.option, "limit": limit.seconds}
        )

    async def _again(self, opened: Opened) -> bool:
        """Send the call again if the host has not begun it, and return whether it was sent."""
        status, self._status = self._status, None
        sent = False
        try:
            with anyio.CancelScope(deadline=self._deadline + LAST_WORD) as scope:
                sent = await opened.again()
        finally:
            if not sent:
                self._status = status
        if scope.cancelled_caught:
            raise self._too_late("the host had no room for the stream", "queued")
        return sent

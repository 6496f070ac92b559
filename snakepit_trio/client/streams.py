"""What a client iterates over: the chunks of a stream."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from snakepit_trio.errors import RequestTimeout
from snakepit_trio.wire.connection import Rpc
from snakepit_trio.wire.tool_messages import PayloadAnswer

from .link import LAST_WORD, failure
from .values import decode

__all__ = ["RemoteChunks"]

#: Chunks that may wait for the consumer before the server is held back, and few enough to go on; and their bytes.
_MANY, _FEW = 64, 16
_MANY_BYTES, _FEW_BYTES = 16 * 1024 * 1024, 4 * 1024 * 1024


class RemoteChunks:
    """The chunks of one call: an async iterator of the values that the tool yields, for one task.

    A consumer that pauses makes the tool's generator pause. Errors come out of the iteration, after the chunks before them.
    """

    def __init__(self, timeout: float | None, limit: int) -> None:
        self.rpc: Rpc | None = None
        self._deadline = math.inf if timeout is None else anyio.current_time() + timeout
        self._limit = limit
        self._messages: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._held = False
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
        if many and not self._held and self.rpc is not None:
            self._held = True
            self.rpc.pipe.hold()

    def on_end(self, status: int, message: str) -> None:
        """The call has ended."""
        self._status = status, message
        self._news.set()

    def __aiter__(self) -> RemoteChunks:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next chunk. A cancellation loses none."""
        assert self.rpc is not None
        while not self._messages:
            if self._status is not None:
                status, words = self._status
                if status:
                    raise failure(status, words, self.rpc.trailers)
                raise StopAsyncIteration
            self._news = anyio.Event()
            with anyio.CancelScope(deadline=self._deadline + LAST_WORD) as scope:
                await self._news.wait()
            if scope.cancelled_caught:
                self.rpc.cancel()
                raise RequestTimeout("the stream took too long", details={"phase": "running"})
        await anyio.lowlevel.checkpoint()
        message = self._messages.popleft()
        self._waiting_bytes -= len(message)
        if self._held and len(self._messages) <= _FEW and self._waiting_bytes <= _FEW_BYTES:
            self._held = False
            self.rpc.pipe.release()
        return decode(PayloadAnswer.parse(message).payload, what="chunk", limit=self._limit)

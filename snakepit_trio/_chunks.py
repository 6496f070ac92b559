"""The chunks of a streaming call on the consumer's side, in a pool or in a client."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import anyio
import anyio.lowlevel

from ._interrupts import protected
from .errors import SnakepitError

if TYPE_CHECKING:
    from ._bulkhead import InternalErrors
    from ._waiting import EventLoop, Waiter

__all__ = ["Chunks"]

T = TypeVar("T")

#: After this many chunks without waiting, the iterator yields to other tasks.
_IN_A_ROW = 16


class Chunks(Generic[T]):
    """An async iterator over the chunks of a streaming tool, for one task.

    A second task that reads concurrently gets ``anyio.BusyResourceError``. A task that reads, or waits, when the block
    has been left before the end gets ``anyio.ClosedResourceError``, as from any anyio stream.

    Args:
        loop: The running event loop.
        errors: Reports unexpected exceptions; one ends the stream.
    """

    def __init__(self, loop: EventLoop, errors: InternalErrors) -> None:
        self._loop = loop
        self._errors = errors
        # The received chunks, not yet decoded.
        self._chunks: deque[T] = deque()
        self._in_a_row = 0
        self._left = False
        self._exhausted = False
        self._reading = False
        self._consumer: Waiter | None = None

    def leave(self) -> None:
        """Record that the consumer has left; further reads raise ClosedResourceError."""
        self._left = True
        self._chunks.clear()
        self._wake()

    def _take(self) -> Any:
        """Remove the first waiting chunk and return its value."""
        raise NotImplementedError

    async def _ended(self) -> bool:
        """Return whether the call has ended successfully.

        Raises:
            SnakepitError: The call has failed.
        """
        raise NotImplementedError

    async def _wait(self, news: Waiter) -> None:
        """Wait for a chunk or for the end."""
        await news.wait()

    def _wake(self) -> None:
        if self._consumer is not None:
            self._consumer.wake()

    def __aiter__(self) -> Self:
        return self

    @protected
    async def __anext__(self) -> Any:
        """Wait for the next chunk. A cancellation loses no chunk.

        Raises:
            anyio.BusyResourceError: Another task is waiting for it.
            anyio.ClosedResourceError: The block has been left.
        """
        try:
            if self._reading:
                raise anyio.BusyResourceError("reading from")
            self._reading = True
            try:
                if not self._chunks:
                    await self._arrival()
                    self._in_a_row = 0
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
            return self._take()
        except (SnakepitError, StopAsyncIteration, anyio.BusyResourceError, anyio.ClosedResourceError):
            raise
        except Exception as exc:
            raise self._errors.caller(exc, "stream") from exc

    async def _arrival(self) -> None:
        """Wait until there is a chunk.

        Raises:
            StopAsyncIteration: The call has ended successfully, so there will be none.
            anyio.ClosedResourceError: The block has been left.
        """
        while not self._chunks:
            if self._left and not self._exhausted:
                raise anyio.ClosedResourceError
            # Created before the check below, so that an arrival during the check is noticed.
            self._consumer = self._loop.waiter()
            try:
                if await self._ended():
                    self._exhausted = True
                    raise StopAsyncIteration
                await self._wait(self._consumer)
            finally:
                self._consumer = None

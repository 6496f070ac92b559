"""The chunks of a streaming call as its consumer reads them, from a pool or from a client."""

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

#: After so many chunks that were there already, other tasks get their turn.
_IN_A_ROW = 16


class Chunks(Generic[T]):
    """An async iterator of the values that a tool yields, for one task: a second one that reads at the same time gets
    ``anyio.BusyResourceError``, and one that reads when the block has been left before the end, or is waiting then,
    ``anyio.ClosedResourceError``, as from any stream of anyio's.

    Args:
        loop: The event loop that is running.
        errors: Where unexpected exceptions are told; one ends the stream.
    """

    def __init__(self, loop: EventLoop, errors: InternalErrors) -> None:
        self._loop = loop
        self._errors = errors
        # What has arrived, as it came.
        self._chunks: deque[T] = deque()
        self._in_a_row = 0
        self._left = False
        self._exhausted = False
        self._reading = False
        self._consumer: Waiter | None = None

    def leave(self) -> None:
        """The consumer has left; nothing more can be had here."""
        self._left = True
        self._chunks.clear()
        self._wake()

    def _take(self) -> Any:
        """Remove the first chunk that waits, and give its value."""
        raise NotImplementedError

    async def _ended(self) -> bool:
        """Whether the call has ended, and well.

        Raises:
            SnakepitError: It has failed.
        """
        raise NotImplementedError

    async def _wait(self, news: Waiter) -> None:
        """Wait for a chunk or the end."""
        await news.wait()

    def _wake(self) -> None:
        if self._consumer is not None:
            self._consumer.wake()

    def __aiter__(self) -> Self:
        return self

    @protected
    async def __anext__(self) -> Any:
        """Wait for the next chunk. A cancellation loses none.

        Raises:
            anyio.BusyResourceError: Another task waits for it already.
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
            StopAsyncIteration: There will be none, for the call has ended well.
            anyio.ClosedResourceError: The block has been left.
        """
        while not self._chunks:
            if self._left and not self._exhausted:
                raise anyio.ClosedResourceError
            # Before the question: what comes while that is answered counts.
            self._consumer = self._loop.waiter()
            try:
                if await self._ended():
                    self._exhausted = True
                    raise StopAsyncIteration
                await self._wait(self._consumer)
            finally:
                self._consumer = None

"""What a client iterates over: the chunks of a stream, the results of a map."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from snakepit_trio.errors import RequestTimeout, SnakepitError
from snakepit_trio.wire.connection import Rpc
from snakepit_trio.wire.tool_messages import PayloadAnswer

from .link import LAST_WORD, failure
from .values import decode

__all__ = ["RemoteChunks", "RemoteResults"]

#: Chunks that may wait for the consumer before the server is held back, and few enough to go on.
_MANY, _FEW = 64, 16


class RemoteChunks:
    """The chunks of one call: an async iterator of the values that the tool yields, for one task.

    A consumer that pauses makes the tool's generator pause. Errors come out of the iteration, after the chunks before them.
    """

    def __init__(self, timeout: float | None, limit: int) -> None:
        self.rpc: Rpc | None = None
        self._deadline = math.inf if timeout is None else anyio.current_time() + timeout
        self._limit = limit
        self._messages: deque[bytes] = deque()
        self._held = False
        self._status: tuple[int, str] | None = None
        self._news = anyio.Event()

    def __repr__(self) -> str:
        return f"<RemoteChunks waiting={len(self._messages)}>"

    def on_message(self, message: bytes) -> None:
        """A chunk has arrived."""
        self._messages.append(message)
        self._news.set()
        if len(self._messages) >= _MANY and not self._held and self.rpc is not None:
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
                status, message = self._status
                if status:
                    raise failure(status, message, self.rpc.trailers)
                raise StopAsyncIteration
            self._news = anyio.Event()
            with anyio.move_on_at(self._deadline + LAST_WORD) as scope:
                await self._news.wait()
            if scope.cancelled_caught:
                self.rpc.cancel()
                raise RequestTimeout("the stream took too long", details={"phase": "running"})
        await anyio.lowlevel.checkpoint()
        message_bytes = self._messages.popleft()
        if self._held and len(self._messages) <= _FEW:
            self._held = False
            self.rpc.pipe.release()
        return decode(PayloadAnswer.parse(message_bytes).payload, what="chunk", limit=self._limit)


class RemoteResults:
    """The results of a map: an async iterator for one task. Inputs are taken as the results are.

    Attributes:
        index: The place among the inputs, from 0, of the result that was given last; -1 before the first.
    """

    def __init__(
        self,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        execute: Callable[[Mapping[str, Any]], Awaitable[Any]],
        nursery: anyio.abc.TaskGroup,
        *,
        limit: int,
        ordered: bool,
        return_errors: bool,
    ) -> None:
        self.index = -1
        self._inputs: Any = aiter(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs)
        self._async = isinstance(inputs, AsyncIterable)
        self._execute = execute
        self._nursery = nursery
        self._limit = limit
        self._ordered = ordered
        self._return_errors = return_errors
        self._exhausted = False
        self._taken = 0
        self._scopes: dict[int, anyio.CancelScope] = {}
        self._done: dict[int, tuple[Any, SnakepitError | None]] = {}
        self._next = 0
        self._news = anyio.Event()

    def __repr__(self) -> str:
        return f"<RemoteResults under_way={len(self._scopes)} ready={len(self._done)}>"

    def __aiter__(self) -> RemoteResults:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next result. A cancellation loses none."""
        while True:
            await self._refill()
            index = self._next if self._ordered else next(iter(self._done), -1)
            if index in self._done:
                break
            if not self._scopes and not self._done:
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        value, error = self._done.pop(index)
        self._next += 1
        self.index = index
        if error is not None and not self._return_errors:
            raise error
        return value if error is None else error

    async def _refill(self) -> None:
        while not self._exhausted and len(self._scopes) + len(self._done) < self._limit:
            try:
                params = await anext(self._inputs) if self._async else next(self._inputs)
            except (StopIteration, StopAsyncIteration):
                self._exhausted = True
                return
            scope = self._scopes[self._taken] = anyio.CancelScope()
            self._nursery.start_soon(self._run, self._taken, params, scope)
            self._taken += 1

    async def _run(self, index: int, params: Mapping[str, Any], scope: anyio.CancelScope) -> None:
        with scope:
            try:
                self._done[index] = await self._execute(params), None
            except SnakepitError as exc:
                self._done[index] = None, exc
        self._scopes.pop(index, None)
        self._news.set()

    def close(self) -> None:
        """Cancel what is still under way."""
        self._exhausted = True
        for scope in self._scopes.values():
            scope.cancel()
        self._scopes.clear()
        self._done.clear()

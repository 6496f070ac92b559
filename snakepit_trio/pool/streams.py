"""The consumer's side of a streaming call."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from snakepit_trio.errors import RequestTimeout

from .ledger import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from snakepit_trio.wire.frames import Payload

    from .ledger import Request

__all__ = ["ChunkStream"]


class ChunkStream:
    """The chunks of one call: an async iterator of the values that the tool yields, for one task.

    Up to ``window`` chunks are under way or wait here; a consumer that pauses makes the tool's generator pause.

    Raises, out of the iteration: what a call raises (``ToolError``, ``RequestTimeout``, ``WorkerCrashed`` and so on), after
    the chunks that came before it; a spent timeout comes at once.
    """

    def __init__(self, window: int, credit: Callable[[int], None], decode: Callable[[Payload], Any]) -> None:
        self.request: Request | None = None
        self._window = window
        self._credit = credit
        self._decode = decode
        self._chunks: deque[Payload] = deque()
        self._taken = 0
        self._left = False
        self._news = anyio.Event()
        self.released = anyio.Event()

    def __repr__(self) -> str:
        return f"<ChunkStream {self.request!r} waiting={len(self._chunks)}>"

    def put(self, chunk: Payload) -> None:
        """A chunk has arrived."""
        self._chunks.append(chunk)
        self._news.set()

    def wake(self) -> None:
        """The call has ended."""
        self._news.set()

    def leave(self) -> None:
        """The consumer has left; nothing more can be had here."""
        self._left = True
        self._chunks.clear()

    def __aiter__(self) -> ChunkStream:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next chunk. A cancellation loses none."""
        request = self.request
        assert request is not None
        while not self._chunks:
            if request.phase is Phase.DONE or self._left:
                if request.error is not None and not self._left:
                    raise request.error
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        if isinstance(request.error, RequestTimeout):
            raise request.error
        await anyio.lowlevel.checkpoint()
        chunk = self._chunks.popleft()
        self._taken += 1
        if self._taken * 2 >= self._window and request.phase is Phase.RUNNING:
            # Credits go back in halves of the window: a frame for many chunks, and the tool never runs dry.
            self._credit(self._taken)
            self._taken = 0
        return self._decode(chunk)

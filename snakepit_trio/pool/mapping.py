"""One tool over many inputs, a bounded number at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from snakepit_trio.errors import QueueFull, SnakepitError

from .ledger import Phase, Request

if TYPE_CHECKING:
    from snakepit_trio._waiting import EventLoop, Waiter

__all__ = ["MapResults"]


class MapResults:
    """The results of a map: an async iterator for one task.

    The inputs are taken as the results are: at most ``limit()`` of them are with the pool at any moment. No task runs for
    it, so there is nothing to be left behind. Results that arrive together cost its task one wake-up, and the inputs
    that take their places leave together.

    Attributes:
        index: The place among the inputs, from 0, of the result that was given last; -1 before the first.
    """

    def __init__(
        self,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: Callable[[], int],
        ordered: bool,
        return_errors: bool,
        submit: Callable[[Mapping[str, Any], Callable[[], None]], Request],
        take: Callable[[Request], Any],
        cancel: Callable[[Request], None],
        loop: EventLoop,
    ) -> None:
        self.index = -1
        self._inputs: Any = aiter(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs)
        self._async = isinstance(inputs, AsyncIterable)
        self._exhausted = False
        self._limit = limit
        self._ordered = ordered
        self._return_errors = return_errors
        self._submit = submit
        self._take = take
        self._cancel = cancel
        # An input that was refused before it reached the pool stands here as its error.
        self._under_way: dict[int, Request | SnakepitError] = {}
        self._ready: deque[int] = deque()
        self._taken = 0
        self._refused: Mapping[str, Any] | None = None
        self._loop = loop
        self._consumer: Waiter | None = None

    def __repr__(self) -> str:
        return f"<MapResults under_way={len(self._under_way)} ready={len(self._ready)}>"

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next result. A cancellation loses none.

        Raises:
            SnakepitError: What that input's call raised, unless errors are returned.
        """
        await self._loop.check()
        while True:
            await self._refill()
            found = self._next_done()
            if found is not None:
                return self._deliver(found)
            if not self._under_way:
                raise StopAsyncIteration
            self._consumer = self._loop.waiter()
            try:
                await self._consumer.wait()
            finally:
                self._consumer = None

    def close(self) -> None:
        """Cancel what is still under way."""
        for request in self._under_way.values():
            if isinstance(request, Request):
                self._cancel(request)
        self._under_way.clear()
        self._ready.clear()
        self._exhausted = True

    def _next_done(self) -> Request | SnakepitError | None:
        if self._ordered:
            index = next(iter(self._under_way), None)
            if index is None:
                return None
            first = self._under_way[index]
            if isinstance(first, Request) and first.phase is not Phase.DONE:
                return None
        elif self._ready:
            index = self._ready.popleft()
        else:
            return None
        self.index = index
        return self._under_way.pop(index)

    def _deliver(self, done: Request | SnakepitError) -> Any:
        try:
            if not isinstance(done, Request):
                raise done
            return self._take(done)
        except SnakepitError as exc:
            if self._return_errors:
                return exc
            raise

    async def _refill(self) -> None:
        while not self._exhausted and len(self._under_way) < self._limit():
            if self._refused is not None:
                params, self._refused = self._refused, None
            else:
                try:
                    params = await anext(self._inputs) if self._async else next(self._inputs)
                except (StopIteration, StopAsyncIteration):
                    self._exhausted = True
                    return
            index = self._taken

            def wake(index: int = index) -> None:
                self._note_done(index)

            try:
                request: Request | SnakepitError = self._submit(params, wake)
            except QueueFull:
                if not self._under_way:
                    raise
                # Others have filled the queue: this input waits for one of ours to end.
                self._refused = params
                return
            except SnakepitError as exc:
                request = exc
                self._note_done(index)
            self._taken += 1
            self._under_way[index] = request

    def _note_done(self, index: int) -> None:
        if not self._ordered:
            self._ready.append(index)
        if self._consumer is not None:
            self._consumer.wake()

"""One tool over many inputs, a bounded number at a time.

A map needs no task for its calls, but in a pool with policies, where a call waits, is tried again or runs twice, and in a client.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import attrs
import sniffio

from ._bell import Bell
from ._call_options import check_limit
from ._interrupts import Unwrapped, exposed, managed, protected
from ._waiting import event_loop
from .errors import QueueFull, SnakepitError, ToolError

if TYPE_CHECKING:
    from ._bulkhead import InternalErrors
    from ._waiting import EventLoop, Waiter

__all__ = ["MapCalls", "MapResults", "MapTask", "MapTasks", "open_map"]

T = TypeVar("T")

#: Stands for no input; any value may be one, if only to be refused.
_NOTHING: Final = object()
#: After so many results that were there already, other tasks get their turn.
_IN_A_ROW = 16
#: How long closing a generator of inputs may take, in seconds.
_CLOSE = 5.0


@attrs.frozen
class MapCalls:
    """How the calls of one map are made.

    Attributes:
        limit: How many inputs may be with the pool now.
        has_room: Whether a call that is made now would be taken, as far as that is known here.
        submit: Begins a call, or refuses it by a SnakepitError; what it is given is called when the call has ended.
        take: The result of a call that has ended, or what it raised.
        cancel: The result is not wanted any more.
        tasks: Where the calls run, when they have tasks.
    """

    limit: Callable[[], int]
    has_room: Callable[[], bool]
    submit: Callable[[Mapping[str, Any], Callable[[], None]], Any]
    take: Callable[[Any], Any]
    cancel: Callable[[Any], object]
    tasks: MapTasks | None = None

    def converting(self, convert: Callable[[Any], Any]) -> MapCalls:
        """The same calls, whose results are made into something else."""
        return attrs.evolve(self, take=lambda call: convert(self.take(call)))


def open_map(
    inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
    begin: Callable[[], MapCalls],
    *,
    limit: int | None,
    ordered: bool,
    return_errors: bool,
    errors: InternalErrors,
) -> AbstractAsyncContextManager[MapResults[Any]]:
    """A map as its caller gets it: the block has its results, and leaving it cancels what is under way.

    Args:
        begin: Checks the caller's options, and says how the calls are made.
        limit: The caller's; only checked here.
        errors: Where unexpected exceptions are told.

    Raises:
        InvalidParameter: ``limit`` or an option is refused.
    """
    # Before the boundary: what the inputs themselves raise is the caller's own.
    source = aiter(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs)
    try:
        check_limit(limit)
        loop = event_loop(sniffio.current_async_library())
        results: MapResults[Any] = MapResults(source, begin(), ordered, return_errors, loop, errors)
    except SnakepitError:
        raise
    except Exception as exc:
        raise errors.caller(exc, "map") from exc
    return errors.block(_running(results), "map")


class MapResults(Generic[T]):
    """The results of a map: an async iterator for one task; a second one that reads at the same time gets
    ``anyio.BusyResourceError``, as from any stream of anyio's.

    The inputs are taken as the results are: at most ``calls.limit()`` of them are with the pool at any moment. Results that
    arrive together cost its task one wake-up, and the inputs that take their places leave together. No task runs for it,
    but for :meth:`feed` where the inputs are an async iterable: a result must not wait for an input that is yet to come.

    Attributes:
        calls: How its calls are made.
        index: The place among the inputs, from 0, of the result that was given last; -1 before the first.
    """

    def __init__(
        self,
        inputs: Iterator[Mapping[str, Any]] | AsyncIterator[Mapping[str, Any]],
        calls: MapCalls,
        ordered: bool,
        return_errors: bool,
        loop: EventLoop,
        errors: InternalErrors,
    ) -> None:
        self.index: int = -1
        self._errors = errors
        # What the inputs have raised; the consumer gets it after the results of those that came before.
        self._input_error: Exception | None = None
        self._inputs: Any = inputs
        #: Whether :meth:`feed` has to run beside it.
        self.fed: bool = isinstance(inputs, AsyncIterator)
        self._fetched: Any = _NOTHING
        self._room = Bell()
        self._source_ended = False
        self._exhausted = False
        self.calls: MapCalls = calls
        self._ordered = ordered
        self._return_errors = return_errors
        # An input that was refused before it reached the pool stands here as its error.
        self._under_way: dict[int, Any] = {}
        # The places of those that have ended, in that order.
        self._done: dict[int, None] = {}
        self._taken = 0
        self._in_a_row = 0
        self._loop = loop
        self._consumer: Waiter | None = None

    def __repr__(self) -> str:
        return f"<MapResults under_way={len(self._under_way)} done={len(self._done)}>"

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    @protected
    async def __anext__(self) -> T:
        """Wait for the next result. A cancellation loses none.

        What the inputs themselves raise comes after the results of the inputs before, with a note that says at which index.

        Raises:
            SnakepitError: What that input's call raised, unless errors are returned; a note says of which input.
            anyio.BusyResourceError: Another task waits for it already.
        """
        input_error: Exception | None = None
        try:
            await self._loop.check()
            while True:
                self._refill()
                found = None if self._in_a_row >= _IN_A_ROW else self._next_done()
                if found is not None:
                    self._in_a_row += 1
                    self._room.ring()
                    result: T = self._deliver(found)
                    return result
                if self._in_a_row >= _IN_A_ROW:
                    self._in_a_row = 0
                    await anyio.lowlevel.checkpoint()
                    continue
                if not self._under_way and self._exhausted:
                    input_error, self._input_error = self._input_error, None
                    raise StopAsyncIteration if input_error is None else input_error
                if self._consumer is not None:
                    raise anyio.BusyResourceError("taking results from")
                self._consumer = self._loop.waiter()
                self._in_a_row = 0
                try:
                    await self._consumer.wait()
                finally:
                    self._consumer = None
        except (SnakepitError, StopAsyncIteration, anyio.BusyResourceError):
            raise
        except Exception as exc:
            if exc is input_error:
                raise
            raise self._errors.caller(exc, "map") from exc

    @protected
    async def feed(self) -> None:
        """Fetch inputs from an async iterable, each when there is room for it. Ends with them; what they raise, the consumer
        gets."""
        try:
            async for params in self._inputs:
                self._fetched = params
                self._wake()
                try:
                    while self._fetched is not _NOTHING or len(self._under_way) >= self.calls.limit():
                        await self._room.wait()
                except Exception as exc:
                    # The inputs have not raised it.
                    raise self._errors.caller(exc, "map") from exc
        except Exception as exc:
            self._end_of_inputs(exc)
        finally:
            if inspect.isasyncgen(self._inputs):
                # Nobody else has it, and the event loop would have to close it some day.
                with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE):
                    await self._inputs.aclose()
        self._source_ended = True
        self._wake()

    def close(self) -> None:
        """Cancel what is still under way."""
        for request in self._under_way.values():
            if not isinstance(request, SnakepitError):
                self.calls.cancel(request)
        self._under_way.clear()
        self._done.clear()
        self._exhausted = True

    def _next_done(self) -> Any:
        index = next(iter(self._under_way if self._ordered else self._done), None)
        if index is None or index not in self._done:
            return None
        del self._done[index]
        self.index = index
        return self._under_way.pop(index)

    def _deliver(self, done: Any) -> Any:
        try:
            if isinstance(done, SnakepitError):
                raise done
            return self.calls.take(done)
        except SnakepitError as exc:
            if self._return_errors:
                return exc
            exc.add_note(f"raised for the input at index {self.index} of this map")
            raise

    def _next_input(self) -> Any:
        """The next input; ``_NOTHING`` when there is none now, or none any more."""
        if not self.fed:
            try:
                return self._next_of_inputs()
            except StopIteration:
                self._exhausted = True
                return _NOTHING
            except Exception as exc:
                self._end_of_inputs(exc)
                self._exhausted = True
                return _NOTHING
        fetched, self._fetched = self._fetched, _NOTHING
        if fetched is not _NOTHING:
            self._room.ring()
        elif self._source_ended:
            self._exhausted = True
        return fetched

    def _end_of_inputs(self, error: Exception) -> None:
        """The inputs have raised instead of giving the next one."""
        self._input_error = error
        with suppress(Exception):  # The class is the caller's own, and so may its `add_note` be.
            error.add_note(f"raised by the inputs of this map, instead of the one at index {self._taken}")

    @exposed
    def _next_of_inputs(self) -> Any:
        return next(self._inputs)

    def _refill(self) -> None:
        while not self._exhausted and len(self._under_way) < self.calls.limit():
            if self._under_way and not self.calls.has_room():
                # Others have filled the queue: the next input waits for one of ours to end.
                return
            params = self._next_input()
            if params is _NOTHING:
                return
            index = self._taken

            def wake(index: int = index) -> None:
                self._note_done(index)

            try:
                request = self.calls.submit(params, wake)
            except SnakepitError as exc:
                request = exc
                self._note_done(index)
            self._taken += 1
            self._under_way[index] = request

    def _note_done(self, index: int) -> None:
        self._done[index] = None
        self._wake()

    def _wake(self) -> None:
        if self._consumer is not None:
            self._consumer.wake()


@managed
async def _running(results: MapResults[Any]) -> AsyncIterator[MapResults[Any]]:
    """Hold a map's results, and what runs for them; leaving the block cancels what is under way."""
    tasks = results.calls.tasks
    if not results.fed and tasks is None:
        try:
            yield results
        finally:
            try:
                results.close()
            except Exception:
                # Once more: what it has left under way would go on for nobody.
                results.close()
                raise
        return
    with Unwrapped() as unwrapped:
        async with anyio.create_task_group() as nursery:
            if results.fed:
                nursery.start_soon(results.feed)
            if tasks is not None:
                tasks.nursery = nursery
            try:
                yield results
            except BaseException as exc:
                if isinstance(exc, anyio.get_cancelled_exc_class()):
                    raise
                unwrapped.raised = exc
            finally:
                nursery.cancel_scope.cancel()
                try:
                    results.close()
                except Exception:
                    results.close()
                    raise


class MapTask:
    """One call of a map, in a task of its own.

    Attributes:
        error: What it raised.
    """

    __slots__ = ("error", "scope", "value")

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.value: Any = None


class MapTasks:
    """The calls of one map that run in tasks.

    Args:
        execute: Makes a call.
        has_room: See :class:`MapCalls`.

    Attributes:
        nursery: Where they run; set before the first.
    """

    nursery: anyio.abc.TaskGroup

    def __init__(
        self, execute: Callable[[Mapping[str, Any]], Awaitable[Any]], has_room: Callable[[], bool] = lambda: True
    ) -> None:
        self._execute = execute
        self._has_room = has_room
        # Those for whose end others may wait: not those that wait for a place, for a limit or before another attempt.
        self._busy = 0
        self._fewer = Bell()

    def __repr__(self) -> str:
        return f"<MapTasks busy={self._busy}>"

    def calls(self, limit: Callable[[], int]) -> MapCalls:
        """The calls, so many at a time."""
        return MapCalls(limit, self._has_room, self._submit, self._take, lambda task: task.scope.cancel(), self)

    def _submit(self, params: Mapping[str, Any], wake: Callable[[], None]) -> MapTask:
        task = MapTask()
        self._busy += 1
        self.nursery.start_soon(self._run, task, params, wake)
        return task

    @staticmethod
    def _take(task: MapTask) -> Any:
        if task.error is not None:
            raise task.error
        return task.value

    @protected
    async def _run(self, task: MapTask, params: Mapping[str, Any], wake: Callable[[], None]) -> None:
        try:
            with task.scope:
                try:
                    task.value = await self.patiently(functools.partial(self._execute, params))
                except Exception as exc:
                    task.error = exc
        finally:
            self._busy -= 1
            self._fewer.ring()
        wake()

    @contextmanager
    def standing(self, wait: AbstractContextManager[object]) -> Iterator[None]:
        """In the block a call waits for a limit, perhaps for a permit of one of ours, or before another attempt."""
        self._busy -= 1
        self._fewer.ring()
        try:
            with wait:
                yield
        finally:
            self._busy += 1

    async def patiently(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make a call; when a queue is full, others have filled it, and this one waits for one of ours to end.

        Raises:
            QueueFull: None of ours is under way.
        """
        while True:
            if self._busy == 1 or self._has_room():
                try:
                    return await call()
                except QueueFull as exc:
                    if self._busy == 1 or isinstance(exc, ToolError):
                        raise
            self._busy -= 1
            try:
                await self._fewer.wait()
            finally:
                self._busy += 1

"""Run one tool over many inputs, a bounded number at a time.

The calls of a map need no tasks, except in a client, and in a pool with policies, where a call waits, is retried or is
hedged.
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
from ._call_options import check_inputs, check_limit
from ._interrupts import Unwrapped, exposed, managed, protected
from ._waiting import event_loop
from .errors import QueueFull, SnakepitError, ToolError

if TYPE_CHECKING:
    from ._bulkhead import InternalErrors
    from ._waiting import EventLoop, Waiter

__all__ = ["MapCalls", "MapResults", "MapTask", "MapTasks", "open_map"]

T = TypeVar("T")

#: Marks the absence of an input, because any value may be an input, if only an invalid one.
_NOTHING: Final = object()
#: After this many results without waiting, the iterator yields to other tasks.
_IN_A_ROW = 16
#: Seconds. The longest time for closing a generator of inputs.
_CLOSE = 5.0


@attrs.frozen
class MapCalls:
    """The functions by which a map makes its calls.

    Attributes:
        limit: Returns the number of inputs that may be with the pool now.
        has_room: Returns whether a call made now would be accepted, as far as known here.
        submit: Begins a call, or refuses it with a SnakepitError; its callback is called when the call has ended.
        take: Returns the result of an ended call, or its exception.
        cancel: Cancels a call whose result is not wanted any more.
        tasks: The tasks of the calls, if they run in tasks.
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
    """Open a map: the block receives its results, and leaving the block cancels the calls in progress.

    Args:
        begin: Checks the caller's options, and returns the functions that make the calls.
        limit: The caller's limit; only checked here.
        errors: Reports unexpected exceptions.

    Raises:
        InvalidParameter: ``limit`` or an option is invalid, or the inputs are not iterable.
        WrongContext: The caller is in another event loop.
    """
    check_inputs(inputs)
    # Outside the boundary: an exception of the inputs is the caller's own.
    source = aiter(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs)
    try:
        errors.check_home()
        check_limit(limit)
        loop = event_loop(sniffio.current_async_library())
        results: MapResults[Any] = MapResults(source, begin(), ordered, return_errors, loop, errors)
    except SnakepitError:
        raise
    except Exception as exc:
        raise errors.caller(exc, "map") from exc
    return errors.block(_running(results), "map")


class MapResults(Generic[T]):
    """An async iterator over the results of a map, for one task.

    A second task that reads concurrently gets ``anyio.BusyResourceError``, as from any anyio stream.

    Inputs are taken as results are taken: at most ``calls.limit()`` inputs are with the pool at any moment. Results that
    arrive together wake the consumer's task once, and the inputs that replace them are sent together. The map runs no
    task, except :meth:`feed` for an async iterable of inputs, because a result must not wait for a later input.

    Attributes:
        calls: The functions by which the map makes its calls.
        index: The index of the input whose result came last, from 0; -1 before the first.
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
        # The exception of the inputs; the consumer gets it after the results of the earlier inputs.
        self._input_error: Exception | None = None
        self._inputs: Any = inputs
        #: Whether :meth:`feed` has to run.
        self.fed: bool = isinstance(inputs, AsyncIterator)
        self._fetched: Any = _NOTHING
        self._room = Bell()
        self._source_ended = False
        self._exhausted = False
        self.calls: MapCalls = calls
        self._ordered = ordered
        self._return_errors = return_errors
        # The calls by index; an input that was refused before it reached the pool has its error here.
        self._under_way: dict[int, Any] = {}
        # The indices of the ended calls, in the order of their ends.
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
        """Wait for the next result. A cancellation loses no result.

        An exception of the inputs is raised after the results of the earlier inputs, with a note that names the index.

        Raises:
            SnakepitError: The input's call failed, unless errors are returned; a note names the input.
            anyio.BusyResourceError: Another task is waiting for it.
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
        """Take inputs from an async iterable as there is room for them, until its end. The consumer gets its exception."""
        try:
            async for params in self._inputs:
                self._fetched = params
                self._wake()
                try:
                    while self._fetched is not _NOTHING or len(self._under_way) >= self.calls.limit():
                        await self._room.wait()
                except Exception as exc:
                    # The exception did not come from the inputs.
                    raise self._errors.caller(exc, "map") from exc
        except Exception as exc:
            self._end_of_inputs(exc)
        finally:
            if inspect.isasyncgen(self._inputs):
                # No other code has the generator, and the event loop would otherwise have to close it later.
                with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE):
                    await self._inputs.aclose()
        self._source_ended = True
        self._wake()

    def close(self) -> None:
        """Cancel all calls in progress."""
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
        """Return the next input, or ``_NOTHING`` if there is none now or any more."""
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
        """Record the exception that the inputs raised in place of the next input."""
        self._input_error = error
        with suppress(Exception):  # The class is the caller's, and its `add_note` may raise.
            error.add_note(f"raised by the inputs of this map, instead of the one at index {self._taken}")

    @exposed
    def _next_of_inputs(self) -> Any:
        return next(self._inputs)

    def _refill(self) -> None:
        while not self._exhausted and len(self._under_way) < self.calls.limit():
            if self._under_way and not self.calls.has_room():
                # Other callers filled the queue: the next input waits until one of the map's calls ends.
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
    """Hold a map's results and its task; leaving the block cancels the calls in progress."""
    tasks = results.calls.tasks
    if not results.fed and tasks is None:
        try:
            yield results
        finally:
            try:
                results.close()
            except Exception:
                # Close again, because the failure left calls that would continue without a consumer.
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
    """One call of a map in its own task.

    Attributes:
        error: The exception of the call.
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
        nursery: The nursery of the tasks; set before the first call.
    """

    nursery: anyio.abc.TaskGroup

    def __init__(
        self, execute: Callable[[Mapping[str, Any]], Awaitable[Any]], has_room: Callable[[], bool] = lambda: True
    ) -> None:
        self._execute = execute
        self._has_room = has_room
        # The calls for whose end other calls may wait: not those that wait for room, for a limit or before another attempt.
        self._busy = 0
        self._fewer = Bell()

    def __repr__(self) -> str:
        return f"<MapTasks busy={self._busy}>"

    def calls(self, limit: Callable[[], int]) -> MapCalls:
        """Return the functions by which the map makes its calls."""
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
    def pausing(self, wait: AbstractContextManager[object]) -> Iterator[None]:
        """In the block a call waits for a limit, perhaps for a permit of one of ours, or before another attempt."""
        self._busy -= 1
        self._fewer.ring()
        try:
            with wait:
                yield
        finally:
            self._busy += 1

    async def patiently(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make a call. If other callers have filled the queue, wait until one of the map's own calls ends, and try again.

        Raises:
            QueueFull: None of the map's calls is in progress.
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

"""Runs a pool's calls in their callers' tasks: creates, submits and awaits the requests, and cancels them.

A call of a pool with policies passes those first; each of its attempts is one more call here.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import anyio

from snakepit_trio._call_options import CallOptions
from snakepit_trio._interrupts import protected
from snakepit_trio._map_results import MapCalls, MapResults, MapTasks, open_map
from snakepit_trio.errors import SnakepitError

from ..scheduling.request import Binding, Outcome, Phase, Request
from .paused import PausedCalls, session_closed
from .stream import STREAM_BYTES, STREAM_WINDOW, ChunkStream
from .submission import Arguments, Submission

if TYPE_CHECKING:
    from snakepit_trio._bulkhead import InternalErrors
    from snakepit_trio._call_options import CallKeywords
    from snakepit_trio._timeouts import TimeLimit
    from snakepit_trio._waiting import EventLoop
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.policies.guard import Guard
    from snakepit_trio.tools.waits import Permit
    from snakepit_trio.wire.frames import Payload
    from snakepit_trio.wire.handshake_messages import ToolSpec

    from ..fleet.supervisor import Supervisor
    from ..scheduling.scheduler import Scheduler
    from .session import Session

__all__ = ["Calls"]

P = ParamSpec("P")
T = TypeVar("T")


def _nothing() -> None:
    """Ignore the end of a request that has no waiting caller any more."""


class Calls:
    """The calls of one pool.

    Args:
        guard: The pool's policies, if it has any.
        loop: The running event loop.
        errors: Reports unexpected exceptions; one ends its call.

    Attributes:
        paused: The calls that wait outside the queue.
        errors: Reports unexpected exceptions.
    """

    def __init__(
        self,
        config: PoolConfig,
        submission: Submission,
        scheduler: Scheduler,
        supervisor: Supervisor,
        guard: Guard | None,
        loop: EventLoop,
        errors: InternalErrors,
    ) -> None:
        self._config = config
        self._submission = submission
        self._scheduler = scheduler
        self._supervisor = supervisor
        self._dispatch = supervisor.dispatch
        self._guard = guard
        self.paused: PausedCalls = PausedCalls()
        self._loop = loop
        self.errors = errors

    @protected
    async def execute(
        self,
        tool: str,
        params: Arguments,
        options: CallKeywords | CallOptions,
        *,
        session: Session | None = None,
        binding: Binding | None = None,
        permits: tuple[Permit, ...] | None = None,
        beside: list[Request] | None = None,
        tasks: MapTasks | None = None,
        payload: Payload | None = None,
    ) -> Any:
        """Run a call; see :meth:`Pool.execute`.

        Args:
            options: The options, as the caller gave them or already checked.
            permits: The permits that the call holds, if it has already passed the pool's policies.
            beside: The requests of the same call; each needs its own worker.
            tasks: The tasks of the map to which the call belongs, in a pool with policies.
        """
        home = self.errors.home
        try:
            if home is not None and not home.is_here():
                home.check()
            await self._loop.check()
            if not isinstance(options, CallOptions):
                options = CallOptions.of(options)
            if self._guard is not None and permits is None:
                spec = self._dispatch.repertoire.tools.get(tool)
                if spec is not None:
                    return await self._under_policies(self._guard, spec, params, options, session, binding, tasks)
            waiter = self._loop.waiter()
            request = self._submission.make(
                tool, params, options, waiter.wake, binding=binding, permits=permits or (), batch=tasks is not None
            )
            if beside is not None:
                request.beside = beside
                beside.append(request)
            if session is not None:
                request.fail_fast = session.fail_fast
                session.begin(request, functools.partial(self._end, request))
            try:
                self._scheduler.submit(request, self._loop.now())
                await waiter.wait()
            except BaseException:
                try:
                    self._over(request, session)
                except Exception:
                    self._over(request, session)
                    raise
                if request.trace is not None:
                    request.trace.end()
                raise
            if permits or session is not None:
                try:
                    self._over(request, session)
                except Exception:
                    self._over(request, session)
                    raise
            error = request.error
            if error is not None:
                if request.outcome is Outcome.CANCELLED:
                    # The worker noticed the deadline of the caller's scope a moment before the scope does.
                    await anyio.sleep_until(request.scope_deadline)
                try:
                    raise error
                finally:
                    # The traceback refers to this frame with the arguments, which must not wait for a garbage collection.
                    del error, request
            if request.trace is not None:
                with request.trace.decode():
                    return self._submission.decode(request.result)
            return self._submission.decode(request.result)
        except SnakepitError:
            raise
        except Exception as exc:
            raise self.errors.caller(exc) from exc

    async def _under_policies(
        self,
        guard: Guard,
        spec: ToolSpec,
        params: Arguments,
        options: CallOptions,
        session: Session | None,
        binding: Binding | None,
        tasks: MapTasks | None,
    ) -> Any:
        timeout = options.limit(self._config.timeout)
        limit = options.decided("timeout", self._config.timeout)

        async def attempt(left: float | None, permits: tuple[Permit, ...], beside: list[Request] | None) -> Any:
            # In a map the wait does not count, so each attempt has the full time.
            own = options.within(left if tasks is None else timeout)
            call = functools.partial(
                self.execute, spec.name, params, own, session=session, binding=binding, permits=permits, beside=beside,
                tasks=tasks,
            )  # fmt: skip
            return await (call() if tasks is None else tasks.patiently(call))

        return await guard.execute(
            attempt,
            tool=spec.name,
            timeout=timeout if tasks is None else None,
            limit=limit,
            idempotent=spec.idempotent if options.idempotent is None else options.idempotent,
            session=None if session is None else session.id,
            pausing=functools.partial(self._pausing, spec.name, session, tasks, limit),
        )

    def _pausing(
        self,
        tool: str,
        session: Session | None,
        tasks: MapTasks | None,
        limit: TimeLimit,
        deadline: float,
        what: str,
    ) -> AbstractContextManager[object]:
        wait = self.paused.wait(tool, session, limit, deadline, what)
        return wait if tasks is None else tasks.pausing(wait)

    def reads(self, payload: Payload | None) -> bool:
        """Return whether the workers decode a payload as it is."""
        return payload is not None and payload.encoding in self._dispatch.repertoire.encodings

    def begin(
        self,
        tool: str,
        params: Arguments,
        options: CallOptions,
        *,
        on_end: Callable[[Payload | None, SnakepitError | None], None],
    ) -> Callable[[], None] | None:
        """Begin a call without a task, for a caller who handles its end.

        Returns None if the call needs a task, because the pool has policies.

        Args:
            on_end: Called once when the call has ended, with the encoded result or the error. It is called inside the
                scheduler, so it must neither raise nor wait.

        Returns:
            A function that cancels the call when its result is not wanted any more; ``on_end`` is not called after
                that.

        Raises:
            SnakepitError: The errors that :meth:`execute` raises before a call has begun.
        """
        if self._guard is not None:
            return None
        wanted = True

        def wake() -> None:
            nonlocal wanted
            if wanted:
                on_end(request.result, request.error)
                # Set only now, because this function is called again if `_over` raises.
                wanted = False
            # The request and the function refer to each other, and large values must not wait for a garbage collection.
            request.on_end, request.result = _nothing, None

        def leave() -> None:
            nonlocal wanted
            wanted = False
            self._scheduler.cancel(request, self._loop.now())
            request.on_end, request.result = _nothing, None

        request = self._submission.make(tool, params, options, wake, taskless=True)
        self._scheduler.submit(request, self._loop.now())
        return leave

    def stream(
        self,
        tool: str,
        params: Arguments,
        options: CallOptions,
        *,
        session: Session | None = None,
        binding: Binding | None = None,
        window_bytes: int = STREAM_BYTES,
        payload: Payload | None = None,
    ) -> AbstractAsyncContextManager[ChunkStream]:
        """Open a stream; see :meth:`Pool.stream`.

        Args:
            params, payload: As in :meth:`begin`.
            window_bytes: The bytes of chunks that may be in transit or wait for the consumer; one chunk may exceed
                them.
        """
        timeout = options.limit(self._config.stream_timeout)
        limit = options.decided("stream_timeout", self._config.stream_timeout)

        def make(timeout: float | None, permits: tuple[Permit, ...] = ()) -> AbstractAsyncContextManager[ChunkStream]:
            return self._plain_stream(tool, params, options.within(timeout), session, binding, window_bytes, permits)

        if self._guard is not None and tool in self._dispatch.repertoire.tools:
            guarded = self._guard.stream(
                make,
                tool=tool,
                timeout=timeout,
                limit=limit,
                session=None if session is None else session.id,
                pausing=functools.partial(self.paused.wait, tool, session, limit),
            )
            return self.errors.block(guarded, "stream")
        return self.errors.block(make(timeout), "stream")

    @asynccontextmanager
    async def _plain_stream(
        self,
        tool: str,
        params: Arguments,
        options: CallOptions,
        session: Session | None,
        binding: Binding | None,
        window_bytes: int,
        permits: tuple[Permit, ...],
    ) -> AsyncIterator[ChunkStream]:
        await self._loop.check()
        chunks = ChunkStream(
            STREAM_WINDOW,
            window_bytes,
            self._submission.decode,
            self._loop,
            self.errors,
        )
        request = self._calling(
            self._submission.make, tool, params, options, chunks.wake, binding=binding, stream=chunks, permits=permits
        )
        if session is not None:
            request.fail_fast = session.fail_fast
            session.begin(request, functools.partial(self._end, request))
        try:
            self._calling(self._scheduler.submit, request, self._loop.now())
            yield chunks
        finally:
            running = request.phase is Phase.RUNNING
            try:
                self._over(request, session, chunks)
            except Exception:
                self._over(request, session, chunks)
                raise
            # The traceback refers to the frames that read the stream, which refer to the stream and its request.
            request.error = None
            if running:
                with anyio.move_on_after(self._config.cancel_grace):
                    await chunks.released.wait()

    def map(
        self,
        tool: str,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        options: CallKeywords,
        *,
        limit: int | None,
        ordered: bool,
        return_errors: bool,
        convert: Callable[[Any], Any] | None = None,
    ) -> AbstractAsyncContextManager[MapResults[Any]]:
        """Open a map; see :meth:`Pool.map`.

        Args:
            convert: Converts a result.
        """
        patient = isinstance(inputs, AsyncIterable)

        def has_room() -> bool:
            return self._scheduler.ledger.has_room

        def begin() -> MapCalls:
            own, now = CallOptions.of(options), functools.partial(self._map_limit, tool, limit, patient=patient)
            if self._guard is not None:
                tasks = MapTasks(lambda params: self.execute(tool, params, own, tasks=tasks), has_room)
                return tasks.calls(now)
            submission = self._submission

            def submit(params: Mapping[str, Any], wake: Callable[[], None]) -> Request:
                request = submission.make(tool, params, own, wake, batch=True)
                self._scheduler.submit(request, self._loop.now())
                return request

            return MapCalls(
                now,
                has_room,
                lambda params, wake: self._calling(submit, params, wake),
                submission.take,
                lambda request: self._scheduler.cancel(request, self._loop.now()),
            )

        return open_map(
            inputs,
            begin if convert is None else lambda: begin().converting(convert),
            limit=limit, ordered=ordered, return_errors=return_errors, errors=self.errors
        )  # fmt: skip

    def _map_limit(self, tool: str, limit: int | None, *, patient: bool) -> int:
        """Return how many inputs of a map may be with the pool now: of inputs that take time, only enough to keep the pool
        busy.
        """
        if limit is not None:
            return limit
        # An input that waits starts a worker in a pool without workers.
        config, size = self._config, max(1, self._supervisor.size)
        if config.threads == 1 and not patient and self._scheduler.ledger.placement.is_short(tool):
            return 2 * size * (1 + config.prefetch)
        return 2 * size * config.threads

    def _calling(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Call a function for a caller, and turn unexpected exceptions into SnakepitErrors."""
        try:
            return function(*args, **options)
        except SnakepitError:
            raise
        except Exception as exc:
            raise self.errors.caller(exc) from exc

    def close(self, error: SnakepitError) -> None:
        """End all paused calls, because the pool is closing."""
        self.paused.close(error)
        self._scheduler.close(error, anyio.current_time())

    def untie(self, session: str, binding: Binding) -> None:
        """A session is no longer tied strictly to its worker."""
        self._scheduler.untie(session, binding, self._loop.now())

    def _over(self, request: Request, session: Session | None, chunks: ChunkStream | None = None) -> None:
        """End a request whose caller has its answer or has left, so that the request does not keep its seat.

        May be called again after a failure.
        """
        if chunks is not None:
            chunks.leave()
        self._scheduler.cancel(request, self._loop.now())
        if session is not None:
            session.finish(request)
        if request.permits:
            request.keep_permits()

    def _end(self, request: Request) -> None:
        """End a call of a session that has ended."""
        self._scheduler.end(request, session_closed(request.session, request.tool), anyio.current_time())

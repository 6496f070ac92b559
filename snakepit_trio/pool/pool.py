"""A pool of workers, as its users see it.

The pool joins three parts, each of which knows nothing of the others: the ledger decides which request goes where, the
slots keep workers alive, and the workers carry frames. A request runs in its caller's task; the pool's own tasks, all
of them in its nursery, are one per slot and one clock that ends what is overdue.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.abc
import anyio.lowlevel

from snakepit_trio.errors import (
    InvalidParameter,
    PoolClosed,
    RequestTimeout,
    SnakepitError,
    StreamingUnsupported,
    ToolNotFound,
    WorkerCrashed,
    WorkerStartupError,
)
from snakepit_trio.launch.base import WorkerSpec
from snakepit_trio.wire import codec, failures
from snakepit_trio.wire.frames import Call, Chunk, Emit, HostCall, HostCancel, Payload, Reply
from snakepit_trio.workers.slot import Slot
from snakepit_trio.workers.states import Exit, WorkerState
from snakepit_trio.workers.worker import Worker

from .cancel_set import CancelSet
from .ledger import Binding, Ledger, Phase, Request, Seats, UnexpectedReply
from .mapping import MapResults
from .queue import RequestQueue
from .stats import PoolStats, WorkerInfo
from .streams import ChunkStream

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.launch.base import Launcher
    from snakepit_trio.observe.events import EventBus
    from snakepit_trio.runtime import Runtime
    from snakepit_trio.wire.connection import Wire
    from snakepit_trio.wire.generated.snakepit.v1 import ToolSpec

__all__ = ["UNSET", "Pool", "PoolParts"]

_log = logging.getLogger(__name__)

#: How many chunks of one stream may be under way or wait for the consumer.
STREAM_WINDOW = 64
#: Metadata of one request: how many entries, and how many characters in all.
METADATA_ENTRIES = 64
METADATA_SIZE = 8192


class _Unset:
    def __repr__(self) -> str:
        return "the pool's own"


#: Stands for a limit that the caller did not give; the pool's configuration then decides.
UNSET: Final = _Unset()


class PoolParts:
    """What a runtime gives to each of its pools."""

    def __init__(
        self,
        *,
        run_id: str,
        token: str,
        socket_dir: str | None,
        backend: str,
        launcher: Launcher,
        wire: Wire,
        events: EventBus,
        ids: Iterable[int],
        redact: Callable[[str], str],
        host_call: Callable[[Pool, Worker, HostCall | HostCancel], None],
        starting: anyio.Semaphore,
    ) -> None:
        self.run_id = run_id
        self.token = token
        self.socket_dir = socket_dir
        self.backend = backend
        self.launcher = launcher
        self.wire = wire
        self.events = events
        self.ids = ids
        self.redact = redact
        self.host_call = host_call
        self.starting = starting


class _WorkerPort:
    """The ledger's way to one worker."""

    __slots__ = ("_index", "pool", "seats", "worker")

    def __init__(self, pool: Pool, worker: Worker) -> None:
        self.pool = pool
        self.worker = worker
        self._index = {tool.name: index for index, tool in enumerate(worker.tools, 1)}

    def start(self, request: Request) -> None:
        until = min(request.deadline, request.until)
        timeout_us = 0
        if until != math.inf:
            timeout_us = max(1, int((until - anyio.current_time()) * 1e6))
        index = self._index.get(request.tool, 0)
        self.worker.call(
            Call(
                request.id,
                index,
                "" if index else request.tool,
                request.payload,
                timeout_us,
                request.attempt,
                request.stream,
                request.credits,
                request.session or "",
                request.metadata,
            )
        )

    def cancel(self, request: Request) -> None:
        self.worker.cancel(request.id)


class Pool:
    """A pool of worker processes. Made by :func:`snakepit_trio.open_pool` or :func:`snakepit_trio.open_runtime`.

    Attributes:
        name: Its name in the runtime.
        config: Its configuration.
    """

    def __init__(self, config: PoolConfig, parts: PoolParts, runtime: Runtime) -> None:
        self.config = config
        self.name: str = config.name
        self._runtime = runtime
        self._parts = parts
        self._events = parts.events
        self._prefix = f"{parts.run_id}-"
        self._slots: list[Slot] = []
        self._retiring: list[Slot] = []
        self._seats: dict[Worker, Seats] = {}
        self._tools: dict[str, ToolSpec] = {}
        self._size = config.size
        self._restarts = 0
        self._rng = random.Random(secrets.randbits(64))
        self._surge = anyio.Semaphore(max(1, config.surge))
        self._nursery: anyio.abc.TaskGroup | None = None
        self._replacing: set[Slot] = set()
        self._settled = anyio.Event()
        self._idle = anyio.Event()
        self._clock_scope: anyio.CancelScope | None = None
        self._opening = True
        self._ledger = Ledger(
            queue=RequestQueue(max_queue=config.max_queue, aging=config.aging, fair=config.fair),
            cancel_set=CancelSet(config.cancel_set_size, config.cancel_set_ttl),
            poison_limit=config.poison_limit,
            reject_hopeless=config.reject_hopeless,
            observer=self._observe,
            on_idle=self._note_idle,
        )

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<Pool {self.name!r} {stats.ready}/{stats.size} ready, {stats.in_flight} in flight, {stats.queued} queued>"
        )

    @property
    def runtime(self) -> Runtime:
        """The runtime that the pool belongs to."""
        return self._runtime

    # ---- calls -----------------------------------------------------------------------------------

    async def execute(
        self,
        tool: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | _Unset | None = UNSET,
        priority: int = 0,
        metadata: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> Any:
        """Run a tool in a worker and return its result.

        A cancellation leaves at once: a waiting request is dropped, a running one is cancelled in its worker.

        Args:
            tool: The tool's name.
            params: Its arguments by name.
            timeout: Seconds for the whole of it, waiting included; None for no limit. The caller's own scope counts too.
            priority: Greater goes first.
            metadata: Text that the tool finds in ``ctx.metadata``.
            idempotent: The call may run again when a worker dies under it; None means what the tool says of itself.

        Raises:
            InvalidParameter: An argument can't be sent; nothing was.
            ToolNotFound, StreamingUnsupported: There is no such tool, or it gives a stream.
            ToolError: The tool raised; ``except sp.remote(ValueError)`` catches it by its type.
            RequestTimeout, QueueTimeout, QueueFull: It took, waited, or would have waited too long.
            WorkerCrashed: The worker died under it.
            WorkerStartupError: No worker can ever serve it.
            PoolClosed: The pool is closing or closed.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        done = anyio.Event()
        request = self._request(
            tool,
            params,
            wake=done.set,
            timeout=timeout,
            priority=priority,
            metadata=metadata,
            idempotent=idempotent,
        )
        self._submit(request)
        try:
            await done.wait()
        except BaseException:
            self._ledger.cancel(request, anyio.current_time())
            raise
        error = request.error
        if error is not None:
            if isinstance(error, RequestTimeout) and request.until < request.deadline:
                # The worker saw the end of the caller's scope a moment before the scope itself does.
                await anyio.sleep_until(request.until)
            raise error
        return self._decode(request.result)

    @asynccontextmanager
    async def stream(
        self,
        tool: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | _Unset | None = UNSET,
        priority: int = 0,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncIterator[ChunkStream]:
        """Run a streaming tool; the block gets an async iterator of what it yields.

        Leaving the block, at any chunk and in any way, closes the generator in the worker. A block left in good order or
        by an exception waits until the worker confirms that, at most ``cancel_grace`` seconds; a cancelled one leaves at
        once.

        Args and errors are those of :meth:`execute`; ``timeout`` is for the whole stream. Errors of the tool come out of
        the iteration.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        chunks = ChunkStream(STREAM_WINDOW, lambda n: self._credit(request, n), self._decode)
        request = self._request(
            tool,
            params,
            wake=chunks.wake,
            timeout=self.config.stream_timeout if timeout is UNSET else timeout,
            priority=priority,
            metadata=metadata,
            idempotent=False,
            stream=chunks,
        )
        self._submit(request)
        try:
            yield chunks
        finally:
            chunks.leave()
            running = request.phase is Phase.RUNNING
            self._ledger.cancel(request, anyio.current_time())
            if running:
                with anyio.move_on_after(self.config.cancel_grace):
                    await chunks.released.wait()

    def map(
        self,
        tool: str,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        ordered: bool = True,
        return_errors: bool = False,
        timeout: float | _Unset | None = UNSET,
        priority: int = 0,
        metadata: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> AbstractAsyncContextManager[MapResults]:
        """Run a tool over many inputs; the block gets an async iterator of the results.

        Inputs are taken as they are needed, so they may be endless. Leaving the block cancels what is under way.

        Args:
            tool: The tool's name.
            inputs: The arguments of each call; an async iterable too.
            limit: How many inputs may be with the pool at once; None means twice as many as it can run at once.
            ordered: Results in the order of the inputs, else as they come.
            return_errors: Give the error in the place of a result instead of raising it.
            timeout: Seconds for one input, from the moment a worker gets it.
            priority, metadata, idempotent: As in :meth:`execute`.
        """
        if limit is None:
            limit = 2 * self._size * self.config.threads
        elif isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidParameter(f"limit must be a positive int or None, not {limit!r}", details={"path": "limit"})
        return self._map(
            MapResults(
                inputs,
                limit=limit,
                ordered=ordered,
                return_errors=return_errors,
                submit=lambda params, wake: self._submit(
                    self._request(
                        tool,
                        params,
                        wake=wake,
                        timeout=timeout,
                        priority=priority,
                        metadata=metadata,
                        idempotent=idempotent,
                        batch=True,
                    )
                ),
                take=self._take,
                cancel=lambda request: self._ledger.cancel(request, anyio.current_time()),
            )
        )

    @asynccontextmanager
    async def _map(self, results: MapResults) -> AsyncIterator[MapResults]:
        try:
            yield results
        finally:
            results.close()

    # ---- the pool itself ---------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """A consistent picture of the pool's counters."""
        totals = self._ledger.totals()
        return PoolStats(
            size=self._size,
            ready=sum(1 for seats in self._seats.values() if seats.open),
            busy=sum(1 for seats in self._seats.values() if seats.load),
            restarts=self._restarts,
            queued=totals.queued,
            in_flight=totals.in_flight,
            accepted=totals.accepted,
            rejected=totals.rejected,
            completed=totals.completed,
            failed=totals.failed,
            cancelled=totals.cancelled,
            timed_out=totals.timed_out,
            late_replies=totals.late_replies,
            cancel_set_size=totals.cancel_set_size,
        )

    def workers(self) -> tuple[WorkerInfo, ...]:
        """The pool's workers, by slot; a slot that has failed or waits for its next attempt shows its last one."""
        return tuple(_info(slot, worker) for slot in [*self._slots, *self._retiring] for worker in slot.workers)

    def tools(self) -> tuple[ToolSpec, ...]:
        """What the pool's workers offer, by name; empty until one has been ready."""
        return tuple(self._tools[name] for name in sorted(self._tools))

    async def wait_ready(self, n: int | None = None, timeout: float | None = None) -> None:
        """Wait until ``n`` workers are ready, all of them when None.

        Raises:
            WorkerStartupError: None can be: every slot has failed, or the time was spent.
            PoolClosed: The pool is closing or closed.
        """
        with anyio.move_on_after(math.inf if timeout is None else timeout):
            while True:
                if self._ledger.closed is not None:
                    raise PoolClosed(self._ledger.closed.message, details={"pool": self.name})
                if self.stats().ready >= (self._size if n is None else n):
                    return
                if all(slot.failed for slot in self._slots):
                    raise self._startup_error()
                self._settled = anyio.Event()
                await self._settled.wait()
        raise WorkerStartupError(
            f"pool {self.name!r}: {self.stats().ready} of {n or self._size} workers were ready within {timeout:g} s",
            details={"pool": self.name, "reason": "timeout"},
        )

    async def resize(self, size: int) -> None:
        """Change how many workers the pool has. Returns when the new ones are ready and the surplus ones have gone.

        Surplus workers finish the calls that they hold, within ``stop_grace``.

        Raises:
            InvalidParameter: The size is not a positive int.
            WorkerStartupError: A new worker could not start.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidParameter(f"size must be a positive int, not {size!r}", details={"path": "size"})
        self._check_open()
        surplus = self._slots[size:]
        del self._slots[size:]
        self._size = size
        new = [self._add_slot() for _ in range(size - len(self._slots))]
        self._retiring += surplus
        async with anyio.create_task_group() as nursery:
            for slot in surplus:
                nursery.start_soon(self._retire, slot)
        if new:
            await self.wait_ready()

    async def rolling_restart(self) -> None:
        """Replace every worker by a new one, ``surge`` at a time, each ready before the old one drains.

        Raises:
            WorkerStartupError: A replacement could not start; the workers that were not replaced yet go on.
        """
        self._check_open()
        for slot in list(self._slots):
            if slot.current is not None and not await slot.replace("rolling restart") and slot in self._slots:
                raise self._startup_error()

    # ---- opening and closing, for the runtime ------------------------------------------------------

    async def open(self, nursery: anyio.abc.TaskGroup) -> None:
        """Start the pool's tasks and wait until every slot has made its first attempt.

        Raises:
            WorkerStartupError: None of them has got a worker.
        """
        self._nursery = nursery
        await nursery.start(self._clock)
        for _ in range(self._size):
            self._add_slot()
        while any(not self._tried(slot) for slot in self._slots):
            self._settled = anyio.Event()
            await self._settled.wait()
        self._opening = False
        if not any(seats.open for seats in self._seats.values()):
            error = self._startup_error()
            self._ledger.fail_all(error, anyio.current_time())
            raise error

    async def aclose(self, *, drain: bool) -> list[str]:
        """Take nothing more, let what runs end within ``stop_grace`` (when draining), stop the workers.

        Returns the ids of the workers that had to be killed.
        """
        error = PoolClosed(f"pool {self.name!r} is closed", details={"pool": self.name})
        now = anyio.current_time()
        self._ledger.close(error, now)
        if drain:
            with anyio.move_on_after(self.config.stop_grace):
                while self._ledger.in_flight:
                    self._idle = anyio.Event()
                    await self._idle.wait()
        self._ledger.abort(error, anyio.current_time())
        killed: list[str] = []
        async with anyio.create_task_group() as nursery:
            for slot in [*self._slots, *self._retiring]:
                nursery.start_soon(self._retire, slot, killed)
        return killed

    def _check_open(self) -> None:
        if self._ledger.closed is not None:
            raise PoolClosed(self._ledger.closed.message, details={"pool": self.name})

    def _add_slot(self) -> Slot:
        used = {slot.index for slot in [*self._slots, *self._retiring]}
        slot = Slot(
            next(index for index in itertools.count() if index not in used),
            settings=self.config,
            host=self,
            surge=self._surge,
            starting=self._parts.starting,
            rng=self._rng,
        )
        self._slots.append(slot)
        assert self._nursery is not None
        self._nursery.start_soon(slot.run)
        return slot

    async def _retire(self, slot: Slot, killed: list[str] | None = None) -> None:
        ids = [worker.id for worker in slot.workers]
        clean = await slot.retire(0.0 if self._ledger.closed is not None else self.config.stop_grace)
        if not clean and killed is not None:
            killed += ids
        if slot in self._retiring:
            self._retiring.remove(slot)

    def _tried(self, slot: Slot) -> bool:
        worker = slot.current
        return worker is not None and (worker.ready.is_set() or worker.ended.is_set())

    def _startup_error(self) -> WorkerStartupError:
        for slot in self._slots:
            exit = slot.current.exit if slot.current is not None and slot.current.exit is not None else slot.last_exit
            if exit is not None and not exit.expected:
                return WorkerStartupError(
                    f"pool {self.name!r}: no worker could start: {exit.message}",
                    details={**exit.details(), "pool": self.name, "reason": exit.message, "exit": exit.reason},
                )
        return WorkerStartupError(
            f"pool {self.name!r}: no worker is ready", details={"pool": self.name, "reason": "not ready"}
        )

    async def _clock(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """End what is overdue, at the moment it is."""
        task_status.started()
        while True:
            with anyio.CancelScope(deadline=self._ledger.next_deadline()) as scope:
                self._clock_scope = scope
                await anyio.sleep_forever()
            self._ledger.expire(anyio.current_time())

    # ---- requests ----------------------------------------------------------------------------------

    def _request(
        self,
        tool: str,
        params: Mapping[str, Any] | None,
        *,
        wake: Callable[[], object],
        timeout: float | _Unset | None,
        priority: int,
        metadata: Mapping[str, str] | None,
        idempotent: bool | None,
        stream: ChunkStream | None = None,
        session: str | None = None,
        binding: Binding | None = None,
        batch: bool = False,
    ) -> Request:
        config = self.config
        spec = self._tools.get(tool)
        if spec is None:
            if self._tools:
                raise self._tool_not_found(tool)
        elif spec.streaming != (stream is not None):
            raise _wrong_kind(spec)
        if params is None:
            params = {}
        elif not isinstance(params, Mapping):
            raise InvalidParameter(
                f"params must be a mapping of argument names to values, not {type(params).__name__}",
                details={"path": "params"},
            )
        payload = codec.encode(params if type(params) is dict else dict(params), limit=config.max_payload)
        if timeout is UNSET:
            timeout = config.timeout
        elif timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise InvalidParameter(
                f"timeout must be a positive number of seconds or None, not {timeout!r}", details={"path": "timeout"}
            )
        if type(priority) is not int:
            raise InvalidParameter(f"priority must be an int, not {priority!r}", details={"path": "priority"})
        if metadata:
            _check_metadata(metadata)
        now = anyio.current_time()
        request = Request(
            next(self._parts.ids),  # type: ignore[call-overload]
            tool,
            payload,
            wake=wake,
            deadline=math.inf if timeout is None or batch else now + timeout,
            queue_deadline=math.inf if batch or config.queue_timeout is None else now + config.queue_timeout,
            priority=priority,
            session=session,
            share=session,
            binding=binding,
            idempotent=(spec is not None and spec.idempotent) if idempotent is None else idempotent,
            metadata=metadata,
            until=math.inf if batch else anyio.current_effective_deadline(),
            time_limit=timeout if batch else None,
        )
        if stream is not None:
            request.stream = True
            request.credits = STREAM_WINDOW
            request.chunk = stream.put
            request.released = stream.released.set
            stream.request = request
        return request

    def _submit(self, request: Request) -> Request:
        now = anyio.current_time()
        self._ledger.submit(request, now)
        scope = self._clock_scope
        if scope is not None and min(request.deadline, request.queue_deadline) < scope.deadline:
            scope.deadline = self._ledger.next_deadline()
        return request

    def _take(self, request: Request) -> Any:
        if request.error is not None:
            raise request.error
        return self._decode(request.result)

    def _decode(self, payload: Payload | None) -> Any:
        if payload is None:
            return None
        return codec.decode(payload, what="result", limit=self.config.max_payload)

    def _credit(self, request: Request, chunks: int) -> None:
        seats = request.seats
        if request.phase is Phase.RUNNING and seats is not None:
            seats.port.worker.credit(request.id, chunks)  # type: ignore[attr-defined]

    def _tool_not_found(self, tool: object) -> ToolNotFound:
        import difflib

        close = difflib.get_close_matches(str(tool), self._tools, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return ToolNotFound(f"pool {self.name!r} has no tool {tool!r}{hint}", details={"tool": tool, "pool": self.name})

    def _observe(self, event: str, request: Request, now: float) -> None:
        if not self._events.active:
            return
        measurements: dict[str, float] = {}
        metadata: dict[str, Any] = {
            "request_id": f"{self._prefix}{request.id}",
            "pool": self.name,
            "tool": request.tool,
        }
        if request.session is not None:
            metadata["session_id"] = request.session
        if request.seats is not None:
            metadata["worker_id"] = request.seats.port.worker.id  # type: ignore[attr-defined]
        if event == "dispatched":
            measurements["queue_wait"] = now - request.submitted_at
            metadata["attempt"] = request.attempt
        elif event != "queued":
            measurements["duration"] = now - request.submitted_at
            if request.error is not None:
                metadata["error"] = request.error.code
        self._events.emit(f"request.{event}", measurements, **metadata)

    def _note_idle(self) -> None:
        self._idle.set()

    # ---- what workers tell: the interface WorkerHost -------------------------------------------------

    def worker_state(self, worker: Worker, old: WorkerState, new: WorkerState) -> None:
        now = anyio.current_time()
        if old is WorkerState.STARTING and new is WorkerState.READY:
            for tool in worker.tools:
                self._tools[tool.name] = tool
            seats = Seats(None, worker.threads)  # type: ignore[arg-type]
            seats.port = _WorkerPort(self, worker)
            self._seats[worker] = seats
            self._ledger.open(seats, now)
        elif new is WorkerState.DRAINING or new.over:
            seats_now = self._seats.get(worker)
            if seats_now is not None:
                self._ledger.cordon(seats_now)
        if self._events.active and not {old, new} <= {WorkerState.READY, WorkerState.BUSY}:
            self._events.emit(f"worker.{new.value}", None, **self._who(worker))

    def worker_tainted(self, worker: Worker, reason: str) -> None:
        seats = self._seats.get(worker)
        if seats is not None:
            self._ledger.cordon(seats)
        self._events.emit("worker.tainted", None, reason=reason, **self._who(worker))
        if reason != "cancel_grace":
            self._replace_soon(worker, reason)

    def worker_reply(self, worker: Worker, reply: Reply) -> None:
        error = None if reply.error is None else failures.from_info(reply.error)
        now = anyio.current_time()
        try:
            self._ledger.replied(self._seats[worker], reply.id, now, result=reply.payload, error=error)
        except UnexpectedReply as exc:
            raise ValueError(str(exc)) from None
        limit = self.config.max_requests
        if limit is not None and worker.served >= limit:
            self._replace_soon(worker, "max_requests")

    def worker_chunk(self, worker: Worker, chunk: Chunk) -> None:
        seats = self._seats[worker]
        request = seats.running.get(chunk.id)
        if request is not None and request.chunk is not None:
            request.chunk(chunk.payload)
        elif chunk.id not in seats.leaving:
            raise ValueError(f"a chunk of call {chunk.id}, which is not a stream under way")

    def worker_host_call(self, worker: Worker, call: HostCall | HostCancel) -> None:
        self._parts.host_call(self, worker, call)

    def worker_emit(self, worker: Worker, emit: Emit) -> None:
        if not self._events.active:
            return
        try:
            measurements, metadata = codec.decode(emit.payload, what="event", limit=self.config.max_payload)
            fields = {**dict(metadata), **self._who(worker), "request_id": f"{self._prefix}{emit.call_id}"}
            self._events.emit(emit.name, dict(measurements), **fields)
        except (SnakepitError, TypeError, ValueError):
            _log.warning("worker %s emitted an event that can't be read", worker.id)

    def worker_pulse(self, worker: Worker) -> None:
        limit = self.config.max_rss
        if limit is not None and worker.rss > limit:
            self._replace_soon(worker, "max_rss")

    def worker_gone(self, worker: Worker, exit: Exit) -> None:
        seats = self._seats.pop(worker, None)
        if seats is not None:
            error: WorkerCrashed | PoolClosed
            if self._ledger.closed is not None:
                error = PoolClosed(f"pool {self.name!r} is closed", details={"pool": self.name})
            else:
                error = WorkerCrashed(
                    f"the worker {exit.message}", details={"worker_id": worker.id, "pool": self.name, **exit.details()}
                )
            self._ledger.gone(seats, error, anyio.current_time())
        self._events.emit("worker.gone", None, reason=exit.reason, expected=exit.expected, **self._who(worker))
        level = logging.INFO if exit.expected else logging.WARNING
        _log.log(level, "worker %s of pool %s %s", worker.id, self.name, exit.message, extra=self._who(worker))

    def _who(self, worker: Worker) -> dict[str, Any]:
        return {"worker_id": worker.id, "pool": self.name, "pid": worker.pid, "slot": worker.slot}

    # ---- what slots tell: the interface SlotHost -----------------------------------------------------

    def make_worker(self, slot: int, incarnation: int) -> Worker:
        config, parts = self.config, self._parts
        return Worker(
            WorkerSpec(
                worker_id=secrets.token_hex(6),
                run_id=parts.run_id,
                pool=self.name,
                adapter=config.adapter,
                token=parts.token,
                socket_dir=None if config.transport == "tcp" else parts.socket_dir,
                threads=config.threads,
                worker_backend=config.worker_backend,
                host_backend=parts.backend,
                max_payload=config.max_payload,
                python=config.python,
                env=dict(config.env or {}),
                cwd=config.cwd,
            ),
            settings=config,
            launcher=parts.launcher,
            wire=parts.wire,
            host=self,
            slot=slot,
            incarnation=incarnation,
            request_prefix=self._prefix,
            redact=parts.redact,
        )

    def slot_restarted(self, slot: Slot) -> None:
        self._restarts += 1

    def slot_settled(self, slot: Slot) -> None:
        self._settled.set()
        if slot.failed and not self._opening and all(other.failed for other in self._slots):
            self._ledger.fail_all(self._startup_error(), anyio.current_time())

    def _replace_soon(self, worker: Worker, reason: str) -> None:
        for slot in self._slots:
            if slot.current is worker and slot not in self._replacing and self._nursery is not None:
                self._replacing.add(slot)
                self._events.emit("worker.recycled", None, reason=reason, **self._who(worker))
                self._nursery.start_soon(self._replace, slot, reason)

    async def _replace(self, slot: Slot, reason: str) -> None:
        try:
            await slot.replace(reason)
        finally:
            self._replacing.discard(slot)


def _info(slot: Slot, worker: Worker) -> WorkerInfo:
    failed = slot.failed and worker is slot.current
    return WorkerInfo(
        id=worker.id,
        slot=worker.slot,
        incarnation=worker.incarnation,
        pool=worker.pool,
        pid=worker.pid,
        address=worker.address,
        state="failed" if failed else worker.state.value,
        started_at=worker.started_at,
        requests=worker.served,
        in_flight=worker.in_flight,
        rss=worker.rss,
        last_heartbeat=worker.last_heartbeat,
        tainted=worker.tainted,
        reason=slot.reason if failed else (worker.exit.message if worker.exit is not None else ""),
    )


def _wrong_kind(spec: ToolSpec) -> StreamingUnsupported:
    if spec.streaming:
        text = f"{spec.name!r} gives a stream: use pool.stream({spec.name!r}, ...)"
    else:
        text = f"{spec.name!r} gives one result, not a stream: use pool.execute, or make the tool a generator"
    return StreamingUnsupported(text, details={"tool": spec.name, "streaming": spec.streaming})


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if not isinstance(metadata, Mapping):
        raise InvalidParameter("metadata must be a mapping of text to text", details={"path": "metadata"})
    size = 0
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidParameter(
                f"metadata[{key!r}] must be text, not {type(value).__name__}", details={"path": f"metadata[{key!r}]"}
            )
        size += len(key) + len(value)
    if len(metadata) > METADATA_ENTRIES or size > METADATA_SIZE:
        raise InvalidParameter(
            f"metadata has {len(metadata)} entries of {size} characters; the limits are {METADATA_ENTRIES} and {METADATA_SIZE}",
            details={"path": "metadata"},
        )

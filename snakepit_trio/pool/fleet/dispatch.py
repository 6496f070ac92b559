"""The live workers of one pool: which accept calls, what they offer, and the handling of their messages."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

from snakepit_trio._fair_budget import Share
from snakepit_trio._waiting import event_loop
from snakepit_trio.errors import InvalidParameter, PoolClosed, SnakepitError, WorkerCrashed
from snakepit_trio.observe.printable import one_line
from snakepit_trio.supervision.exits import Exit
from snakepit_trio.supervision.states import WorkerState
from snakepit_trio.tools.serving import HostToolServer
from snakepit_trio.wire import codec, failures
from snakepit_trio.wire.frames import EVENT_LIMIT, Call, Chunk, Emit, HostCall, HostCancel, Reply

from ..scheduling.ledger import UnexpectedReply
from ..scheduling.request import Request, Seats
from .repertoire import Repertoire

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.supervision.worker import Worker

    from ..scheduling.scheduler import Scheduler
    from ..services import PoolServices

__all__ = ["WorkerDispatch", "no_such_worker"]

_log = logging.getLogger(__name__)

#: The reasons of ends that no call causes; for ``cancel_grace``, no call with a waiting caller.
_NO_CALLS_FAULT = frozenset({"stopped", "cancel_grace", "node_lost", "internal"})


class _WorkerPort:
    """The scheduler's way to one worker."""

    __slots__ = ("_index", "_now", "_servers", "worker")

    def __init__(self, worker: Worker, servers: Mapping[Worker, HostToolServer], now: Callable[[], float]) -> None:
        self.worker = worker
        self._now = now
        self._servers = servers
        self._index = {tool.name: index for index, tool in enumerate(worker.tools, 1)}

    def start(self, request: Request) -> None:
        until, stream = min(request.deadline, request.scope_deadline), request.stream
        timeout_us = 0
        if until != math.inf:
            timeout_us = max(1, int((until - self._now()) * 1e6))
        index = self._index.get(request.tool, 0)
        self.worker.call(
            Call(
                request.id,
                index,
                "" if index else request.tool,
                request.payload,
                timeout_us,
                request.attempt,
                stream is not None,
                0 if stream is None else stream.window,
                request.session or "",
                request.metadata,
                0 if stream is None else stream.window_bytes,
            )
        )

    def cancel(self, request: Request) -> None:
        self.worker.cancel(request.id)
        server = self._servers.get(self.worker)
        if server is not None:
            server.cancel_for(request)

    def withdraw(self, request: Request) -> None:
        self.worker.withdraw(request.id)

    def recall(self, request: Request) -> None:
        self.worker.withdraw(request.id, recall=True)

    def credit(self, request: Request, chunks: int, size: int) -> None:
        self.worker.credit(request.id, chunks, size)


class WorkerDispatch:
    """The live workers. Their messages go into the scheduler at once; only :meth:`drain` waits.

    Args:
        config: The pool's configuration.
        parts: The pool's services from its runtime.
        scheduler: The pool's scheduler.
        on_due: Called with a worker that must be replaced, and the reason.
        on_more: Called when a cordoned worker accepts calls again.

    Attributes:
        seats: The workers that may have calls, with the scheduler's seats for each.
        repertoire: The tools that the workers offer.
        draining: The workers for whose drain a task waits, once per task.
        killed: The ids of workers that were killed while the pool was closing.
        request_prefix: The prefix of the pool's request ids.
        nursery: The pool's nursery, once it is open.
    """

    def __init__(
        self,
        config: PoolConfig,
        services: PoolServices,
        scheduler: Scheduler,
        *,
        on_due: Callable[[Worker, str], object],
        on_more: Callable[[], object],
    ) -> None:
        self.config = config
        self.name: str = config.name
        self.seats: dict[Worker, Seats] = {}
        self.repertoire: Repertoire = Repertoire()
        self.killed: list[str] = []
        self.draining: list[Worker] = []
        self.request_prefix: str = f"{services.run_id}-"
        self.nursery: anyio.abc.TaskGroup | None = None
        self._services = services
        self._events = services.events
        self._scheduler = scheduler
        self._on_due = on_due
        self._on_more = on_more
        self._now = event_loop(services.backend).now
        self._servers: dict[Worker, HostToolServer] = {}

    def __repr__(self) -> str:
        return f"<WorkerDispatch of {self.name!r}: {self.ready} of {len(self.seats)} take calls>"

    @property
    def ready(self) -> int:
        """The number of workers that accept calls."""
        return sum(1 for seats in self.seats.values() if seats.open)

    @property
    def busy(self) -> int:
        """The number of workers that hold at least one call."""
        return sum(1 for seats in self.seats.values() if seats.load)

    @property
    def cordoned(self) -> int:
        """The number of live workers that an operator has excluded from new calls."""
        return sum(map(self.is_cordoned, self.seats))

    def is_cordoned(self, worker: Worker) -> bool:
        """Return whether a live worker is excluded from new calls by an operator."""
        seats = self.seats.get(worker)
        up = worker.state in (WorkerState.READY, WorkerState.BUSY)
        return up and seats is not None and not seats.open and not worker.tainted

    def cordon(self, worker_id: str, *, cordoned: bool) -> None:
        """Stop giving a worker new calls, or start again; its running calls continue.

        Raises:
            InvalidParameter: The pool has no such worker, or the worker accepts no calls for another reason.
        """
        for worker, seats in self.seats.items():
            if worker.id == worker_id and not worker.tainted and worker.state in (WorkerState.READY, WorkerState.BUSY):
                if cordoned:
                    self._scheduler.incarnations.cordon(seats, anyio.current_time())
                    self._services.waits.check()
                else:
                    self._scheduler.incarnations.uncordon(seats, anyio.current_time())
                    self._on_more()
                name = "worker.cordoned" if cordoned else "worker.uncordoned"
                self._events.emit(name, None, **self.who(worker))
                return
        raise no_such_worker(worker_id)

    async def drain(self, worker_id: str) -> None:
        """Stop giving a worker new calls, and wait until it holds none. A cancellation leaves it cordoned.

        Raises:
            InvalidParameter: The pool has no such worker, or the worker accepts no calls for another reason.
        """
        self.cordon(worker_id, cordoned=True)
        for worker in self.seats:
            if worker.id == worker_id:
                self.draining.append(worker)
                try:
                    await worker.drained()
                finally:
                    self.draining.remove(worker)
                return

    # ---- the interface WorkerHost ------------------------------------------------------------------

    def worker_introduced(self, worker: Worker) -> None:
        self.repertoire.join(worker)

    def worker_state(self, worker: Worker, old: WorkerState, new: WorkerState) -> None:
        if old is WorkerState.STARTING and new is WorkerState.READY:
            self._events.emit("worker.ready", {"startup": time.time() - worker.started_at}, **self.who(worker))
        else:
            self._events.emit(f"worker.{new.value}", None, **self.who(worker))
        if old is WorkerState.STARTING and new is WorkerState.READY:
            if worker.slot >= 0:
                self.admit(worker)
        elif new is WorkerState.DRAINING or new.over:
            seats_now = self.seats.get(worker)
            if seats_now is not None:
                self._scheduler.incarnations.retire(seats_now, anyio.current_time())
                self._services.waits.check()
            server = self._servers.get(worker)
            if new.over:
                self.repertoire.leave(worker)
                if server is not None:
                    server.close()

    def admit(self, worker: Worker) -> None:
        """Handle a worker that accepts calls from now on."""
        # The queue ensures fairness among sessions, so no call may leave it early.
        may_hold = worker.threads == 1 and "prefetch" in worker.capabilities and not self.config.fair
        port = _WorkerPort(worker, self._servers, self._now)
        seats = Seats(port, worker.threads, self.config.prefetch if may_hold else 0, worker.id)
        self.seats[worker] = seats
        self._scheduler.incarnations.open(seats, anyio.current_time())

    def worker_tainted(self, worker: Worker, reason: str) -> None:
        seats = self.seats.get(worker)
        if seats is not None:
            self._scheduler.incarnations.cordon(seats, anyio.current_time())
            self._services.waits.check()
        self._events.emit("worker.tainted", None, reason=reason, **self.who(worker))
        if reason != "cancel_grace":
            self._on_due(worker, reason)

    def worker_stuck(self, worker: Worker, call_id: int) -> None:
        seats = self.seats.get(worker)
        if seats is not None:
            self._scheduler.incarnations.stuck(seats, call_id)
            self._services.waits.check()

    def worker_missed(self, worker: Worker, silence: float) -> None:
        self._events.emit("worker.heartbeat_missed", {"silence": silence}, **self.who(worker))

    def worker_reply(self, worker: Worker, reply: Reply) -> None:
        error = None if reply.error is None else failures.from_reply(reply.error, redact=self._services.redact)
        now = self._now()
        try:
            request = self._scheduler.replied(self.seats[worker], reply.id, now, result=reply.payload, error=error)
        except UnexpectedReply as exc:
            raise ValueError(str(exc)) from None
        if worker in self._servers and request is not None:
            self._servers[worker].cancel_for(request)

    def worker_returned(self, worker: Worker, call_id: int) -> None:
        try:
            self._scheduler.incarnations.returned(self.seats[worker], call_id, anyio.current_time())
        except UnexpectedReply as exc:
            raise ValueError(str(exc)) from None

    def worker_stopped_call(self, worker: Worker, call_id: int) -> None:
        details = {"worker_id": worker.id, "pool": self.name, "reason": "leaving"}
        error = WorkerCrashed("the worker was asked to end by others, and stopped the call", details=details)
        try:
            self._scheduler.incarnations.stopped(self.seats[worker], call_id, error, anyio.current_time())
        except UnexpectedReply as exc:
            raise ValueError(str(exc)) from None

    def worker_chunk(self, worker: Worker, chunk: Chunk) -> None:
        seats = self.seats[worker]
        # Chunks of a call whose caller has left may still be in transit, and need credit too.
        request = seats.running.get(chunk.id) or seats.leaving.get(chunk.id)
        if request is None or request.stream is None:
            raise ValueError(f"a chunk of call {chunk.id}, which is not a stream under way")
        request.stream.put(chunk.payload)

    def worker_host_call(self, worker: Worker, call: HostCall | HostCancel) -> None:
        if worker.state.over:
            return  # It was sent before the worker's end, and has no receiver.
        server = self._servers.get(worker)
        if server is None:
            assert self.nursery is not None
            server = self._servers[worker] = HostToolServer(
                worker,
                registries=self._services.registries,
                threads=self._services.host_threads,
                nursery=self.nursery,
                errors=self._services.errors,
                share=Share(self._services.host_call_bytes),
                limit=self.config.max_payload,
                redact=self._services.redact,
                prefix=self.request_prefix,
            )
        if isinstance(call, HostCancel):
            server.cancel(call.id)
        else:
            server.begin(call, self.seats[worker].running.get(call.call_id))

    def worker_emit(self, worker: Worker, emit: Emit) -> None:
        with self._services.errors.bulkhead("observer", **self.who(worker)):
            self._tell(worker, emit)

    def _tell(self, worker: Worker, emit: Emit) -> None:
        if not self._events.wanted(emit.name):
            return
        try:
            measurements, metadata = codec.decode(emit.payload, what="event", limit=EVENT_LIMIT)
            fields = {**metadata, **self.who(worker), "request_id": f"{self.request_prefix}{emit.call_id}"}
            self._events.emit_from_tool(emit.name, dict(measurements), fields)
        except (SnakepitError, TypeError, ValueError) as exc:
            why = one_line(str(exc))
            _log.warning("worker %s emitted an event that is refused: %s", worker.id, why, extra=self.who(worker))

    def worker_due(self, worker: Worker, reason: str) -> None:
        self._on_due(worker, reason)

    def worker_gone(self, worker: Worker, exit: Exit) -> None:
        self._servers.pop(worker, None)
        seats = self.seats.get(worker)
        if seats is not None:
            error: WorkerCrashed | PoolClosed
            if self._scheduler.ledger.closed is not None:
                error = PoolClosed(f"pool {self.name!r} is closed", details={"pool": self.name})
            else:
                error = WorkerCrashed(
                    f"the worker {exit.message}", details={"worker_id": worker.id, "pool": self.name, **exit.details()}
                )
            now = anyio.current_time()
            # Waiting tasks must be informed, so the simplest form is tried again.
            with self._services.errors.bulkhead(
                "worker", lambda exc: self._scheduler.incarnations.gone(seats, error, now)
            ):
                blamed = not worker.killed_on_demand and exit.reason not in _NO_CALLS_FAULT
                self._scheduler.incarnations.gone(seats, error, now, unbegun=worker.unbegun, blamed=blamed)
            del self.seats[worker]
            self._services.waits.check()
        if self._scheduler.ledger.closed is not None and worker.was_killed:
            self.killed.append(worker.id)
        self._events.emit(
            "worker.gone",
            {"uptime": time.time() - worker.started_at, "requests": worker.served},
            reason=exit.reason,
            expected=exit.expected,
            **self.who(worker),
        )
        level = logging.INFO if exit.expected else logging.WARNING
        _log.log(level, "worker %s of pool %s %s", worker.id, self.name, one_line(exit.message), extra=self.who(worker))

    def who(self, worker: Worker) -> dict[str, Any]:
        """Return the fields that identify a worker in events and logs."""
        return {"worker_id": worker.id, "pool": self.name, "pid": worker.pid, "slot": worker.slot}


def no_such_worker(worker_id: str) -> InvalidParameter:
    """Return the error of an operation on a worker that does not exist."""
    return InvalidParameter(f"there is no worker {worker_id!r} that takes calls", details={"path": "worker_id"})

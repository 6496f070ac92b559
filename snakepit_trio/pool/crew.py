"""The workers of one pool: its slots, what its workers tell, and the way from the ledger to each of them."""

from __future__ import annotations

import itertools
import logging
import math
import random
import secrets
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.to_thread

from snakepit_trio._interrupts import protected
from snakepit_trio._waiting import event_loop
from snakepit_trio.errors import InvalidParameter, PoolClosed, SnakepitError, WorkerCrashed, WorkerStartupError
from snakepit_trio.hardware import detect, visibility
from snakepit_trio.launch.base import WorkerSpec
from snakepit_trio.tools.schemas import compile_check
from snakepit_trio.tools.serving import HostThreads, HostToolServer
from snakepit_trio.tools.waits import Waits
from snakepit_trio.wire import codec, failures
from snakepit_trio.wire.events import EVENT_LIMIT
from snakepit_trio.wire.frames import MSGPACK, Call, Chunk, Emit, HostCall, HostCancel, Reply
from snakepit_trio.wire.shared import Budget, available
from snakepit_trio.workers.slot import Slot
from snakepit_trio.workers.states import Exit, WorkerState
from snakepit_trio.workers.worker import Worker

from .ledger import Binding, Ledger, Request, Seats, UnexpectedReply
from .scaling import Load
from .stats import WorkerInfo
from .watch import Timings

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.launch.base import Launcher
    from snakepit_trio.observe.events import EventBus
    from snakepit_trio.observe.tracing import Telemetry
    from snakepit_trio.tools.registry import ToolRegistry
    from snakepit_trio.wire.connection import Wire
    from snakepit_trio.wire.generated.snakepit.v1 import ToolSpec

__all__ = ["Crew", "PoolParts"]

_log = logging.getLogger(__name__)

#: Stands for no limit where a number is needed, in bytes.
_NO_LIMIT = 1 << 62


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
        ids: Iterator[int],
        redact: Callable[[str], str],
        registries: Callable[[Request], tuple[ToolRegistry, ...]],
        waits: Waits,
        host_threads: HostThreads,
        starting: anyio.Semaphore,
        timings: Timings | None = None,
        bindings: Callable[[str], Iterable[Binding]] = lambda _: (),
        telemetry: Telemetry | None = None,
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
        self.registries = registries
        self.waits = waits
        self.host_threads = host_threads
        self.starting = starting
        self.timings = timings
        #: The ties of sessions to a pool's workers.
        self.bindings = bindings
        self.telemetry = telemetry


class _WorkerPort:
    """The ledger's way to one worker."""

    __slots__ = ("_index", "_now", "_servers", "worker")

    def __init__(self, worker: Worker, servers: Mapping[Worker, HostToolServer], now: Callable[[], float]) -> None:
        self.worker = worker
        self._now = now
        self._servers = servers
        self._index = {tool.name: index for index, tool in enumerate(worker.tools, 1)}

    def start(self, request: Request) -> None:
        until = min(request.deadline, request.until)
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
                request.stream,
                request.credits,
                request.session or "",
                request.metadata,
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


class Crew:
    """The workers of one pool. What it is told by slots and workers goes into the ledger at once; nothing here waits but
    what is asked to.

    Attributes:
        slots: The places that are kept filled.
        size: How many there are meant to be.
        tools: What the workers offer, by name; empty until one has been ready.
        checks: By tool, what refuses arguments that can't be right.
        encoding: How the arguments are encoded: as the workers can read it.
        restarts: Workers started in place of one that ended unbidden.
        killed: Ids of the workers that had to be killed while the pool was closing.
    """

    def __init__(self, config: PoolConfig, parts: PoolParts, ledger: Ledger) -> None:
        self.config = config
        self.name: str = config.name
        self.slots: list[Slot] = []
        self.size = config.size
        self.tools: dict[str, ToolSpec] = {}
        self.checks: dict[str, Callable[[Mapping[str, Any]], None] | None] = {}
        self.encoding = MSGPACK
        self.restarts = 0
        self.killed: list[str] = []
        self.request_prefix = f"{parts.run_id}-"
        self._parts = parts
        self._events = parts.events
        self._ledger = ledger
        self._now = event_loop(parts.backend).now
        self._retiring: list[Slot] = []
        #: Places of workers that are kept warm and take no calls before they are moved to a slot.
        self._spares: list[Slot] = []
        self._seats: dict[Worker, Seats] = {}
        self._devices = () if config.devices in (None, "auto") else config.devices
        self._servers: dict[Worker, HostToolServer] = {}
        self._rng = random.Random(secrets.randbits(64))
        limit = config.shm_limit if available() else 0
        # One half for what the host sends, the other for the workers, in equal parts.
        self._shm = Budget(None if limit is None else limit // 2)
        workers = max(config.size, config.max_size or 0) + config.surge + config.spares
        self._shm_of_worker = _NO_LIMIT if limit is None else limit // 2 // workers
        self._surge = anyio.Semaphore(max(1, config.surge))
        self._nursery: anyio.abc.TaskGroup | None = None
        self._replacing: set[Slot] = set()
        self._failed: set[Slot] = set()
        self._settled = anyio.Event()
        self._opening = True

    def __repr__(self) -> str:
        return f"<Crew of {self.name!r}: {self.ready} of {self.size} ready>"

    @property
    def ready(self) -> int:
        """Workers that take calls."""
        return sum(1 for seats in self._seats.values() if seats.open)

    @property
    def busy(self) -> int:
        """Workers that hold at least one call."""
        return sum(1 for seats in self._seats.values() if seats.load)

    @property
    def expecting(self) -> bool:
        """Whether a worker is to come that will take calls."""
        return any(slot.expecting for slot in self.slots)

    def infos(self) -> tuple[WorkerInfo, ...]:
        """A record of each worker, by slot."""
        return tuple(
            _info(slot, worker, self._seats.get(worker))
            for slot in [*self.slots, *self._retiring, *self._spares]
            for worker in slot.workers
        )

    async def open(self, nursery: anyio.abc.TaskGroup) -> None:
        """Start the slots, and wait until each has made its first attempt.

        Raises:
            WorkerStartupError: None of them has got a worker.
        """
        self._nursery = nursery
        if self.config.devices == "auto":
            hardware = await anyio.to_thread.run_sync(detect)
            self._devices = tuple(device.id for device in hardware.accelerators)
        for _ in range(self.size):
            self._add_slot(self.slots)
        for _ in range(self.config.spares):
            self._add_slot(self._spares)
        while any(not self._tried(slot) for slot in self.slots):
            self._settled = anyio.Event()
            await self._settled.wait()
        self._opening = False
        if not self.ready:
            error = self._startup_error()
            self._fail(error)
            raise error
        self._events.emit("pool.opened", {"size": self.size, "ready": self.ready}, pool=self.name)

    async def stop(self) -> None:
        """Stop every worker, each step bounded."""
        async with anyio.create_task_group() as nursery:
            for slot in [*self.slots, *self._retiring, *self._spares]:
                nursery.start_soon(self._retire, slot)

    def kill(self) -> None:
        """End every worker at once."""
        for slot in [*self.slots, *self._retiring, *self._spares]:
            for worker in slot.workers:
                worker.kill()

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
                if self.ready >= (self.size if n is None else n):
                    return
                if self.slots and all(slot.failed for slot in self.slots):
                    raise self._startup_error()
                self._settled = anyio.Event()
                await self._settled.wait()
        raise WorkerStartupError(
            f"pool {self.name!r}: {self.ready} of {n or self.size} workers were ready within {timeout:g} s",
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
        self.check_open()
        surplus = self.slots[size:]
        grows = self._set_size(size, surplus, "resize")
        async with anyio.create_task_group() as nursery:
            for slot in surplus:
                nursery.start_soon(self._retire, slot)
        if grows:
            # A worker that was cordoned is up, and takes no calls for as long as somebody wants it so.
            cordoned = sum(
                not seats.open and not worker.tainted and worker.state in (WorkerState.READY, WorkerState.BUSY)
                for worker, seats in self._seats.items()
            )
            await self.wait_ready(self.size - cordoned)

    def scale(self, size: int, keep: Container[Seats]) -> None:
        """Move towards a size without waiting: new workers start; idle ones stop, but for those that are to be kept.

        The new size is what could be done of it.
        """
        assert self._nursery is not None
        idle = [slot for slot in reversed(self.slots) if self._is_idle(slot, keep)]
        surplus = idle[: max(0, len(self.slots) - size)]
        size = max(size, len(self.slots) - len(surplus))
        if size == self.size:
            return
        for slot in surplus:
            if slot.current in self._seats:
                # At once: a call that came before the slot's task has run would find a worker that is to stop.
                self._ledger.cordon(self._seats[slot.current])
        self._set_size(size, surplus, "load")
        for slot in surplus:
            self._nursery.start_soon(self._retire, slot)

    def _is_idle(self, slot: Slot, keep: Container[Seats]) -> bool:
        seats = None if slot.current is None else self._seats.get(slot.current)
        return slot.failed or (seats is not None and not seats.load and seats not in keep)

    def _set_size(self, size: int, surplus: list[Slot], reason: str) -> bool:
        """Write a new size down, and fill what is missing. Returns whether anything was."""
        self._events.emit("pool.resized", {"before": self.size, "size": size}, pool=self.name, reason=reason)
        self.slots[:] = [slot for slot in self.slots if slot not in surplus]
        self._retiring += surplus
        self.size = size
        return bool([self._add_slot(self.slots) for _ in range(size - len(self.slots))])

    def load(self) -> Load:
        """The pool at this moment, for whoever decides how many workers it should have."""
        now = anyio.current_time()
        return Load(
            size=self.size,
            starting=sum(not slot.failed and not self._serves(slot) for slot in self.slots),
            in_flight=self._ledger.in_flight,
            queued=self._ledger.queued,
            oldest_wait=self._ledger.oldest_wait(now),
            service_time=self._ledger.service_time,
        )

    def _serves(self, slot: Slot) -> bool:
        return slot.current is not None and slot.current in self._seats

    async def rolling_restart(self) -> None:
        """Replace every worker by a new one, ``surge`` at a time, each ready before the old one drains.

        Raises:
            WorkerStartupError: A replacement could not start; the workers that were not replaced yet go on.
        """
        self.check_open()
        for slot in list(self.slots):
            if slot.current is None:
                continue
            self._recycles(slot.current, "rolling_restart")
            if not await slot.replace("rolling restart") and slot in self.slots:
                raise self._startup_error()

    async def recycle(self, worker_id: str) -> bool:
        """Replace one worker: a new one is ready first, then this one drains and stops.

        Returns whether that happened; False when the new one could not start, and this one goes on.

        Raises:
            InvalidParameter: The pool has no such worker.
        """
        for slot in self.slots:
            if slot.current is not None and slot.current.id == worker_id:
                self._recycles(slot.current, "on_demand")
                return await slot.replace("on demand")
        raise _no_such_worker(worker_id)

    def cordon(self, worker_id: str, *, cordoned: bool) -> None:
        """Give one worker no more calls, or calls again; those that it has go on.

        Raises:
            InvalidParameter: The pool has no such worker, or it takes no calls for reasons of its own.
        """
        for worker, seats in self._seats.items():
            if worker.id == worker_id and not worker.tainted and worker.state in (WorkerState.READY, WorkerState.BUSY):
                if cordoned:
                    self._ledger.cordon(seats)
                    self._parts.waits.check()
                else:
                    self._ledger.uncordon(seats, anyio.current_time())
                return
        raise _no_such_worker(worker_id)

    async def drain(self, worker_id: str) -> None:
        """Give one worker no more calls, and wait until it holds none. A cancellation leaves it without new ones.

        Raises:
            InvalidParameter: The pool has no such worker, or it takes no calls for reasons of its own.
        """
        self.cordon(worker_id, cordoned=True)
        for worker in self._seats:
            if worker.id == worker_id:
                await worker.drained()
                return

    def kill_worker(self, worker_id: str) -> None:
        """End one worker at once; its slot gets another.

        Raises:
            InvalidParameter: The pool has no such worker that is alive.
        """
        for slot in [*self.slots, *self._retiring, *self._spares]:
            for worker in slot.workers:
                if worker.id == worker_id and not worker.ended.is_set():
                    worker.kill()
                    return
        raise _no_such_worker(worker_id)

    # ---- slots -----------------------------------------------------------------------------------

    def check_open(self) -> None:
        if self._ledger.closed is not None:
            raise PoolClosed(self._ledger.closed.message, details={"pool": self.name})

    def _add_slot(self, places: list[Slot]) -> Slot:
        if places is self._spares:
            index = -1
        else:
            used = {slot.index for slot in [*self.slots, *self._retiring]}
            index = next(index for index in itertools.count() if index not in used)
        slot = Slot(
            index,
            settings=self.config,
            host=self,
            surge=self._surge,
            starting=self._parts.starting,
            rng=self._rng,
        )
        places.append(slot)
        assert self._nursery is not None
        self._nursery.start_soon(slot.run)
        return slot

    @protected
    async def _retire(self, slot: Slot) -> None:
        await slot.retire(0.0 if self._ledger.closed is not None else self.config.stop_grace)
        if slot in self._retiring:
            self._retiring.remove(slot)

    def _tried(self, slot: Slot) -> bool:
        worker = slot.current
        return worker is not None and (worker.ready.is_set() or worker.ended.is_set())

    def _startup_error(self) -> WorkerStartupError:
        for slot in self.slots:
            exit = slot.current.exit if slot.current is not None and slot.current.exit is not None else slot.last_exit
            if exit is not None and not exit.expected:
                return WorkerStartupError(
                    f"pool {self.name!r}: no worker could start: {exit.message}",
                    details={**exit.details(), "pool": self.name, "reason": exit.message, "exit": exit.reason},
                )
        return WorkerStartupError(
            f"pool {self.name!r}: no worker is ready", details={"pool": self.name, "reason": "not ready"}
        )

    # ---- what workers tell: the interface WorkerHost -------------------------------------------------

    def worker_state(self, worker: Worker, old: WorkerState, new: WorkerState) -> None:
        if old is WorkerState.STARTING and new is WorkerState.READY:
            self._events.emit("worker.ready", {"startup": time.time() - worker.started_at}, **self._who(worker))
        elif not {old, new} <= {WorkerState.READY, WorkerState.BUSY}:
            self._events.emit(f"worker.{new.value}", None, **self._who(worker))
        if old is WorkerState.STARTING and new is WorkerState.READY:
            self.encoding = worker.encoding
            for tool in worker.tools:
                known = self.tools.get(tool.name)
                if known is None or known.parameters_schema != tool.parameters_schema:
                    self.checks[tool.name] = compile_check(tool.name, tool.parameters_schema)
                self.tools[tool.name] = tool
            if worker.slot >= 0:
                self._admit(worker)
        elif new is WorkerState.DRAINING or new.over:
            seats_now = self._seats.get(worker)
            if seats_now is not None:
                self._ledger.retire(seats_now, anyio.current_time())
                self._parts.waits.check()
            server = self._servers.get(worker)
            if new.over and server is not None:
                server.close()

    def _admit(self, worker: Worker) -> None:
        """A worker takes calls from now on."""
        # Fairness among sessions is for the queue to see to, so nothing may leave it early then.
        may_hold = worker.threads == 1 and "prefetch" in worker.capabilities and not self.config.fair
        seats = Seats(None, worker.threads, self.config.prefetch if may_hold else 0)  # type: ignore[arg-type]
        seats.port = _WorkerPort(worker, self._servers, self._now)
        self._seats[worker] = seats
        self._ledger.open(seats, anyio.current_time())

    def worker_tainted(self, worker: Worker, reason: str) -> None:
        seats = self._seats.get(worker)
        if seats is not None:
            self._ledger.cordon(seats)
            self._parts.waits.check()
        self._events.emit("worker.tainted", None, reason=reason, **self._who(worker))
        if reason != "cancel_grace":
            self._replace_soon(worker, reason)

    def worker_missed(self, worker: Worker, silence: float) -> None:
        self._events.emit("worker.heartbeat_missed", {"silence": silence}, **self._who(worker))

    def worker_reply(self, worker: Worker, reply: Reply) -> None:
        error = None if reply.error is None else failures.from_info(reply.error, redact=self._parts.redact)
        now = self._now()
        try:
            request = self._ledger.replied(self._seats[worker], reply.id, now, result=reply.payload, error=error)
        except UnexpectedReply as exc:
            raise ValueError(str(exc)) from None
        if worker in self._servers and request is not None:
            self._servers[worker].cancel_for(request)

    def worker_returned(self, worker: Worker, call_id: int) -> None:
        try:
            self._ledger.returned(self._seats[worker], call_id, anyio.current_time())
        except UnexpectedReply as exc:
            raise ValueError(str(exc)) from None

    def worker_chunk(self, worker: Worker, chunk: Chunk) -> None:
        seats = self._seats[worker]
        request = seats.running.get(chunk.id)
        if request is not None and request.chunk is not None:
            request.chunk(chunk.payload)
        elif chunk.id not in seats.leaving:
            raise ValueError(f"a chunk of call {chunk.id}, which is not a stream under way")

    def worker_host_call(self, worker: Worker, call: HostCall | HostCancel) -> None:
        server = self._servers.get(worker)
        if server is None:
            assert self._nursery is not None
            server = self._servers[worker] = HostToolServer(
                worker,
                registries=self._parts.registries,
                threads=self._parts.host_threads,
                start=self._nursery.start_soon,
                limit=self.config.max_payload,
                redact=self._parts.redact,
                prefix=self.request_prefix,
            )
        if isinstance(call, HostCancel):
            server.cancel(call.id)
        else:
            server.begin(call, self._seats[worker].running.get(call.call_id))

    def worker_emit(self, worker: Worker, emit: Emit) -> None:
        if not self._events.active:
            return
        try:
            measurements, metadata = codec.decode(emit.payload, what="event", limit=EVENT_LIMIT)
            fields = {**metadata, **self._who(worker), "request_id": f"{self.request_prefix}{emit.call_id}"}
            self._events.tell(emit.name, dict(measurements), fields)
        except (SnakepitError, TypeError, ValueError) as exc:
            _log.warning("worker %s emitted an event that is refused: %s", worker.id, exc, extra=self._who(worker))

    def worker_due(self, worker: Worker, reason: str) -> None:
        self._replace_soon(worker, reason)

    def worker_gone(self, worker: Worker, exit: Exit) -> None:
        self._servers.pop(worker, None)
        seats = self._seats.pop(worker, None)
        if seats is not None:
            error: WorkerCrashed | PoolClosed
            if self._ledger.closed is not None:
                error = PoolClosed(f"pool {self.name!r} is closed", details={"pool": self.name})
            else:
                error = WorkerCrashed(
                    f"the worker {exit.message}", details={"worker_id": worker.id, "pool": self.name, **exit.details()}
                )
            self._ledger.gone(seats, error, anyio.current_time(), unbegun=worker.unbegun)
            self._parts.waits.check()
        if self._ledger.closed is not None and worker.was_killed:
            self.killed.append(worker.id)
        self._events.emit(
            "worker.gone",
            {"uptime": time.time() - worker.started_at, "requests": worker.served},
            reason=exit.reason,
            expected=exit.expected,
            **self._who(worker),
        )
        level = logging.INFO if exit.expected else logging.WARNING
        _log.log(level, "worker %s of pool %s %s", worker.id, self.name, exit.message, extra=self._who(worker))

    def _who(self, worker: Worker) -> dict[str, Any]:
        return {"worker_id": worker.id, "pool": self.name, "pid": worker.pid, "slot": worker.slot}

    # ---- what slots tell: the interface SlotHost -----------------------------------------------------

    def make_worker(self, slot: int, incarnation: int) -> Worker:
        config, parts = self.config, self._parts
        device = self._devices[slot % len(self._devices)] if self._devices else None
        worker = Worker(
            WorkerSpec(
                worker_id=secrets.token_hex(6),
                run_id=parts.run_id,
                pool=self.name,
                adapter=config.adapter or "",
                token=parts.token,
                socket_dir=None if config.transport == "tcp" else parts.socket_dir,
                threads=config.threads,
                worker_backend=config.worker_backend,
                host_backend=parts.backend,
                max_payload=config.max_payload,
                shm_limit=self._shm_of_worker,
                unserializable=config.unserializable,
                python=config.python,
                env=dict(config.env or {}),
                own_env={} if device is None else visibility(device),
                cwd=config.cwd,
                device=device,
            ),
            settings=config,
            launcher=parts.launcher,
            wire=parts.wire,
            host=self,
            slot=slot,
            incarnation=incarnation,
            request_prefix=self.request_prefix,
            redact=parts.redact,
            shm=self._shm,
        )
        self._events.emit("worker.starting", None, **self._who(worker))
        return worker

    def take_spare(self, slot: int, incarnation: int) -> Worker | None:
        if slot < 0:
            return None
        for place in self._spares:
            worker = place.give()
            if worker is not None:
                worker.slot, worker.incarnation = slot, incarnation
                self._admit(worker)
                return worker
        return None

    def slot_restarted(self, slot: Slot) -> None:
        self.restarts += 1
        self._events.emit("slot.restarted", None, pool=self.name, slot=slot.index, reason=slot.reason)

    def slot_settled(self, slot: Slot) -> None:
        self._settled.set()
        self._parts.waits.check()
        if slot.failed != (slot in self._failed):
            self._note_failure(slot)
        if slot.failed and not self._opening and all(other.failed for other in self.slots):
            self._fail(self._startup_error())

    def _note_failure(self, slot: Slot) -> None:
        if slot.failed:
            self._failed.add(slot)
            wait = (slot.next_attempt or 0.0) - anyio.current_time()
            self._events.emit(
                "slot.failed", {"next_attempt": wait}, pool=self.name, slot=slot.index, reason=slot.reason
            )
        else:
            self._failed.discard(slot)
            self._events.emit("slot.recovered", None, pool=self.name, slot=slot.index)

    def _fail(self, error: WorkerStartupError) -> None:
        """No worker can serve."""
        self._ledger.fail_all(error, anyio.current_time())
        self._events.emit("pool.failed", None, pool=self.name, reason=error.message)

    def _replace_soon(self, worker: Worker, reason: str) -> None:
        for slot in [*self.slots, *self._spares]:
            if slot.current is worker and slot not in self._replacing and self._nursery is not None:
                self._replacing.add(slot)
                self._recycles(worker, reason)
                self._nursery.start_soon(self._replace, slot, reason)

    def _recycles(self, worker: Worker, reason: str) -> None:
        self._events.emit("worker.recycled", None, reason=reason, **self._who(worker))

    @protected
    async def _replace(self, slot: Slot, reason: str) -> None:
        try:
            await slot.replace(reason)
        finally:
            self._replacing.discard(slot)


def _no_such_worker(worker_id: str) -> InvalidParameter:
    return InvalidParameter(f"there is no worker {worker_id!r} that takes calls", details={"path": "worker_id"})


def _info(slot: Slot, worker: Worker, seats: Seats | None) -> WorkerInfo:
    failed = slot.failed and worker is slot.current
    spare = worker.slot < 0 and worker.state is WorkerState.READY
    return WorkerInfo(
        id=worker.id,
        slot=worker.slot,
        incarnation=worker.incarnation,
        pool=worker.pool,
        pid=worker.pid,
        address=worker.address,
        state="failed" if failed else "spare" if spare else worker.state.value,
        started_at=worker.started_at,
        requests=worker.served,
        # What stands in its line is still queued.
        in_flight=worker.in_flight if seats is None else seats.load,
        rss=worker.rss,
        last_heartbeat=worker.last_heartbeat,
        tainted=worker.tainted,
        device=worker.spec.device,
        next_attempt=slot.next_attempt if worker.ended.is_set() and worker is slot.current else None,
        reason=slot.reason if failed else (worker.exit.message if worker.exit is not None else ""),
    )

"""A pool of workers, as its users see it.

The pool joins three independent parts: the scheduler decides where each request goes, the slots keep workers alive, and
the workers transport calls. A request runs in its caller's task. The pool's own tasks, all in its nursery, are one task
per slot and the deadline task, which ends overdue requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.lowlevel
import attrs

from snakepit_trio._bell import Bell
from snakepit_trio._bulkhead import operation
from snakepit_trio._call_options import UNSET, Unset, check_metadata
from snakepit_trio._waiting import event_loop
from snakepit_trio.errors import PoolClosed
from snakepit_trio.policies.guard import Guard

from .calls.execute import Calls
from .calls.interface import Calling
from .calls.session import OnLost, Session, open_session
from .calls.submission import Submission
from .deadline_task import DeadlineTask
from .fleet.operations import Operations
from .fleet.scaling import Autoscaler
from .fleet.supervisor import ScaledFleet, Supervisor
from .observer import NestedRequests, RequestObserver
from .scheduling.expiry import CancelSet
from .scheduling.queue import RequestQueue
from .scheduling.request import Seats
from .scheduling.scheduler import Scheduler
from .services import PoolServices
from .stats import PoolStats, WorkerInfo, snapshot

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.runtime import Runtime

__all__ = ["Pool"]


class Pool(Calling, Operations):
    """A pool of worker processes. Created by :func:`snakepit_trio.open_pool` or :func:`snakepit_trio.open_runtime`.

    Attributes:
        name: The pool's name in the runtime.
        config: The pool's configuration.
    """

    def __init__(self, config: PoolConfig, services: PoolServices, runtime: Runtime) -> None:
        self.config = config
        self.name: str = config.name
        self._runtime = runtime
        self._services = services
        self._events = services.events
        self._errors = services.errors
        self._deadline_task = DeadlineTask(services.errors, config.name)
        self._scheduler = Scheduler(
            queue=RequestQueue(max_queue=config.max_queue, aging=config.aging, fair=config.fair),
            cancel_set=CancelSet(config.cancel_set_size, config.cancel_set_ttl),
            poison_limit=config.poison_limit,
            errors=services.errors,
            pool=config.name,
            reject_hopeless=config.reject_hopeless,
            on_due=self._deadline_task.note_due,
        )
        # For the library's other rooms, as `calls` and `watch` are.
        self.supervisor: Supervisor = Supervisor(config, services, self._scheduler)
        self._dispatch = self.supervisor.dispatch
        self._guard = Guard.of(config, services.events, services.waits)
        self._scaled: ScaledFleet | None = None
        if config.max_size is not None:
            autoscaler = Autoscaler(
                minimum=config.size if config.min_size is None else config.min_size,
                maximum=config.max_size,
                threads=config.threads,
                target_wait=config.target_wait,
                down_after=config.scale_down_after,
            )
            self._scaled = ScaledFleet(self.supervisor, autoscaler, self._tied_seats)
        self.watch: RequestObserver = RequestObserver(
            config.name,
            f"{services.run_id}-",
            services.events,
            runtime.config.recorder_size if runtime is not None else 0,
            services.timings,
            self._scheduler.ledger,
            NestedRequests(config, services.waits, self._scheduler, self.supervisor),
            self._scaled,
        )
        self._scheduler.ledger.observer = self.watch
        loop = event_loop(services.backend)
        submission = Submission(config, services, self._dispatch, loop)
        self.calls: Calls = Calls(
            config, submission, self._scheduler, self.supervisor, self._guard, loop, services.errors
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

    # ---- the pool itself ---------------------------------------------------------------------------

    @operation
    def stats(self) -> PoolStats:
        """Return a consistent snapshot of the pool's counters."""
        return PoolStats(
            size=self.supervisor.size,
            ready=self._dispatch.ready,
            busy=self._dispatch.busy,
            cordoned=self._dispatch.cordoned,
            restarts=self.supervisor.restarts,
            **attrs.asdict(self._scheduler.ledger.totals(), recurse=False),
        )

    @operation
    def workers(self) -> tuple[WorkerInfo, ...]:
        """Return the pool's workers, by slot; a slot that has failed, or pauses before its next attempt, shows its last
        worker.
        """
        return self.supervisor.infos()

    @operation
    def session(
        self,
        id: str | None = None,
        *,
        affinity: str | None = None,
        ttl: float | Unset | None = UNSET,
        metadata: Mapping[str, str] | None = None,
        on_lost: OnLost = "error",
        detach: bool = False,
    ) -> AbstractAsyncContextManager[Session]:
        """Open a session, or resume the session of this id; the block receives a :class:`~snakepit_trio.Session`.

        Leaving the block, also by a cancellation, cancels the session's running calls. When its last block is left, the
        session is closed and its values, programs and tools are deleted. With ``detach`` it stays in the store until
        its TTL passes, and can be resumed by its id.

        Args:
            id: Printable text of up to 256 bytes; None: a new id.
            affinity: ``"hint"``: calls go to the session's worker if it is free, else to any other. ``"strict_queue"``:
                calls go only to the session's worker and wait while it is busy. ``"strict_fail_fast"``: calls go only
                to the session's worker and raise ``WorkerBusy`` while it is busy. None: the pool's ``affinity``. The
                session's worker is the one that gets its first call.
            ttl: Seconds without use after which the session expires; None: never. By default the runtime's
                ``session_ttl``. An existing session keeps its TTL. A running call counts as use.
            metadata: Strings about the session.
            on_lost: What happens when the worker of a strict session ends. ``"error"``: its calls raise
                ``SessionWorkerUnavailable`` from then on. ``"rebind"``: the next call is bound to another worker. A
                function, sync or async: as ``"rebind"``, but the function is called with the session first, to rebuild
                the lost state in the new worker.
            detach: Keep the session in the store when the block is left.

        Raises:
            QuotaExceeded: There are already ``max_sessions`` sessions.
            InvalidParameter: An argument is invalid.
            PoolClosed: The pool is closing or closed.
        """
        if metadata:
            check_metadata(metadata)
        self.supervisor.check_open()
        config = self._runtime.config
        opened = open_session(
            self,
            self._runtime.sessions,
            id,
            affinity=self.config.affinity if affinity is None else affinity,
            ttl=config.session_ttl if isinstance(ttl, Unset) else ttl,
            metadata=metadata or {},
            on_lost=on_lost,
            detach=detach,
        )
        return self._errors.block(opened, "session")

    @operation
    def circuits(self) -> Mapping[str, str]:
        """Return the state of each circuit, ``"closed"``, ``"open"`` or ``"half_open"``, by tool; ``"*"`` is the whole
        pool's.
        """
        return {} if self._guard is None else self._guard.circuits()

    @operation
    def snapshot(self) -> dict[str, Any]:
        """Return the state of the pool as plain values: counters, workers, slots, requests. The values may contain
        secrets.
        """
        found = snapshot(self.stats(), self.supervisor, self._scheduler, self.watch, anyio.current_time())
        return {**found, "circuits": self.circuits()}

    # ---- opening and closing, for the runtime ------------------------------------------------------

    async def open(self, nursery: anyio.abc.TaskGroup) -> None:
        """Start the pool's tasks and wait until every slot has made its first attempt.

        Raises:
            WorkerStartupError: No slot has a worker.
        """
        await nursery.start(self._deadline_task.run, self._scheduler)
        await self.supervisor.open(nursery)
        if self._scaled is not None:
            self._services.errors.keep(nursery, self._scaled.run, pool=self.name)

    async def aclose(self, *, drain: bool) -> None:
        """Refuse new requests, wait up to ``stop_grace`` seconds for running ones (with ``drain``), and stop the workers."""
        error = PoolClosed(f"pool {self.name!r} is closed", details={"pool": self.name})
        found = {"in_flight": self._scheduler.ledger.in_flight, "queued": self._scheduler.ledger.queued}
        self._events.emit("pool.closing", found, pool=self.name)
        self.calls.close(error)
        if drain:
            idle = Bell()
            self._scheduler.ledger.on_idle = idle.ring
            with anyio.move_on_after(self.config.stop_grace):
                while self._scheduler.ledger.in_flight:
                    await idle.wait()
        self._scheduler.abort(error, anyio.current_time())
        await self.supervisor.stop()
        self._events.emit("pool.closed", None, pool=self.name)

    def forked(self) -> None:
        """Mark the pool as closed in a fork of the process that opened it; the fork has no workers."""
        error = PoolClosed(
            f"pool {self.name!r} belongs to the process that this one is a fork of", details={"pool": self.name}
        )
        self._scheduler.refuse(error)

    def kill(self) -> None:
        """Kill every worker at once. The pool must be closing, or it starts new workers."""
        self.supervisor.kill()

    @property
    def closed(self) -> bool:
        """Whether the pool is closing or closed."""
        return self._scheduler.ledger.closed is not None

    @property
    def killed(self) -> list[str]:
        """The ids of the workers that were killed while the pool was closing."""
        return self._dispatch.killed

    # ---- requests ----------------------------------------------------------------------------------

    def _tied_seats(self) -> frozenset[Seats]:
        """Return the seats of the workers to which strict sessions are bound."""
        bindings = self._services.bindings(self.name)
        return frozenset(binding.seats for binding in bindings if binding.strict and binding.seats is not None)

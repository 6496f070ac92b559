"""A pool of workers, as its users see it.

The pool joins three parts, each of which knows nothing of the others: the scheduler decides which request goes where, the
slots keep workers alive, and the workers carry frames. A request runs in its caller's task; the pool's own tasks, all
of them in its nursery, are one per slot and one clock that ends what is overdue.
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
from .fleet.scaling import Autoscaler, ScaledFleet
from .fleet.supervisor import Supervisor
from .observer import RequestObserver
from .scheduling.expiry import CancelSet
from .scheduling.nested import NestedRequests
from .scheduling.queue import RequestQueue
from .scheduling.request import Seats
from .scheduling.scheduler import Scheduler
from .services import PoolServices
from .snapshot import snapshot
from .stats import PoolStats, WorkerInfo

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.runtime import Runtime

__all__ = ["Pool"]


class Pool(Calling, Operations):
    """A pool of worker processes. Made by :func:`snakepit_trio.open_pool` or :func:`snakepit_trio.open_runtime`.

    Attributes:
        name: Its name in the runtime.
        config: Its configuration.
    """

    def __init__(self, config: PoolConfig, services: PoolServices, runtime: Runtime) -> None:
        self.config = config
        self.name: str = config.name
        self._runtime = runtime
        self._services = services
        self._events = services.events
        self._errors = services.errors
        self._loop = event_loop(services.backend)
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
        self._supervisor = Supervisor(config, services, self._scheduler)
        self._dispatch = self._supervisor.dispatch
        self.watch: RequestObserver = RequestObserver(
            config.name,
            f"{services.run_id}-",
            services.events,
            runtime.config.recorder_size if runtime is not None else 0,
            services.timings,
            self._scheduler.ledger,
            NestedRequests(config, services.waits, self._scheduler, self._supervisor),
        )
        self._scheduler.ledger.observer = self.watch
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
            self._scaled = ScaledFleet(self._supervisor, autoscaler, self._tied_seats)
        self._submission = Submission(
            config,
            services,
            self._dispatch,
            self._scheduler,
            self._loop,
            on_queued=_nobody if self._scaled is None else self._scaled.poke,
        )
        self._calls = Calls(
            config, self._submission, self._scheduler, self._supervisor, self._guard, self._loop, services.errors
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
        """A consistent picture of the pool's counters."""
        return PoolStats(
            size=self._supervisor.size,
            ready=self._dispatch.ready,
            busy=self._dispatch.busy,
            restarts=self._supervisor.restarts,
            **attrs.asdict(self._scheduler.ledger.totals(), recurse=False),
        )

    @operation
    def workers(self) -> tuple[WorkerInfo, ...]:
        """The pool's workers, by slot; a slot that has failed or waits for its next attempt shows its last one."""
        return self._supervisor.infos()

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
        """Open a session, or resume the one of this id; the block gets a :class:`~snakepit_trio.Session`.

        Leaving the block cancels what still runs of it. The last block of a session to be left closes it and frees what it
        has; with ``detach`` it stays in the store, until its TTL, to be resumed by its id.

        Args:
            id: Printable text of up to 256 bytes; None: a new one.
            affinity: ``"hint"``: its worker if that is free, any other if not. ``"strict_queue"``: its worker only; calls
                wait for it. ``"strict_fail_fast"``: its worker only; ``WorkerBusy`` when that is busy. None: the pool's.
                The worker is the one that gets the first call.
            ttl: Seconds without use after which it is gone; None: it stays. By default the runtime's ``session_ttl``. An
                existing session keeps its own. A running call is a use.
            metadata: Text that says more about it.
            on_lost: When its worker has died, and the affinity is strict: ``"error"``: its calls raise
                ``SessionWorkerUnavailable`` from now on; ``"rebind"``: the next call begins anew with another worker; a
                function, async or not: it is called with the session before that call, to rebuild in the new worker what was
                lost.
            detach: Leave it in the store.

        Raises:
            QuotaExceeded: There are ``max_sessions`` already.
            InvalidParameter: An argument is refused.
            PoolClosed: The pool is closing or closed.
        """
        if metadata:
            check_metadata(metadata)
        self._supervisor.check_open()
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
        """The state of each circuit, ``"closed"``, ``"open"`` or ``"half_open"``, by tool; ``"*"`` is the whole pool's."""
        return {} if self._guard is None else self._guard.circuits()

    @operation
    def snapshot(self) -> dict[str, Any]:
        """How everything in the pool stands, in plain values: counters, workers, slots, requests. May hold secrets."""
        found = snapshot(self.stats(), self._supervisor, self._scheduler, self.watch, anyio.current_time())
        return {**found, "circuits": self.circuits()}

    # ---- opening and closing, for the runtime ------------------------------------------------------

    async def open(self, nursery: anyio.abc.TaskGroup) -> None:
        """Start the pool's tasks and wait until every slot has made its first attempt.

        Raises:
            WorkerStartupError: None of them has got a worker.
        """
        await nursery.start(self._deadline_task.run, self._scheduler)
        await self._supervisor.open(nursery)
        if self._scaled is not None:
            self._services.errors.keep(nursery, self._scaled.run, pool=self.name)

    async def aclose(self, *, drain: bool) -> None:
        """Take nothing more, let what runs end within ``stop_grace`` (when draining), stop the workers."""
        error = PoolClosed(f"pool {self.name!r} is closed", details={"pool": self.name})
        found = {"in_flight": self._scheduler.ledger.in_flight, "queued": self._scheduler.ledger.queued}
        self._events.emit("pool.closing", found, pool=self.name)
        self._calls.close(error)
        if drain:
            idle = Bell()
            self._scheduler.ledger.on_idle = idle.ring
            with anyio.move_on_after(self.config.stop_grace):
                while self._scheduler.ledger.in_flight:
                    await idle.wait()
        self._scheduler.abort(error, anyio.current_time())
        await self._supervisor.stop()
        self._events.emit("pool.closed", None, pool=self.name)

    def forked(self) -> None:
        """This process is a fork of the one that has opened the pool, and has none of its workers."""
        error = PoolClosed(
            f"pool {self.name!r} belongs to the process that this one is a fork of", details={"pool": self.name}
        )
        self._scheduler.refuse(error)

    def kill(self) -> None:
        """End every worker at once. The pool is closing already, or starts others."""
        self._supervisor.kill()

    @property
    def closed(self) -> bool:
        """Whether it is closing or closed."""
        return self._scheduler.ledger.closed is not None

    @property
    def killed(self) -> list[str]:
        """Ids of the workers that had to be killed while the pool was closing."""
        return self._dispatch.killed

    # ---- requests ----------------------------------------------------------------------------------

    def _tied_seats(self) -> frozenset[Seats]:
        """The workers that strict sessions are tied to."""
        bindings = self._services.bindings(self.name)
        return frozenset(binding.seats for binding in bindings if binding.strict and binding.seats is not None)


def _nobody() -> None:
    """Hears of queued requests where their number changes nothing."""

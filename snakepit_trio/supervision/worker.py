"""One worker incarnation as the host sees it: its life, and its end.

One nursery holds all its tasks: the connection, the exit watcher, the log pumps, the link with its heartbeat, the
health check, the watch over cancelled calls. :mod:`snakepit_trio.supervision.resources` holds its process and
connection, and the link (:mod:`snakepit_trio.supervision.link`) transports its calls. The first cause that ends it
calls :meth:`Worker._end`; from then on it accepts no calls. Its exit is classified, its host informed, and its process
and descriptors are released before :meth:`Worker.run` returns, also when it is cancelled.
"""

from __future__ import annotations

import functools
import logging
import math
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

from snakepit_trio._bell import Bell
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import protected
from snakepit_trio._timeouts import as_given, seconds
from snakepit_trio.errors import SnakepitError, WorkerStartupError
from snakepit_trio.observe.printable import one_line
from snakepit_trio.wire.connection import RpcFailure
from snakepit_trio.wire.frames import (
    JSON,
    MSGPACK,
    NOT_BEGUN,
    Call,
    Chunk,
    Emit,
    FrameError,
    HostCall,
    HostCancel,
    HostReply,
    Reply,
)

from .exits import Exit, classify, explain
from .grace import Grace
from .health import unhealthy
from .host import WorkerHost
from .states import TRANSITIONS, WorkerState

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.launch.base import ExitStatus, WorkerSpec
    from snakepit_trio.wire.handshake_messages import ToolSpec

    from .link import Link
    from .resources import Resources

__all__ = ["Worker"]

_log = logging.getLogger(__name__)

_READY, _BUSY = WorkerState.READY, WorkerState.BUSY

#: The share of ``max_age`` by which a worker may be replaced earlier.
_AGE_JITTER = 0.2


class Worker:
    """One incarnation.

    Attributes:
        id: An opaque id, unique to this incarnation.
        slot: Its place in the pool.
        incarnation: The number of workers that the slot has had, including this one.
        state: See :class:`~snakepit_trio.supervision.states.WorkerState`.
        tools: The tools that it offers, in the order of ``Call.tool_index``, which counts from 1.
        threads: The number of calls that it runs at once.
        ready: Set when it accepts calls.
        ready_at: The time of that, on the event loop's clock; None before.
        ended: Set when :meth:`run` is about to return.
        exit: How it ended; None before.
        renews: Whether it may have another version than the pool's other workers.
        due: The reason for its replacement; None if it is not due.
        killed_on_demand: Whether it was killed on demand.
        unbegun: After its end: the held calls that it had not begun.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        settings: PoolConfig,
        resources: Resources,
        host: WorkerHost,
        errors: InternalErrors,
        slot: int,
        incarnation: int,
    ) -> None:
        self.spec = spec
        self.id: str = spec.worker_id
        self.pool: str = spec.pool
        self.slot = slot
        self.incarnation = incarnation
        self.started_at: float = time.time()
        self.state: WorkerState = WorkerState.STARTING
        self.tools: list[ToolSpec] = []
        self.capabilities: frozenset[str] = frozenset()
        self.threads: int = spec.threads
        self.rss: int = 0
        self.lag: float = 0.0
        self.served: int = 0
        self.last_heartbeat: float | None = None
        self.tainted: bool = False
        self.ready: anyio.Event = anyio.Event()
        self.ready_at: float | None = None
        self.ended: anyio.Event = anyio.Event()
        self.exit: Exit | None = None
        self.renews = False
        self.due: str | None = None
        self.killed_on_demand: bool = False
        self.unbegun: frozenset[int] = frozenset()
        self._settings = settings
        self._resources = resources
        self._host = host
        self._errors = errors
        self._link: Link | None = None
        #: The times of the last answered and of the last missed heartbeat, on the event loop's clock.
        self._alive_at = self._missed_at = -math.inf
        self._cause: tuple[str, str] | None = None
        self._startup_failure: SnakepitError | None = None
        self._stopping = False
        self._leaving = False
        self._over = anyio.Event()
        #: The calls that it holds, in the order in which they were sent; the first ``threads`` may be running.
        self._held: dict[int, None] = {}
        self._emptied = Bell()
        self._grace = Grace(self._held, self._emptied)

    def __repr__(self) -> str:
        where = f"{self.pool}/{self.slot}.{self.incarnation}"
        return f"<Worker {self.id} {where} {self.state.value} pid={self.pid} held={len(self._held)}>"

    @property
    def pid(self) -> int | None:
        """Its process id; None before there is one."""
        return self._resources.pid

    @property
    def address(self) -> str:
        """The address on which it listens; ``""`` before it has reported that."""
        return self._resources.address

    @property
    def encoding(self) -> int:
        """The preferred encoding of arguments."""
        return MSGPACK if {"exchange", "msgpack"} & self.capabilities else JSON

    @property
    def encodings(self) -> frozenset[int]:
        """The encodings of arguments that it reads."""
        return frozenset({self.encoding, *((JSON,) if "json" in self.capabilities else ())})

    @property
    def in_flight(self) -> int:
        """The number of calls that it holds, including cancelled ones that it has not confirmed."""
        return len(self._held)

    @property
    def had_begun(self) -> bool:
        """Whether it had begun any call, as far as known; valid after its end."""
        return self.served > 0 or len(self.unbegun) < len(self._held)

    # ---- what the pool sends -----------------------------------------------------------------------

    def call(self, call: Call) -> None:
        """Send a call."""
        assert self._link is not None
        self._held[call.id] = None
        try:
            self._link.call(call)
        except BaseException:
            # It was not sent, so no reply will remove it.
            self._held.pop(call.id, None)
            raise
        if self.state is _READY:
            # As often as each call, and nobody else has to hear of it; as is the way back.
            self.state = _BUSY

    def cancel(self, call_id: int) -> None:
        """Cancel a call whose caller has left. If the worker does not confirm within the grace, it is replaced, or left to
        finish the call.
        """
        if self._link is None or call_id not in self._held:
            return
        self._link.cancel(call_id)
        if self._settings.on_cancel == "kill":
            self._grace.begin(call_id, anyio.current_time() + self._settings.cancel_grace)

    def withdraw(self, call_id: int, *, recall: bool = False) -> None:
        """Take back a held call that it has probably not begun; with ``recall`` the call will run on another worker."""
        if self._link is not None and call_id in self._held:
            self._link.withdraw(call_id, recall=recall)

    def credit(self, call_id: int, chunks: int, size: int) -> None:
        """Grant a stream credit for further chunks and bytes."""
        if self._link is not None and call_id in self._held:
            self._link.credit(call_id, chunks, size)

    @property
    def unread(self) -> int:
        """The number of sent bytes that it has not read, as far as the host knows."""
        return 0 if self._link is None else self._link.unread

    def host_reply(self, reply: HostReply) -> None:
        """Answer a tool's call to the host."""
        if self._link is not None:
            self._link.host_reply(reply)

    @property
    def was_killed(self) -> bool:
        """Whether it had to be killed."""
        return self._resources.killed

    def kill(self, reason: str = "killed", message: str = "was killed on demand") -> None:
        """Kill it now."""
        self.killed_on_demand = True
        self._end(reason, message)

    def drop_connection(self) -> None:
        """Cut the connection to it, for a test; it is lost in the usual way."""
        if self._resources.connection is not None:
            self._resources.connection.close()

    def fail(self, exc: BaseException) -> None:
        """End it because of an unexpected exception, which has been reported. Calls no callbacks before its task runs."""
        if self._cause is None:
            self._cause = "internal", f"was ended by an internal error of the host ({type(exc).__name__})"
            self._over.set()

    # ---- its life ------------------------------------------------------------------------------------

    @protected
    async def run(self) -> Exit:
        """Run the worker from start to end, and return its exit; nothing of it is left by then. A cancellation kills it.

        No unexpected exception leaves this method: each ends this worker only.
        """
        try:
            await self._live_and_end()
        except (Exception, BaseExceptionGroup) as exc:
            self._unexpected(exc)
        finally:
            try:
                self._end("stopped", "was cancelled")
                self._leave_service()
            except Exception as exc:
                self._unexpected(exc)
            with anyio.CancelScope(shield=True):  # Its one wait, the process's aclose(), is bounded.
                for _ in range(2):
                    try:
                        await self._resources.aclose()
                    except Exception as exc:
                        # The remaining steps are tried again.
                        self._unexpected(exc)
                    else:
                        break
            self.bury()
        assert self.exit is not None
        return self.exit

    def bury(self) -> None:
        """Mark it as ended if nothing of it runs, or ever has, and wake the tasks that wait for its end. Idempotent."""
        if self.ended.is_set():
            return
        assert self._cause is not None
        self._leave_service()
        if self.exit is None:
            reason, message = self._cause
            self.exit = Exit(reason=reason, message=message, expected=self._stopping or reason == "stopped")
        # Its held calls have to be settled, so this is tried again.
        for _ in range(2):
            try:
                self._host.worker_gone(self, self.exit)
            except Exception as exc:
                self._unexpected(exc)
            else:
                break
        self.ended.set()

    async def _live_and_end(self) -> None:
        async with anyio.create_task_group() as nursery:
            if self._cause is None:
                self._start(nursery, self._live, nursery)
            await self._over.wait()
            assert self._cause is not None
            reason, message = self._cause
            self._leave_service()
            # The pumps run until the process has ended, because its exit includes its last output.
            status = await self._resources.end(itself=reason in ("connection_lost", "stopped"))
            self.unbegun = self._resources.unbegun(self._held)
            await self._resources.printed()
            nursery.cancel_scope.cancel()
        self.exit = explain(
            reason,
            message,
            status,
            out_of_memory=self._resources.out_of_memory,
            killed=self._resources.killed,
            stopping=self._stopping,
            stderr=str(self._resources.stderr),
            failure=self._startup_failure,
        )

    @property
    def _who(self) -> dict[str, Any]:
        return {"worker_id": self.id, "pool": self.pool}

    def _unexpected(self, exc: BaseException) -> None:
        """End this worker, and only this worker, because of an exception, perhaps in a group with a cancellation."""
        rest: BaseException | None = None
        if isinstance(exc, BaseExceptionGroup):
            unexpected, rest = exc.split(Exception)
            if unexpected is None:
                raise exc
            exc = unexpected
        self._errors.report(exc, "worker", **self._who)
        self.fail(exc)
        if rest is not None:
            raise rest

    def _start(self, nursery: anyio.abc.TaskGroup, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start one of its tasks; an unexpected exception ends this worker."""
        self._errors.start(nursery, function, *args, ended="worker", on_error=self.fail, **self._who)

    async def stop(self, grace: float) -> bool:
        """Drain, then stop: running calls have ``grace`` seconds to end; then Stop, SIGTERM, SIGKILL follow, each bounded
        in time.

        Returns whether it ended without being killed. A cancellation leaves it draining.
        """
        self._stopping = True
        if self.state in (WorkerState.READY, WorkerState.BUSY):
            self._become(WorkerState.DRAINING)
        if self._link is None or self.state is not WorkerState.DRAINING:
            self._end("stopped", "was stopped before it was ready")
            await self.ended.wait()
            return True
        with anyio.move_on_after(grace):
            while self._held and not self.state.over:
                await self._emptied.wait()
        self._link.stop()
        with anyio.move_on_after(self._settings.stop_grace):
            await self.ended.wait()
            return True
        if self._resources.process is not None:
            self._resources.process.terminate()
            with anyio.move_on_after(min(1.0, self._settings.stop_grace)):
                await self.ended.wait()
                return True
        self._end("stopped", "had to be killed")
        await self.ended.wait()
        return False

    async def drained(self) -> None:
        """Wait until it holds no calls."""
        while self._held and not self.state.over:
            await self._emptied.wait()

    @protected
    async def _live(self, nursery: anyio.abc.TaskGroup) -> None:
        settings = self._settings
        try:
            with anyio.fail_after(settings.startup_timeout):
                start = functools.partial(self._start, nursery)
                said, self._link = await self._resources.acquire(start, self, self._exited)
        except TimeoutError:
            process = self._resources.process
            why = process.waiting if process is not None else ""
            limit = settings.startup_timeout
            words = f"was not ready within {'its time' if limit is None else f'startup_timeout={as_given(limit)}'}"
            self._end("startup_timeout", f"{words}: {why}" if why else words)
            return
        except SnakepitError as exc:
            self._fail_to_start(exc)
            return
        except (RpcFailure, OSError, ValueError) as exc:
            self._end("startup", f"could not be reached: {exc}")
            return
        self.tools, self.capabilities, self.threads = said
        if self._cause is not None:
            return
        try:
            self._host.worker_introduced(self)
        except WorkerStartupError as exc:
            self._fail_to_start(exc)
            return
        self._become(WorkerState.READY)
        self.ready_at = anyio.current_time()
        self.ready.set()
        self._start(nursery, self._link.watch)
        self._start(nursery, self._watch_grace)
        if settings.max_age is not None:
            self._start(nursery, self._age, settings.max_age)
        if settings.health_interval is not None and "health" in self.capabilities:
            self._start(nursery, self._health, settings.health_interval)
        if self._leaving:
            self.link_leaving()

    # ---- its tasks -----------------------------------------------------------------------------------

    @protected
    async def _age(self, limit: float) -> None:
        # Workers that were started together must not all be replaced at once.
        await anyio.sleep(limit * random.uniform(1 - _AGE_JITTER, 1))
        self._become_due("max_age")

    @protected
    async def _watch_grace(self) -> None:
        """End the worker when a cancelled call does not stop in time and no other caller's call runs in it."""
        while True:
            await self._grace.overdue()
            self.tainted = True
            self._host.worker_tainted(self, "cancel_grace")
            stuck = functools.partial(self._host.worker_stuck, self)
            if not await self._grace.stopped(self.threads, stuck):
                self._end("cancel_grace", "did not stop a cancelled call in time")
                return
            # The call stopped in the end, but the worker has already been excluded from new calls.
            self._become_due("cancel_grace")

    @protected
    async def _health(self, interval: float) -> None:
        assert self._resources.connection is not None

        def excused(asked: float) -> bool:
            # Heartbeats, which check its progress, decide about a call that blocks all answers.
            return bool(self._held) and (self._alive_at < asked or self._missed_at >= asked)

        words = await unhealthy(self._resources.connection, interval, excused)
        # A worker that is ending reports that, and is not unhealthy.
        if not (self.tainted or self._stopping or self._leaving):
            _log.warning("worker %s %s", self.id, one_line(words), extra={"worker_id": self.id, "pool": self.pool})
            self.tainted = True
            self.due = "unhealthy"
            self._host.worker_tainted(self, "unhealthy")

    # ---- what its link tells: the interface LinkOwner ------------------------------------------------

    def link_reply(self, reply: Reply) -> None:
        if reply.id not in self._held:
            raise FrameError(f"a reply to call {reply.id}, which it does not hold")
        del self._held[reply.id]
        self._grace.due.pop(reply.id, None)
        if not reply.undone:
            self.served += 1
            self._host.worker_reply(self, reply)
        elif reply.undone == NOT_BEGUN:
            self._host.worker_returned(self, reply.id)
        else:
            self._host.worker_stopped_call(self, reply.id)
        limit = self._settings.max_requests
        if limit is not None and self.served >= limit:
            self._become_due("max_requests")
        if not self._held and self.state is _BUSY:
            self.state = _READY
        if self._emptied.awaited:
            self._emptied.ring()

    def link_chunk(self, chunk: Chunk) -> None:
        self._host.worker_chunk(self, chunk)

    def link_host_call(self, call: HostCall | HostCancel) -> None:
        self._host.worker_host_call(self, call)

    def link_emit(self, emit: Emit) -> None:
        self._host.worker_emit(self, emit)

    def link_leaving(self) -> None:
        self._leaving = True
        if self.state in (_READY, _BUSY):
            self._become(WorkerState.DRAINING)
            self._become_due("leaving")

    def link_alive(self, rss: int, lag: float) -> None:
        self.rss = rss
        self.lag = lag
        self.last_heartbeat = time.time()
        self._alive_at = anyio.current_time()
        limit = self._settings.max_rss
        if limit is not None and self.rss > limit:
            self._become_due("max_rss")

    def link_missed(self, silence: float) -> None:
        self._missed_at = anyio.current_time()
        self._host.worker_missed(self, silence)

    def link_silent(self, silence: float) -> None:
        words = f"gave no sign of life for {seconds(silence)}"
        settings = self._settings
        limits = (
            f"heartbeat_interval={as_given(settings.heartbeat_interval)}, heartbeat_misses={settings.heartbeat_misses}"
        )
        if self._held:
            words += (
                f", no answer to a heartbeat and no CPU time used under a call ({limits}, heartbeat_while_busy=True)"
            )
        else:
            words += f" ({limits})"
        self._end("heartbeat", words)

    def link_broken(self, message: str) -> None:
        self._end("protocol", f"broke the protocol: {message}")

    def link_failed(self, exc: Exception) -> None:
        self._errors.report(exc, "worker", **self._who)
        self.fail(exc)

    def link_lost(self, message: str) -> None:
        if self._stopping:
            self._end("stopped", "closed its connection")
        else:
            self._end("connection_lost", f"lost its connection: {message}")

    # ---- its end -------------------------------------------------------------------------------------

    def _become_due(self, reason: str) -> None:
        """Mark it for replacement, in whichever slot it serves."""
        self.due = self.due or reason
        self._host.worker_due(self, reason)

    def _become(self, state: WorkerState) -> None:
        old = self.state
        if state is old:
            return
        assert state in TRANSITIONS[old], f"{old} to {state}"
        self.state = state
        self._host.worker_state(self, old, state)

    def _end(self, reason: str, message: str) -> None:
        """Record the first cause of its end. From here on it accepts no calls."""
        if self._cause is not None:
            return
        self._cause = reason, message
        self._over.set()
        self._leave_service()

    def _leave_service(self) -> None:
        """Accept no more calls, because it is ending. Idempotent."""
        assert self._cause is not None
        if not self.state.over:
            self._become(WorkerState.STOPPED if self._cause[0] == "stopped" or self._stopping else WorkerState.CRASHED)
        self._emptied.ring()

    def _fail_to_start(self, why: SnakepitError) -> None:
        self._startup_failure = why
        self._end("startup", why.message)

    def _exited(self, status: ExitStatus) -> None:
        """Handle the end of its process, expected or not."""
        reason, words, _ = classify(status, out_of_memory=self._resources.out_of_memory)
        if self._stopping and status.signal in (None, signal.SIGTERM):
            reason = "stopped"
        elif self._leaving and status.code == 0:
            words = "was asked to end by others, and did"
        self._end(reason, words)

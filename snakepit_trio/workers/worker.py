"""One worker incarnation as the host sees it: started, connected, kept alive, ended, and everything given back.

One nursery holds all that belongs to the incarnation: the connection, the exit watcher, the log pumps, the link with its
heartbeat, the health check, the watch over cancelled calls. How calls travel is the business of the link
(:mod:`snakepit_trio.workers.link`). Whatever ends first ends the incarnation, by :meth:`Worker._end`; from
that moment on it takes no calls. Its exit is then classified, its host told, and its process and descriptors are given
back before :meth:`Worker.run` returns, also when it is cancelled.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

from snakepit_trio._bell import Bell
from snakepit_trio._interrupts import protected
from snakepit_trio._timeouts import seconds
from snakepit_trio.errors import SnakepitError, WorkerStartupError
from snakepit_trio.wire.connection import Connection, RpcFailure
from snakepit_trio.wire.frames import (
    JSON,
    MSGPACK,
    RECALLED,
    Call,
    Chunk,
    Emit,
    FrameError,
    HostCall,
    HostCancel,
    HostReply,
    Reply,
)
from snakepit_trio.wire.offer import Offer

from .exchange import Exchange
from .exits import Exit, classify, explain, oom_kills
from .grace import Grace
from .handshake import shake_hands
from .health import unhealthy
from .host import WorkerHost
from .logs import Tail, pump
from .plain import PlainCalls
from .states import TRANSITIONS, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from snakepit_trio.config import PoolConfig
    from snakepit_trio.launch.base import ExitStatus, Launcher, Output, WorkerProcess, WorkerSpec
    from snakepit_trio.wire.connection import Wire
    from snakepit_trio.wire.generated.snakepit.v1 import ToolSpec
    from snakepit_trio.wire.memory import Budget

    from .link import Link

__all__ = ["Worker"]

_log = logging.getLogger(__name__)

_READY, _BUSY = WorkerState.READY, WorkerState.BUSY

#: How long a process whose connection ended may take to end by itself, so that its exit can be told, in seconds.
_LAST_BREATH = 0.25
#: The same for one on another machine.
_FAR_BREATH = 1.0
#: The part of ``max_age`` by which a worker may be replaced earlier.
_AGE_JITTER = 0.2
#: Room for the frame around a payload, in bytes.
_FRAME_OVERHEAD = 64 * 1024


class Worker:
    """One incarnation.

    Attributes:
        id: Opaque, unique to this incarnation.
        slot: Its place in the pool.
        incarnation: How many the slot has had, this one included.
        state: See :class:`~snakepit_trio.workers.states.WorkerState`.
        tools: What it offers, in the order of ``Call.tool_index``, which counts from 1.
        threads: How many calls it runs at once.
        ready: Set when it takes calls.
        ended: Set when :meth:`run` is about to return.
        exit: How it ended; None before.
        unbegun: After its end: the calls that it held and had not begun to run.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        settings: PoolConfig,
        launcher: Launcher,
        wire: Wire,
        host: WorkerHost,
        slot: int,
        incarnation: int,
        request_prefix: str,
        redact: Callable[[str], str],
        shm: Budget,
    ) -> None:
        self.spec = spec
        self.id: str = spec.worker_id
        self.pool: str = spec.pool
        self.slot = slot
        self.incarnation = incarnation
        self.started_at: float = time.time()
        self.state = WorkerState.STARTING
        self.tools: list[ToolSpec] = []
        self.capabilities: frozenset[str] = frozenset()
        self.threads = spec.threads
        self.pid = 0
        self.address = ""
        self.rss = 0
        self.lag = 0.0
        self.served = 0
        self.last_heartbeat: float | None = None
        self.tainted = False
        self.ready: anyio.Event = anyio.Event()
        self.ended: anyio.Event = anyio.Event()
        self.exit: Exit | None = None
        self.unbegun: frozenset[int] = frozenset()
        self._settings = settings
        self._launcher = launcher
        self._wire = wire
        self._host = host
        self._prefix = request_prefix
        self._redact = redact
        self._shm = shm
        self._process: WorkerProcess | None = None
        self._connection: Connection | None = None
        self._link: Link | None = None
        self._offer: Offer | None = None
        self._stderr = Tail()
        self._cause: tuple[str, str] | None = None
        self._startup_failure: SnakepitError | None = None
        self._stopping = False
        self._killed = False
        self._pumps: list[anyio.Event] = []
        self._over = anyio.Event()
        self._oom_kills = 0
        #: The calls that it holds, in the order in which they were sent; the first ``threads`` may be running.
        self._held: dict[int, None] = {}
        self._emptied = Bell()
        self._grace = Grace(self._held, self._emptied)

    def __repr__(self) -> str:
        where = f"{self.pool}/{self.slot}.{self.incarnation}"
        return f"<Worker {self.id} {where} {self.state.value} pid={self.pid} held={len(self._held)}>"

    @property
    def encoding(self) -> int:
        """How it reads arguments."""
        return MSGPACK if {"exchange", "msgpack"} & self.capabilities else JSON

    @property
    def in_flight(self) -> int:
        """Calls that the worker holds, cancelled ones that it has not confirmed included."""
        return len(self._held)

    # ---- what the pool sends -----------------------------------------------------------------------

    def call(self, call: Call) -> None:
        """Send a call."""
        assert self._link is not None
        self._held[call.id] = None
        self._link.call(call)
        if self.state is WorkerState.READY:
            self._become(WorkerState.BUSY)

    def cancel(self, call_id: int) -> None:
        """The call's caller is gone. Unless the worker confirms within the grace, it is replaced, or left alone."""
        if self._link is None or call_id not in self._held:
            return
        self._link.cancel(call_id)
        if self._settings.on_cancel == "kill":
            self._grace.begin(call_id, anyio.current_time() + self._settings.cancel_grace)

    def withdraw(self, call_id: int, *, recall: bool = False) -> None:
        """A call that it holds and has not begun, as far as is known, is not wanted any more; with ``recall`` not from it."""
        if self._link is not None and call_id in self._held:
            self._link.withdraw(call_id, recall=recall)

    def credit(self, call_id: int, chunks: int) -> None:
        """A stream's consumer has room for more."""
        if self._link is not None and call_id in self._held:
            self._link.credit(call_id, chunks)

    def host_reply(self, reply: HostReply) -> None:
        """Answer a tool's call to the host."""
        if self._link is not None:
            self._link.host_reply(reply)

    @property
    def was_killed(self) -> bool:
        """Whether it had to be killed to make it end."""
        return self._killed

    def kill(self, reason: str = "killed", message: str = "was killed on demand") -> None:
        """End it now, without ceremony."""
        self._end(reason, message)

    # ---- its life ------------------------------------------------------------------------------------

    @protected
    async def run(self) -> Exit:
        """Live from start to end. Returns how it ended; by then nothing of it is left. A cancellation kills it."""
        try:
            async with anyio.create_task_group() as nursery:
                if self._cause is None:
                    nursery.start_soon(self._live, nursery)
                await self._over.wait()
                # The pumps go on until the process is gone: its last words belong to its exit.
                status = await self._await_exit()
                if self._process is not None:
                    self.unbegun = frozenset(id for id in self._held if not self._process.begun(id))
                with anyio.move_on_after(_LAST_BREATH):
                    await self._pumped()
                nursery.cancel_scope.cancel()
            assert self._cause is not None
            self.exit = explain(
                *self._cause,
                status,
                out_of_memory=self._out_of_memory,
                killed=self._killed,
                stopping=self._stopping,
                stderr=str(self._stderr),
                failure=self._startup_failure,
            )
        finally:
            if self._cause is None:
                self._end("stopped", "was cancelled")
            with anyio.CancelScope(shield=True):
                await self._give_back()
            if self.exit is None:
                self.exit = Exit(reason="stopped", message="was cancelled", expected=True)
            self._host.worker_gone(self, self.exit)
            self.ended.set()
        return self.exit

    async def stop(self, grace: float) -> bool:
        """Drain, then stop: calls in flight may end within ``grace`` seconds; then Stop, SIGTERM, SIGKILL, each bounded.

        Returns whether it ended without having to be killed. A cancellation leaves it draining.
        """
        self._stopping = True
        if self.state in (WorkerState.READY, WorkerState.BUSY):
            self._become(WorkerState.DRAINING)
        if self._link is None or self.state is not WorkerState.DRAINING:
            self._end("stopped", "was stopped before it was ready")
            await self.ended.wait()
            return True
        with anyio.move_on_after(grace):
            while self._held:
                await self._emptied.wait()
        self._link.stop()
        with anyio.move_on_after(self._settings.stop_grace):
            await self.ended.wait()
            return True
        if self._process is not None:
            self._process.terminate()
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
                await self._start(nursery)
        except TimeoutError:
            why = self._process.waiting if self._process is not None else ""
            limit = "its time" if settings.startup_timeout is None else f"{settings.startup_timeout:g} s"
            words = f"was not ready within {limit}"
            self._end("startup_timeout", f"{words}: {why}" if why else words)
            return
        except SnakepitError as exc:
            self._startup_failure = exc
            self._end("startup", exc.message)
            return
        except (RpcFailure, OSError, ValueError) as exc:
            self._end("startup", f"could not be reached: {exc}")
            return
        if self._cause is not None:
            return
        assert self._link is not None
        self._become(WorkerState.READY)
        self.ready.set()
        nursery.start_soon(self._link.watch)
        nursery.start_soon(self._watch_grace)
        if settings.max_age is not None:
            nursery.start_soon(self._age, settings.max_age)
        if settings.health_interval is not None and "health" in self.capabilities:
            nursery.start_soon(self._health, settings.health_interval)

    async def _start(self, nursery: anyio.abc.TaskGroup) -> None:
        self._oom_kills = oom_kills()
        process = self._process = await self._launcher.start(self.spec)
        self.pid = process.pid
        fields = {"worker_id": self.id, "pool": self.pool, "pid": self.pid}
        self._pumps = [anyio.Event(), anyio.Event()]
        nursery.start_soon(self._pump, process.stdout, "stdout", Tail(), self._pumps[0], fields)
        nursery.start_soon(self._pump, process.stderr, "stderr", self._stderr, self._pumps[1], fields)
        report = await process.report()
        if report.code:
            raise WorkerStartupError(
                self._redact(report.message),
                details={
                    "remote_types": list(report.remote_types),
                    "remote_traceback": self._redact(report.remote_traceback),
                },
            )
        if not report.address:
            status = await process.wait()
            reason, words = self._classify(status)
            raise WorkerStartupError(f"{words} before it was ready", details={"reason": reason})
        nursery.start_soon(self._watch_exit, process)
        self.address = report.address
        self.pid = process.pid
        self._connection = await self._wire.connect(
            report.address,
            token=self.spec.token,
            max_message=self._settings.max_payload + _FRAME_OVERHEAD,
            tls=process.tls,
            name=self.id,
        )
        nursery.start_soon(self._serve, self._connection)
        share: Callable[[], int | None] | None = None
        if self.spec.shm_limit and self._launcher.same_machine:
            share = process.share
        elif self.spec.shm_limit:
            self._offer = Offer()
            share = self._offer.share
        said = await shake_hands(self._connection, self.spec, self._prefix, self._offer)
        if self._offer is not None and "shared_memory" not in said.capabilities:
            self._offer.close()
            share = None
        self.tools, self.capabilities, self.threads = said.tools, said.capabilities, said.threads
        if "exchange" in self.capabilities:
            self._link = Exchange(self._connection, self, self.spec, self._settings, self._shm, share)
        else:
            self._link = PlainCalls(
                self._connection,
                self,
                process,
                self._settings,
                tools=self.tools,
                capabilities=self.capabilities,
                request_prefix=self._prefix,
                redact=self._redact,
            )

    # ---- its tasks -----------------------------------------------------------------------------------

    @protected
    async def _serve(self, connection: Connection) -> None:
        await connection.serve()
        if self._link is not None:
            self._link.lost()

    @protected
    async def _pump(self, source: Output, stream: str, tail: Tail, done: anyio.Event, fields: dict[str, Any]) -> None:
        try:
            await pump(source, stream=stream, tail=tail, redact=self._redact, **fields)
        finally:
            done.set()

    async def _pumped(self) -> None:
        for done in self._pumps:
            await done.wait()

    @protected
    async def _watch_exit(self, process: WorkerProcess) -> None:
        status = await process.wait()
        reason, words = self._classify(status)
        if self._stopping and status.signal in (None, signal.SIGTERM):
            self._end("stopped", words)
        else:
            self._end(reason, words)

    @protected
    async def _age(self, limit: float) -> None:
        # Workers that were started together are not all replaced at once.
        await anyio.sleep(limit * random.uniform(1 - _AGE_JITTER, 1))
        self._host.worker_due(self, "max_age")

    @protected
    async def _watch_grace(self) -> None:
        """End the worker when a cancelled call does not stop in time and nobody else's call is in the way."""
        while True:
            await self._grace.overdue()
            self.tainted = True
            self._host.worker_tainted(self, "cancel_grace")
            if not await self._grace.stopped(self.threads):
                self._end("cancel_grace", "did not stop a cancelled call in time")
                return
            # It did stop in the end, but others were told already that it takes no more.
            self._host.worker_due(self, "cancel_grace")

    @protected
    async def _health(self, interval: float) -> None:
        assert self._connection is not None
        words = await unhealthy(self._connection, interval)
        if not self.tainted:
            _log.warning("worker %s %s", self.id, words, extra={"worker_id": self.id, "pool": self.pool})
            self.tainted = True
            self._host.worker_tainted(self, "unhealthy")

    # ---- what its link tells: the interface LinkOwner ------------------------------------------------

    def link_reply(self, reply: Reply) -> None:
        if reply.id not in self._held:
            raise FrameError(f"a reply to call {reply.id}, which it does not hold")
        del self._held[reply.id]
        self._grace.end(reply.id)
        if reply.error is not None and reply.error.code == RECALLED:
            self._host.worker_returned(self, reply.id)
        else:
            self.served += 1
            self._host.worker_reply(self, reply)
        limit = self._settings.max_requests
        if limit is not None and self.served >= limit:
            self._host.worker_due(self, "max_requests")
        if not self._held and self.state is WorkerState.BUSY:
            self._become(WorkerState.READY)
        self._emptied.ring()

    def link_chunk(self, chunk: Chunk) -> None:
        self._host.worker_chunk(self, chunk)

    def link_host_call(self, call: HostCall | HostCancel) -> None:
        self._host.worker_host_call(self, call)

    def link_emit(self, emit: Emit) -> None:
        self._host.worker_emit(self, emit)

    def link_alive(self, rss: int, lag: float) -> None:
        self.rss = rss
        self.lag = lag
        self.last_heartbeat = time.time()
        limit = self._settings.max_rss
        if limit is not None and self.rss > limit:
            self._host.worker_due(self, "max_rss")

    def link_missed(self, silence: float) -> None:
        self._host.worker_missed(self, silence)

    def link_silent(self, silence: float) -> None:
        self._end("heartbeat", f"gave no sign of life for {seconds(silence)}")

    def link_lost(self, message: str) -> None:
        if self._stopping:
            self._end("stopped", "closed its connection")
        else:
            self._end("connection_lost", f"lost its connection: {message}")

    # ---- its end -------------------------------------------------------------------------------------

    def _become(self, state: WorkerState) -> None:
        old = self.state
        if state is old:
            return
        if (old is _READY and state is _BUSY) or (old is _BUSY and state is _READY):
            # As often as each call, and nobody else has to hear of it.
            self.state = state
            return
        assert state in TRANSITIONS[old], f"{old} to {state}"
        self.state = state
        self._host.worker_state(self, old, state)

    def _end(self, reason: str, message: str) -> None:
        """The first cause of its end counts. From here on it takes no calls."""
        if self._cause is not None:
            return
        self._cause = reason, message
        self._become(WorkerState.STOPPED if reason == "stopped" or self._stopping else WorkerState.CRASHED)
        self._emptied.ring()
        self._over.set()

    def _classify(self, status: ExitStatus) -> tuple[str, str]:
        reason, words, _ = classify(status, out_of_memory=self._out_of_memory)
        return reason, words

    @property
    def _out_of_memory(self) -> bool:
        return oom_kills() > self._oom_kills

    async def _await_exit(self) -> ExitStatus | None:
        process = self._process
        if process is None:
            return None
        assert self._cause is not None
        if self._cause[0] in ("connection_lost", "stopped"):
            with anyio.move_on_after(_LAST_BREATH if self._launcher.same_machine else _FAR_BREATH):
                return await process.wait()
        self._killed = not process.ended
        process.kill()
        return await process.wait()

    async def _give_back(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._killed = self._killed or not self._process.ended
            await self._process.aclose()
        if self._link is not None:
            self._link.close()
        if self._offer is not None:
            self._offer.close()

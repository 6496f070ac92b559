"""The resources of one worker: its process and its output, the connection, and the link.

They are acquired in this order and released after any partial acquisition. Their meaning for the worker is decided
elsewhere; here only the end of the process is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio

from snakepit_trio._interrupts import protected
from snakepit_trio._platform import oom_kills
from snakepit_trio.errors import WorkerStartupError
from snakepit_trio.observe.worker_output import WorkerOutput
from snakepit_trio.wire.connection import Connection
from snakepit_trio.wire.frames import FRAME_OVERHEAD
from snakepit_trio.wire.memory_handoff import Offer

from .exchange_link import Exchange
from .exits import classify
from .handshake import Introduction, shake_hands
from .logs import Tail, pump

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.launch.base import ExitStatus, Launcher, Output, WorkerProcess, WorkerSpec
    from snakepit_trio.wire.connection import Wire
    from snakepit_trio.wire.memory import Budget

    from .link import Link, LinkOwner

__all__ = ["Resources"]

#: Seconds. The time for a process to end by itself and for its output to be read to the end.
_LAST_BREATH = 0.25
#: The same for a process on another machine.
_FAR_BREATH = 1.0


class Resources:
    """The resources of one incarnation.

    Args:
        spec: The worker's spec.
        settings: The pool's settings.
        launcher: Starts the process.
        wire: Makes the connection.
        request_prefix: The prefix of its requests' ids.
        redact: Removes secrets from its output and messages.
        shm: The shared memory for the host's sent values.

    Attributes:
        process: The process; None before there is one.
        connection: The connection; None before there is one.
        stderr: The last lines of the process's standard error.
        address: The address on which it listens; ``""`` before it has reported that.
        killed: Whether the host had to kill the process.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        settings: PoolConfig,
        *,
        launcher: Launcher,
        wire: Wire,
        request_prefix: str,
        redact: Callable[[str], str],
        shm: Budget,
    ) -> None:
        self.process: WorkerProcess | None = None
        self.connection: Connection | None = None
        self.stderr: Tail = Tail()
        self.address: str = ""
        self.killed: bool = False
        self._spec = spec
        self._settings = settings
        self._launcher = launcher
        self._wire = wire
        self._prefix = request_prefix
        self._redact = redact
        self._shm = shm
        self._link: Link | None = None
        self._offer: Offer | None = None
        self._pumps: list[anyio.Event] = []
        self._oom_kills = 0

    @property
    def pid(self) -> int | None:
        """The process id; None before there is one."""
        # A process that is not placed yet has pid 0, which the system interprets as this process's own group.
        return None if self.process is None else self.process.pid or None

    @property
    def out_of_memory(self) -> bool:
        """Whether the system has killed processes for lack of memory since this process was started."""
        return oom_kills() > self._oom_kills

    async def acquire(
        self, start: Callable[..., None], owner: LinkOwner, on_exit: Callable[[ExitStatus], None]
    ) -> tuple[Introduction, Link]:
        """Start the process, connect to it, and create its link; return the worker's handshake and the link.

        After a failure or a cancellation, :meth:`aclose` releases the acquired parts.

        Args:
            start: Starts a task that runs until the worker's end: ``start(function, *args)``.
            owner: Receives the messages of the link.
            on_exit: Called once when the process has ended after it had begun to listen.

        Raises:
            WorkerStartupError: It can't be started, reports that it can't serve, or ended.
            ProtocolMismatch: It has no protocol version in common.
            RpcFailure, OSError, ValueError: It can't be reached.
        """
        process = await self._start(start)
        start(self._watch_exit, process, on_exit)
        self.connection = await self._wire.connect(
            self.address,
            token=self._spec.token,
            max_message=self._settings.max_payload + FRAME_OVERHEAD,
            tls=process.tls,
            name=self._spec.worker_id,
        )
        start(self._serve, self.connection)
        return await self._make_link(process, self.connection, owner)

    async def _start(self, start: Callable[..., None]) -> WorkerProcess:
        """Start the process, and wait until it listens."""
        self._oom_kills = oom_kills()
        process = self.process = await self._launcher.start(self._spec)
        fields = {"worker_id": self._spec.worker_id, "pool": self._spec.pool, "pid": process.pid}
        self._pumps = [anyio.Event(), anyio.Event()]
        start(self._pump, process.stdout, "stdout", Tail(), self._pumps[0], fields)
        start(self._pump, process.stderr, "stderr", self.stderr, self._pumps[1], fields)
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
            reason, words, _ = classify(await process.wait(), out_of_memory=self.out_of_memory)
            raise WorkerStartupError(f"{words} before it was ready", details={"reason": reason})
        self.address = report.address
        return process

    async def _make_link(
        self, process: WorkerProcess, connection: Connection, owner: LinkOwner
    ) -> tuple[Introduction, Link]:
        """Perform the handshake, and create the link for the worker's capabilities."""
        share: Callable[[], int | None] | None = None
        if self._spec.shm_limit and self._launcher.same_machine:
            share = process.share
        elif self._spec.shm_limit:
            self._offer = Offer()
            share = self._offer.share
        said = await shake_hands(connection, self._spec, self._prefix, self._offer)
        if self._offer is not None and "shared_memory" not in said.capabilities:
            self._offer.close()
            share = None
        if "exchange" in said.capabilities:
            self._link = Exchange(connection, owner, self._spec, self._settings, self._shm, share, process)
        else:
            from .plain_link import PlainCalls

            self._link = PlainCalls(
                connection,
                owner,
                process,
                self._settings,
                tools=said.tools,
                capabilities=said.capabilities,
                request_prefix=self._prefix,
                redact=self._redact,
            )
        return said, self._link

    # ---- its tasks -----------------------------------------------------------------------------------

    @protected
    async def _pump(self, source: Output, stream: str, tail: Tail, done: anyio.Event, fields: dict[str, Any]) -> None:
        try:
            output = WorkerOutput(
                self._settings.worker_output, f"{self._spec.pool} {self._spec.worker_id}", {"stream": stream, **fields}
            )
            await pump(source, output, tail=tail, redact=self._redact, levels=stream == "stderr")
        finally:
            done.set()

    @protected
    async def _watch_exit(self, process: WorkerProcess, on_exit: Callable[[ExitStatus], None]) -> None:
        on_exit(await process.wait())

    @protected
    async def _serve(self, connection: Connection) -> None:
        await connection.serve()
        if self._link is not None:
            self._link.lost()

    # ---- their end -----------------------------------------------------------------------------------

    async def end(self, *, itself: bool) -> ExitStatus | None:
        """Let the process end by itself for a moment, if ``itself``, or else kill it; return its exit status, None without
        a process.

        After a cancellation, :meth:`aclose` ends it.
        """
        process = self.process
        if process is None:
            return None
        if itself:
            with anyio.move_on_after(_LAST_BREATH if self._launcher.same_machine else _FAR_BREATH):
                return await process.wait()
        self.killed = not process.ended
        process.kill()
        return await process.wait()

    def unbegun(self, calls: Iterable[int]) -> frozenset[int]:
        """Return those of the calls that the process had not begun."""
        process = self.process
        return frozenset() if process is None else frozenset(id for id in calls if not process.begun(id))

    async def printed(self) -> None:
        """Wait until the process's output has been read; for a limited time, because other processes may hold its pipes."""
        with anyio.move_on_after(_LAST_BREATH):
            for done in self._pumps:
                await done.wait()

    async def aclose(self) -> None:
        """Release all resources, each even if another one fails; the process has ended by then."""
        async with AsyncExitStack() as stack:
            if self._offer is not None:
                stack.callback(self._offer.close)
            if self._link is not None:
                stack.callback(self._link.close)
            if self.process is not None:
                self.killed = self.killed or not self.process.ended
                stack.push_async_callback(self.process.aclose)
            if self.connection is not None:
                stack.callback(self.connection.close)

"""A started worker process: its boot message, its report, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import anyio

from snakepit_trio import _platform
from snakepit_trio._interrupts import protected
from snakepit_trio._platform import ProcessHandle

from .base import Boot, ExitStatus, Launcher, NoBook, ProcessBook, Report, WorkerProcess, WorkerSpec
from .descriptors import Descriptors
from .handle import Handle
from .helpers import Helpers
from .interpreter import import_path

if TYPE_CHECKING:
    import ssl

__all__ = ["Hold", "LocalLauncher", "LocalProcess", "Reaper", "boot_message"]

_REPORT_LIMIT = 256 * 1024
#: The largest read of its output, in bytes.
_CHUNK = 64 * 1024


def boot_message(spec: WorkerSpec) -> bytes:
    """Return the message that the worker reads from its lifeline: 4 bytes of length, then the Boot message as JSON."""
    body = Boot(
        worker_id=spec.worker_id,
        run_id=spec.run_id,
        pool=spec.pool,
        adapter=spec.adapter,
        token=spec.token,
        socket_dir=spec.socket_dir,
        threads=spec.threads,
        worker_backend=spec.worker_backend,
        host_backend=spec.host_backend,
        max_payload=spec.max_payload,
        shm_limit=spec.shm_limit,
        unserializable=spec.unserializable,
        bind=spec.bind,
        tls=spec.tls,
        env={name: value for name, value in spec.own_env.items() if name not in spec.env},
        path=import_path(spec),
    ).encode()
    return struct.pack(">I", len(body)) + body


class Reaper(Protocol):
    """The process's parent, which can take its exit status."""

    def alive(self) -> bool:
        """Return whether the parent is still there; without it the system may have reaped the process at any time."""

    async def reap(self) -> ExitStatus:
        """Return the exit status of the ended process."""


class _PipeOutput:
    """The output on a pipe; another object owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def receive(self) -> bytes:
        while True:
            await anyio.wait_readable(self._fd)
            try:
                return os.read(self._fd, _CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                return b""


class LocalProcess(Handle):
    """A worker process on this machine; see :class:`snakepit_trio.launch.base.WorkerProcess`.

    Args:
        process: The process; its id is also its process group's. Owned from here on.
        descriptors: Its pipes, with the worker's ends closed except for the lifeline's; owned from here on.
        boot: The message for its lifeline.
        reaper: Its parent.
        on_end: Called once, when it has ended and is reaped.
        read_report: Parses a report from its output so far; its second argument tells whether that is all. None: more
            must come.
        cpu_time: Returns the CPU time of the process with an id.
        helpers: The processes that its adapter's import has started; ended with it.
    """

    def __init__(
        self,
        process: ProcessHandle,
        descriptors: Descriptors,
        boot: bytes,
        reaper: Reaper,
        *,
        on_end: Callable[[LocalProcess], None],
        read_report: Callable[[bytes, bool], Report | None],
        cpu_time: Callable[[int], float | None],
        helpers: Helpers,
    ) -> None:
        self.pid = process.pid
        self.stdout: _PipeOutput = _PipeOutput(descriptors.stdout_read)
        self.stderr: _PipeOutput = _PipeOutput(descriptors.stderr_read)
        self.tls: ssl.SSLContext | None = None
        self.waiting = ""
        self._process = process
        self._host = os.getpid()
        self._descriptors = descriptors
        self._boot = memoryview(boot)
        self._reaper = reaper
        self._on_end = on_end
        self._read_report = read_report
        self._cpu_time = cpu_time
        self._helpers = helpers
        self._status: ExitStatus | None = None
        self._watching = anyio.Lock()
        self._said = bytearray()
        self._report: Report | None = None

    def __repr__(self) -> str:
        return f"<LocalProcess {self.pid} {self._status or 'running'}>"

    @property
    def marks(self) -> bytes | None:
        """Return the current begun table; None if it has none."""
        marks = self._descriptors.marks
        return None if self._closed or marks is None else marks.table()

    @property
    def ended(self) -> bool:
        return self._status is not None

    async def send_boot(self) -> None:
        """Write the boot message, then arm the lifeline. A worker that reads it slowly does not block the event loop."""
        while self._boot:
            try:
                sent = os.write(self._descriptors.lifeline_write, self._boot)
            except BlockingIOError:
                # The message exceeds the pipe: the worker reads meanwhile, and arms the lifeline. If it dies, the host
                # must not keep the last read end.
                self._descriptors.close(self._descriptors.lifeline_read)
                await anyio.wait_writable(self._descriptors.lifeline_write)
            except BrokenPipeError:
                break  # It has already ended; wait() returns its status.
            else:
                self._boot = self._boot[sent:]
        self._descriptors.arm_lifeline(self.pid)

    async def report(self) -> Report:
        fd = self._descriptors.report_read
        while self._report is None:
            over = self._descriptors.report_stays and self.ended
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                if not over:
                    await (self._more_or_end(fd) if self._descriptors.report_stays else anyio.wait_readable(fd))
                    continue
                data = b""
            self._said += data
            whole = not data or len(self._said) > _REPORT_LIMIT
            self._report = self._read_report(bytes(self._said), whole)
            if self._report is not None:
                self._descriptors.close(fd, self._descriptors.report_write)
                self._helpers.told(self._report.helpers)
        return self._report

    async def _more_or_end(self, fd: int) -> None:
        """Wait until there is something to read, or the process has ended: a pipe may have other writers that remain."""
        async with anyio.create_task_group() as nursery:

            @protected
            async def wait_for_end() -> None:
                await self.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_end)
            await anyio.wait_readable(fd)
            nursery.cancel_scope.cancel()

    def begun(self, call_id: int) -> bool:
        marks = self._descriptors.marks
        return self._closed or marks is None or marks.begun(call_id)

    def share(self) -> int | None:
        marks = self._descriptors.marks
        return None if marks is None else marks.share()

    async def cpu_time(self) -> float | None:
        # Once it is reaped, the id may be reused.
        return None if self._status is not None else self._cpu_time(self.pid)

    async def wait(self) -> ExitStatus:
        # Only one task may wait for a descriptor; when that task is cancelled, the next takes its place.
        while self._status is None:
            async with self._watching:
                if self._status is None:
                    await self._process.wait()
                    self._signal(signal.SIGKILL)
                    # Bounded: the process has ended, and its parent is this process, or a template, for which ask() has a
                    # time limit.
                    with anyio.CancelScope(shield=True):
                        self._status = await self._reaper.reap()
                    try:
                        await self._helpers.end(told=self._report is not None)
                    finally:
                        self._on_end(self)
        return self._status

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._report is None and self._status is None:
            # It may be in the middle of its import.
            self._helpers.look()
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._status is not None or os.getpid() != self._host:
            return  # It is gone, or this process is a fork of its host.
        # The number of a group is not reused while its leader is not reaped. Without the reaper that holds while the
        # leader lives, so the group is signalled first. Until it leads its own group, no group of that number exists, and
        # only the process is signalled.
        if self._reaper.alive() or not self._process.ended():
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError):
                pass
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            pass

    def _release(self) -> None:
        self._descriptors.close_all()
        self._process.close()


class Hold(Protocol):
    """Takes over a process that has just started, its pipes, and its parent. If it raises, it has not taken them over."""

    def __call__(self, process: ProcessHandle, descriptors: Descriptors, reaper: Reaper) -> LocalProcess: ...


class LocalLauncher(Launcher):
    """The common part of this machine's launchers: the processes that they hold.

    Args:
        book: The register of processes.
    """

    def __init__(self, book: ProcessBook | None = None) -> None:
        self._book = book or NoBook()
        self._held: set[LocalProcess] = set()

    async def __aexit__(self, *exc: object) -> None:
        async with contextlib.AsyncExitStack() as steps:
            for process in self._held:
                steps.push_async_callback(process.aclose)

    async def start(self, spec: WorkerSpec) -> WorkerProcess:
        held: list[LocalProcess] = []

        def ended(process: LocalProcess) -> None:
            self._held.discard(process)
            self._book.ended(spec.worker_id)
            self._clear(spec)

        def hold(process: ProcessHandle, descriptors: Descriptors, reaper: Reaper) -> LocalProcess:
            made = LocalProcess(
                process,
                descriptors,
                boot,
                reaper,
                on_end=ended,
                read_report=self._read_report,
                cpu_time=self._cpu_time,
                helpers=Helpers(process.pid, run_id=spec.run_id, pool=spec.pool, book=self._book),
            )
            held.append(made)
            self._held.add(made)
            return made

        boot = self._boot(spec)
        self._book.reserve(spec.worker_id, "worker", spec.pool)
        try:
            await self._start(spec, hold)
            [process] = held
            self._book.begun(spec.worker_id, process.pid)
            await process.send_boot()
        except BaseException:
            if held:
                await held[0].aclose()
            else:
                self._book.ended(spec.worker_id)
                self._clear(spec)
            raise
        return process

    def _boot(self, spec: WorkerSpec) -> bytes:
        """Return the message that the worker reads from its lifeline."""
        return boot_message(spec)

    def _read_report(self, said: bytes, whole: bool) -> Report | None:
        """Parse a report from the worker's output; None if more must come."""
        return _read_report(said) if whole else None

    def _cpu_time(self, pid: int) -> float | None:
        """Return the CPU time of the serving process."""
        return _platform.cpu_time(pid)

    def _clear(self, spec: WorkerSpec) -> None:
        """Remove what was created for a worker that has ended, or could not be started."""

    @abstractmethod
    async def _start(self, spec: WorkerSpec, hold: Hold) -> None:
        """Start a process, and call ``hold`` once, as soon as it exists."""


def _read_report(said: bytes) -> Report:
    if not said:
        return Report()
    try:
        return Report.decode(said)
    except ValueError as exc:
        return Report(code="worker_startup", message=f"its report can't be read: {exc}")

"""A started worker process: its descriptors, its report, its end."""

from __future__ import annotations

import os
import select
import signal
import struct
from collections.abc import Callable
from typing import Protocol

import anyio
import msgspec

from snakepit_trio.errors import WorkerStartupError

from .base import Boot, ExitStatus, Report, WorkerSpec
from .environment import import_path

__all__ = ["Descriptors", "LocalProcess", "Reaper", "boot_message", "make_descriptors"]

_REPORT_LIMIT = 256 * 1024
#: How long giving a process back may take, in seconds; a killed process that stays longer hangs in the kernel.
_GIVE_BACK = 5.0


def boot_message(spec: WorkerSpec) -> bytes:
    """What the worker reads from its lifeline: 4 bytes of length, then the Boot message as JSON."""
    body = msgspec.json.encode(
        Boot(
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
            path=import_path(spec),
        )
    )
    return struct.pack(">I", len(body)) + body


class Descriptors:
    """The four pipes of one worker. All are close-on-exec; the host's read ends do not block."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        try:
            self.lifeline_read, self.lifeline_write = self._pipe()
            self.report_read, self.report_write = self._pipe()
            self.stdout_read, self.stdout_write = self._pipe()
            self.stderr_read, self.stderr_write = self._pipe()
        except BaseException:
            self.close_all()
            raise
        for fd in (self.lifeline_write, self.report_read, self.stdout_read, self.stderr_read):
            os.set_blocking(fd, False)

    def _pipe(self) -> tuple[int, int]:
        pair = os.pipe()
        self._open.update(pair)
        return pair

    @property
    def for_worker(self) -> tuple[int, int, int, int]:
        """The worker's ends: lifeline, report, stdout, stderr."""
        return self.lifeline_read, self.report_write, self.stdout_write, self.stderr_write

    def close(self, *fds: int) -> None:
        """Close these, those that are open."""
        for fd in fds:
            if fd in self._open:
                self._open.discard(fd)
                os.close(fd)

    def close_all(self) -> None:
        """Close whatever is open."""
        self.close(*tuple(self._open))


def make_descriptors() -> Descriptors:
    """Open the pipes of one worker.

    Raises:
        WorkerStartupError: There are too many open files.
    """
    try:
        return Descriptors()
    except OSError as exc:
        raise WorkerStartupError(f"no pipes for a worker: {exc}", details={"reason": str(exc)}) from exc


class Reaper(Protocol):
    """Whoever is the process's parent, and so may take its exit status."""

    async def reap(self) -> ExitStatus:
        """Take the exit status of the process, which has ended."""


class LocalProcess:
    """A worker process on this machine; see :class:`snakepit_trio.launch.base.WorkerProcess`.

    Args:
        pid: Its process id, which is also its process group's.
        pidfd: A descriptor of the process; owned from here on.
        descriptors: Its pipes, the worker's ends closed already; owned from here on.
        boot: What it is to read from its lifeline.
        reaper: Its parent.
        group_is_safe: A process group whose leader has ended, but is not reaped, can't be a stranger's. False where
            somebody else may reap the leader at any time.
    """

    def __init__(
        self,
        pid: int,
        pidfd: int,
        descriptors: Descriptors,
        boot: bytes,
        reaper: Reaper,
        *,
        group_is_safe: Callable[[], bool] = lambda: True,
    ) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._descriptors = descriptors
        self._boot = memoryview(boot)
        self._reaper = reaper
        self._group_is_safe = group_is_safe
        self._status: ExitStatus | None = None
        self._reaping = anyio.Lock()
        self._report = bytearray()
        self._closed = False
        self._watchers = 0

    def __repr__(self) -> str:
        return f"<LocalProcess {self.pid} {self._status or 'running'}>"

    @property
    def stdout(self) -> int:
        return self._descriptors.stdout_read

    @property
    def stderr(self) -> int:
        return self._descriptors.stderr_read

    async def send_boot(self) -> None:
        """Write the boot message; a worker that is slow to read it does not block the event loop."""
        while self._boot:
            try:
                sent = os.write(self._descriptors.lifeline_write, self._boot)
            except BlockingIOError:
                await anyio.wait_writable(self._descriptors.lifeline_write)
            except BrokenPipeError:
                return  # It has ended already; wait() tells how.
            else:
                self._boot = self._boot[sent:]

    async def report(self) -> Report:
        fd = self._descriptors.report_read
        while True:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                await anyio.wait_readable(fd)
                continue
            self._report += data
            if not data or len(self._report) > _REPORT_LIMIT:
                break
        self._descriptors.close(fd)
        if not self._report:
            return Report()
        try:
            return msgspec.json.decode(self._report, type=Report)
        except msgspec.MsgspecError as exc:
            return Report(code="worker_startup", message=f"its report can't be read: {exc}")

    async def wait(self) -> ExitStatus:
        while self._status is None:
            if not _readable(self._pidfd):
                # Each waiter needs a descriptor of its own: an event loop lets one task wait for each.
                fd = os.dup(self._pidfd)
                try:
                    await anyio.wait_readable(fd)
                finally:
                    os.close(fd)
            async with self._reaping:
                if self._status is None:
                    self._signal(signal.SIGKILL)
                    with anyio.CancelScope(shield=True):
                        self._status = await self._reaper.reap()
        return self._status

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._status is not None:
            return
        try:
            # Until it leads a group of its own, the group of that number does not exist and only it is hit.
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass
        if self._group_is_safe():
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError):
                pass

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            self.kill()
            with anyio.move_on_after(_GIVE_BACK):
                await self.wait()
            self._descriptors.close_all()
            os.close(self._pidfd)


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))

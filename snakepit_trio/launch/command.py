"""Workers as any command that serves WorkerService with its own gRPC library; see docs/foreign-workers.md.

Such a process knows nothing of lifelines, boot messages and begun tables, so it is told little, by environment
variables. One names a file with the token, another a named pipe into which it writes one line when it is ready. Both
are in the worker's own directory, which is removed after its end.

The lifeline is armed from outside: owner and signal belong to the pipe and not to the process, see fcntl(2). So the
kernel ends the whole group when the host is gone, as long as any process of the group has the read end open.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from snakepit_trio import _platform
from snakepit_trio.errors import WorkerStartupError
from snakepit_trio.wire.addresses import is_loopback, parse_address
from snakepit_trio.wire.startup import Report

from .base import ProcessBook, WorkerSpec
from .descriptors import make_descriptors
from .environment import worker_environment
from .process import Hold, LocalLauncher
from .spawn import hand_over, spawn

__all__ = ["CommandLauncher"]

_ERROR = "error:"
#: The number of characters shown of a malformed line.
_SHOWN = 200


class CommandLauncher(LocalLauncher):
    """Starts each worker by the same command, in its own session and process group.

    Args:
        command: The program and its arguments; no shell is involved.
        directory: The run's private directory.
        book: The register of its processes.
    """

    def __init__(self, command: Sequence[str], directory: Path, book: ProcessBook | None = None) -> None:
        super().__init__(book)
        # The message library is imported now, because an import later would delay running calls.
        importlib.import_module("snakepit_trio.wire.generated.snakepit.v1")
        self._command = list(command)
        self._directory = directory

    async def _start(self, spec: WorkerSpec, hold: Hold) -> None:
        place = self._place(spec)
        token, ready = place / "token", place / "ready"
        try:
            place.mkdir(mode=0o700)
            _write_privately(token, spec.token)
        except OSError as exc:
            raise WorkerStartupError(f"no place for a worker: {exc}", details={"reason": str(exc)}) from exc
        environment = {**spec.own_env, **worker_environment(spec)}
        descriptors = make_descriptors(marks=False, report=str(ready))
        lifeline, report, _, stdout, stderr = descriptors.for_worker
        environment |= {
            "SNAKEPIT_POOL": spec.pool,
            "SNAKEPIT_LISTEN": f"unix:{place}/sock" if spec.socket_dir is not None else "tcp:127.0.0.1:0",
            "SNAKEPIT_TOKEN_FILE": str(token),
            "SNAKEPIT_READY_FILE": str(ready),
            "SNAKEPIT_READY_FD": str(report),
            "SNAKEPIT_LIFELINE_FD": str(lifeline),
            "SNAKEPIT_THREADS": str(spec.threads),
            "SNAKEPIT_MAX_PAYLOAD": str(spec.max_payload),
        }
        popen, process = spawn(self._command, spec, descriptors, pass_fds=(lifeline, report), env=environment)
        hand_over(popen, process, descriptors, hold)
        # The report's read end stays open here, because a process may open the pipe by its name later. The holder of the
        # process arms and closes the lifeline.
        descriptors.close(stdout, stderr)

    def _boot(self, spec: WorkerSpec) -> bytes:
        # The process reads nothing there, and an armed pipe kills for every byte.
        return b""

    def _read_report(self, said: bytes, whole: bool) -> Report | None:
        line, end, _ = said.partition(b"\n")
        if not end and not whole:
            return None
        text = line.decode(errors="backslashreplace").strip()
        if text.startswith(_ERROR):
            return Report(code="worker_startup", message=text.removeprefix(_ERROR).strip())
        if not text or _is_local(text):
            return Report(address=text)
        return Report(
            code="worker_startup",
            message=f"reported {text[:_SHOWN]!r}; expected unix:PATH or tcp:HOST:PORT with a loopback address",
        )

    def _cpu_time(self, pid: int) -> float | None:
        # The command may be a wrapper around the serving program.
        return _platform.cpu_time_of_family(pid)

    def _clear(self, spec: WorkerSpec) -> None:
        shutil.rmtree(self._place(spec), ignore_errors=True)

    def _place(self, spec: WorkerSpec) -> Path:
        return self._directory / spec.worker_id


def _write_privately(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)


def _is_local(address: str) -> bool:
    """Return whether an address is on this machine, because the token is sent there unencrypted."""
    try:
        place = parse_address(address)
    except ValueError:
        return False
    return isinstance(place, str) or is_loopback(place[0])

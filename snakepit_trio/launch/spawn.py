"""Workers as new interpreters."""

from __future__ import annotations

import os
import subprocess
import sys

from snakepit_trio.errors import WorkerStartupError

from .base import ExitStatus, Launcher, WorkerProcess, WorkerSpec
from .environment import worker_environment
from .process import LocalProcess, boot_message, make_descriptors

__all__ = ["SpawnLauncher", "status_of"]


def status_of(returncode: int) -> ExitStatus:
    """An exit status from subprocess's convention, in which a signal is negative."""
    return ExitStatus(signal=-returncode) if returncode < 0 else ExitStatus(code=returncode)


class _PopenReaper:
    """The parent of a process that subprocess started."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    async def reap(self) -> ExitStatus:
        # It has ended, so this does not wait.
        return status_of(self._popen.wait())


class SpawnLauncher(Launcher):
    """Starts each worker as ``python -m snakepit_trio.worker``, in a session and process group of its own."""

    async def start(self, spec: WorkerSpec) -> WorkerProcess:
        descriptors = make_descriptors()
        try:
            boot = boot_message(spec)
            lifeline, report, stdout, stderr = descriptors.for_worker
            # Run id and worker id are on the command line so that a later run can tell whose process this is.
            command = [
                spec.python or sys.executable, "-m", "snakepit_trio.worker",
                "--run", spec.run_id, "--worker", spec.worker_id,
                "--lifeline", str(lifeline), "--report", str(report),
            ]  # fmt: skip
            # Not anyio.open_process: the pipes are ours, and a process must not be tied to the thread that started it.
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(lifeline, report),
                env=_environment(spec),
                cwd=spec.cwd,
                start_new_session=True,
            )
        except OSError as exc:
            descriptors.close_all()
            raise WorkerStartupError(
                f"could not start {spec.python or sys.executable}: {exc}", details={"reason": str(exc)}
            ) from exc
        except BaseException:
            descriptors.close_all()
            raise
        descriptors.close(*descriptors.for_worker)
        process = LocalProcess(popen.pid, os.pidfd_open(popen.pid), descriptors, boot, _PopenReaper(popen))
        try:
            await process.send_boot()
        except BaseException:
            await process.aclose()
            raise
        return process


def _environment(spec: WorkerSpec) -> dict[str, str]:
    environment = worker_environment(spec)
    if spec.python is None:
        # The package itself must be found before the worker has read what else to put on its path.
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        rest = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{rest}{os.pathsep}{package}" if rest else package
    return environment

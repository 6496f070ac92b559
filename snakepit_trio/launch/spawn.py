"""Workers as new interpreters."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from snakepit_trio import _platform
from snakepit_trio._platform import ProcessHandle
from snakepit_trio.errors import WorkerStartupError

from .base import ExitStatus, WorkerSpec
from .descriptors import Descriptors, make_descriptors
from .environment import worker_environment
from .interpreter import python_command
from .process import Hold, LocalLauncher

__all__ = ["PopenReaper", "SpawnLauncher", "hand_over", "spawn"]


def _status_of(returncode: int) -> ExitStatus:
    """Convert subprocess's return code, in which a signal is negative, to an exit status."""
    return ExitStatus(signal=-returncode) if returncode < 0 else ExitStatus(code=returncode)


class PopenReaper:
    """This process, as the parent of a process that subprocess started."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    def alive(self) -> bool:
        return True

    async def reap(self) -> ExitStatus:
        # It has ended, so this does not block.
        return _status_of(self._popen.wait())


def spawn(
    command: Sequence[str],
    spec: WorkerSpec,
    descriptors: Descriptors,
    *,
    pass_fds: tuple[int, ...],
    env: Mapping[str, str],
) -> tuple[subprocess.Popen[bytes], ProcessHandle]:
    """Start a worker's process in its own session and process group, with its output in the worker's pipes.

    ``anyio.open_process`` is not used, because the pipes are this package's, and a process must not be bound to the
    thread that started it.

    Returns:
        The process as a child, and a handle to wait for it and to signal it.

    Raises:
        WorkerStartupError: It can't be started; the descriptors are closed.
    """
    _, _, _, stdout, stderr = descriptors.for_worker
    try:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            env=env,
            cwd=spec.cwd,
            start_new_session=True,
        )
        try:
            return popen, _platform.open_child(popen.pid)
        except BaseException:
            popen.kill()
            popen.wait()
            raise
    except (OSError, ValueError) as exc:
        descriptors.close_all()
        raise WorkerStartupError(f"could not start {command[0]}: {exc}", details={"reason": str(exc)}) from exc
    except BaseException:
        descriptors.close_all()
        raise


def hand_over(popen: subprocess.Popen[bytes], process: ProcessHandle, descriptors: Descriptors, hold: Hold) -> None:
    """Pass a process started by :func:`spawn` to its holder; if that fails, the process is ended."""
    try:
        hold(process, descriptors, PopenReaper(popen))
    except BaseException:
        popen.kill()
        popen.wait()
        process.close()
        descriptors.close_all()
        raise


class SpawnLauncher(LocalLauncher):
    """Starts each worker as ``python -m snakepit_trio.worker``, in its own session and process group."""

    async def _start(self, spec: WorkerSpec, hold: Hold) -> None:
        program = python_command("snakepit_trio.worker", spec)
        descriptors = make_descriptors()
        lifeline, report, marks, _, _ = descriptors.for_worker
        # Run id and worker id are on the command line, so that a later run can identify the process.
        command = [
            *program, "--run", spec.run_id, "--worker", spec.worker_id,
            "--lifeline", str(lifeline), "--report", str(report), "--marks", str(marks),
        ]  # fmt: skip
        popen, process = spawn(
            command, spec, descriptors, pass_fds=(lifeline, report, marks), env=worker_environment(spec)
        )
        hand_over(popen, process, descriptors, hold)
        descriptors.started()

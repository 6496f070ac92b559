"""The interface of launchers, which start worker processes.

A launcher starts operating-system processes, here or on other machines, and knows nothing of gRPC, pools or requests.
Four promises hold for every launcher, and one contract suite checks them; docs/guides/launchers.md describes how to
write one:

- If :meth:`Launcher.start` is cancelled or fails at any step, no process, file descriptor or file is left.
- The worker ends when the host ends, in any way (the lifeline).
- Signals go to the worker's process group, and only while its leader is not reaped, so they can't reach another
  process.
- :meth:`WorkerProcess.wait` returns once the leader has ended, its group is killed, and it is reaped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeGuard

import attrs

from snakepit_trio.wire.startup import Boot, Credentials, Report

from .interpreter import interpreter_flags

if TYPE_CHECKING:
    import ssl

    from snakepit_trio.config import PoolConfig

__all__ = [
    "Boot",
    "Credentials",
    "ExitStatus",
    "LaunchContext",
    "Launcher",
    "LauncherFactory",
    "NoBook",
    "Output",
    "ProcessBook",
    "Report",
    "WorkerProcess",
    "WorkerSpec",
    "is_launcher",
    "lacks",
]


@attrs.frozen(kw_only=True)
class WorkerSpec:
    """The specification of one worker. Times in seconds, sizes in bytes."""

    worker_id: str
    run_id: str
    pool: str
    adapter: str
    #: The run's token. It travels only over the lifeline pipe.
    token: str = attrs.field(repr=False)
    #: The private directory for the worker's Unix socket; None: TCP on the loopback address.
    socket_dir: str | None = None
    threads: int = 1
    #: "trio", "asyncio", or "auto": by the imports of the adapter's module, see ``snakepit_trio.worker.backend``.
    worker_backend: str = "auto"
    #: The choice of "auto" if the adapter imports both.
    host_backend: str = "trio"
    max_payload: int = 64 * 1024 * 1024
    #: The shared memory for the worker's sent values, if it shares the host's file; 0: neither side uses shared memory.
    shm_limit: int = 0
    #: The handling of a result that can't be sent: "error" or "marker".
    unserializable: str = "error"
    #: The handling of its output: "auto", "stderr", "logging" or "discard".
    worker_output: Literal["auto", "stderr", "logging", "discard"] = "auto"
    #: The path of another interpreter; None: this one.
    python: str | None = None
    #: The interpreter's flags, such as "-O"; by default the host's.
    flags: tuple[str, ...] = attrs.field(factory=interpreter_flags)
    #: Added to the inherited environment.
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    #: Variables of this worker alone, set in the process before any user code runs, unless ``env`` contains them.
    own_env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    cwd: str | None = None
    #: The address of its machine on which it listens if it has no ``socket_dir``.
    bind: str = "127.0.0.1"
    #: The worker's TLS credentials; its clients need a certificate of the same authority. They travel like the token.
    tls: Credentials | None = attrs.field(default=None, repr=False)
    #: The device that ``own_env`` assigns, such as "cuda:0".
    device: str | None = None


@attrs.frozen
class ExitStatus:
    """The end of a process: an exit code, or the number of the signal that ended it; both None if unknown."""

    code: int | None = None
    signal: int | None = None
    #: Not empty if the process was lost with its machine or supervisor; describes that loss.
    lost: str = ""


class Output(Protocol):
    """The output of a process on one of its standard streams."""

    async def receive(self) -> bytes:
        """Return the next bytes; empty at the end. Never raises for anything that the process does. For one reader at a
        time.
        """


class WorkerProcess(Protocol):
    """One started process. Its launcher owns the descriptors; :meth:`aclose` releases them."""

    @property
    def pid(self) -> int:
        """The process id on its machine; 0 while it has none."""

    @property
    def stdout(self) -> Output:
        """The standard output."""

    @property
    def stderr(self) -> Output:
        """The standard error."""

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The TLS context for the connection; the worker's certificate is for its worker id. None: no TLS."""

    @property
    def waiting(self) -> str:
        """The reason why it has not started yet; empty if it has started or no reason is known."""

    @property
    def ended(self) -> bool:
        """Whether it has ended and is reaped."""

    async def report(self) -> Report:
        """Wait until the worker reports its address, or the reason why it can't serve.

        Returns an empty :class:`Report` if it ended, or closed the pipe, without a report; the same report on further
        calls. A cancellation leaves the process running, and this may be called again.
        """

    def begun(self, call_id: int) -> bool:
        """Return whether the worker has begun this call; True if unknown. Valid after its end."""

    def share(self) -> int | None:
        """Return a new descriptor of the file for shared memory that it has inherited as its marks, or None.

        Called only for launchers with ``same_machine``.
        """

    async def cpu_time(self) -> float | None:
        """Return the CPU time of the process so far, over all its threads, in seconds; None if unknown. A cancellation
        changes nothing.

        Called only while it runs a call and does not answer heartbeats. Child processes do not count, unless a child
        serves in the process's place, as for a command that is a wrapper.
        """

    async def wait(self) -> ExitStatus:
        """Wait until the process has ended, kill the rest of its group, and reap it. May be called any number of times; a
        cancellation only ends the wait.
        """

    def terminate(self) -> None:
        """Send SIGTERM to the process group. Does nothing once the leader is reaped."""

    def kill(self) -> None:
        """Send SIGKILL to the process group. Does nothing once the leader is reaped."""

    async def aclose(self) -> None:
        """Kill the group, reap the leader, close every descriptor. Runs to its end even when cancelled. Idempotent."""


class ProcessBook(Protocol):
    """The register of a run's processes, so that a later run can end the processes of a killed host.

    None of its methods raises: a failed write costs only the clean-up after a SIGKILL.
    """

    def reserve(self, process_id: str, kind: str, pool: str) -> None:
        """Record that a process is about to be started. ``process_id`` is a worker's id or similar; ``kind`` describes the
        process.
        """

    def begun(self, process_id: str, pid: int) -> None:
        """Record that it exists."""

    def ended(self, process_id: str) -> None:
        """Record that it has ended and is reaped, or was never started."""


class NoBook:
    """A register that records nothing."""

    def reserve(self, process_id: str, kind: str, pool: str) -> None:
        """Do nothing."""

    def begun(self, process_id: str, pid: int) -> None:
        """Do nothing."""

    def ended(self, process_id: str) -> None:
        """Do nothing."""


@attrs.frozen(kw_only=True)
class LaunchContext:
    """The information for a launcher about its pool and its run.

    Attributes:
        config: The pool's options.
        run_id: The run's id, also in each :class:`WorkerSpec`.
        run_dir: A private directory on this machine, removed when the run ends.
        book: The register of processes on this machine, so that a later run can end the processes of a killed host.
        most_workers: The largest number of simultaneous workers: ``size`` or ``max_size``, plus ``surge`` and
            ``spares``.
        redact: Removes secrets from a text for logs.
    """

    config: PoolConfig
    run_id: str
    run_dir: Path
    book: ProcessBook
    most_workers: int
    redact: Callable[[str], str]


class Launcher(Protocol):
    """Starts the workers of one pool. The runtime enters it before the first start and leaves it after the last worker's
    end.

    A class with this base inherits ``same_machine`` and ``__aenter__``; any object with these members is accepted.
    """

    #: Whether its workers share this machine's files and memory. If not, they get no ``socket_dir``, and use shared
    #: memory only if they find the file that their host offers in the handshake.
    same_machine: bool = True

    async def __aenter__(self) -> Self:
        return self

    @abstractmethod
    async def __aexit__(self, *exc: object) -> None:
        """End everything that it still holds. Runs to its end even when cancelled, in bounded time."""

    @abstractmethod
    async def start(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a process. Returns as soon as it exists or is requested; :meth:`WorkerProcess.report` waits for its
        report. After a cancellation or an error nothing is left.

        Raises:
            WorkerStartupError: The process could not be started; ``details["reason"]`` is the reason.
        """


#: Creates a pool's launcher when the pool opens: a class, a function, or the target of an entry point.
LauncherFactory = Callable[[LaunchContext], Launcher]

_METHODS = ("__aenter__", "__aexit__", "start")


def lacks(value: Any) -> str:
    """Return a description of what a value lacks to be a :class:`Launcher`; empty if it is one."""
    missing = [f"{name}()" for name in _METHODS if not callable(getattr(value, name, None))]
    # Instances of a class may have the attribute although the class does not.
    if not isinstance(value, type) and type(getattr(value, "same_machine", None)) is not bool:
        missing.append("same_machine (True or False)")
    return ", ".join(missing)


def is_launcher(value: Any) -> TypeGuard[Launcher]:
    """Return whether a value is a launcher, rather than a factory of one."""
    return not isinstance(value, type) and not lacks(value)

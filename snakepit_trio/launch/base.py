"""Where a worker process comes from: what a launcher takes, and what it gives back.

A launcher starts operating-system processes, here or on other machines, and knows nothing of gRPC, pools or requests. Four
promises hold for every launcher, and one contract suite checks them; docs/guides/launchers.md says how to write one:

- Nothing is left behind when :meth:`Launcher.start` is cancelled or fails at any step: no process, file descriptor, file.
- The worker ends when the host ends, however the host ends (the lifeline).
- Signals go to the worker's process group, and only while its leader is not reaped, so that they can't hit a stranger.
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
    """All that is needed to start one worker. Times in seconds, sizes in bytes."""

    worker_id: str
    run_id: str
    pool: str
    adapter: str
    #: The run's secret. Travels over the lifeline pipe only.
    token: str = attrs.field(repr=False)
    #: The private directory in which the worker makes its Unix socket; None means TCP on the loopback address.
    socket_dir: str | None = None
    threads: int = 1
    #: "trio", "asyncio", or "auto": by what the adapter's module uses, see ``snakepit_trio.worker.backend``.
    worker_backend: str = "auto"
    #: What "auto" falls back to when the adapter uses both.
    host_backend: str = "trio"
    max_payload: int = 64 * 1024 * 1024
    #: What the worker may use of shared memory for what it sends, if it has the host's; 0: neither side uses any.
    shm_limit: int = 0
    #: What becomes of a result that can't be sent: "error" or "marker".
    unserializable: str = "error"
    #: What becomes of what it writes: "auto", "stderr", "logging" or "discard".
    worker_output: Literal["auto", "stderr", "logging", "discard"] = "auto"
    #: Another interpreter's path; None is this one.
    python: str | None = None
    #: What the interpreter is started with, such as "-O": by default what the host's was.
    flags: tuple[str, ...] = attrs.field(factory=interpreter_flags)
    #: Added to the inherited environment.
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    #: Of this worker alone: set in the process before any user code runs in it, if ``env`` does not name it already.
    own_env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    cwd: str | None = None
    #: Where it listens when it has no ``socket_dir``: an address of its machine.
    bind: str = "127.0.0.1"
    #: What it shows to whoever connects, who must show a certificate of the same authority. Travels like the token.
    tls: Credentials | None = attrs.field(default=None, repr=False)
    #: What ``own_env`` ties it to, such as "cuda:0".
    device: str | None = None


@attrs.frozen
class ExitStatus:
    """How a process ended: an exit code, or the number of the signal that ended it; both None when nobody could tell."""

    code: int | None = None
    signal: int | None = None
    #: It was lost with what it ran on, whose end this tells in words.
    lost: str = ""


class Output(Protocol):
    """What a process writes to one of its standard streams."""

    async def receive(self) -> bytes:
        """Wait for what it writes next; empty at the end. Never raises for what the process does. One reader at a time."""


class WorkerProcess(Protocol):
    """One started process. Its launcher owns the descriptors; :meth:`aclose` gives them back."""

    @property
    def pid(self) -> int:
        """Its process id, on its machine; 0 as long as it has none."""

    @property
    def stdout(self) -> Output:
        """What it writes to its standard output."""

    @property
    def stderr(self) -> Output:
        """What it writes to its standard error."""

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What the connection to it is secured with; it shows a certificate in its worker id. None: it is not."""

    @property
    def waiting(self) -> str:
        """What keeps it from being started, in words, as long as it is not; empty when nothing is known to."""

    @property
    def ended(self) -> bool:
        """Whether it has ended and is reaped."""

    async def report(self) -> Report:
        """Wait for the worker to say where it listens, or why it can't.

        Returns an empty :class:`Report` when it ended, or closed the pipe, without a word; the same one when asked again.
        A cancellation leaves the process running and the report to be asked for again.
        """

    def begun(self, call_id: int) -> bool:
        """Whether the worker has begun to run this call, as far as can be told: True when it can't. Valid after its end."""

    def share(self) -> int | None:
        """A new descriptor of the file that it has inherited, as its marks, to share memory; None when there is none.

        Asked only of the processes of launchers with ``same_machine``.
        """

    async def cpu_time(self) -> float | None:
        """How much CPU time the process has used up to now, all its threads, in seconds; None when that can't be told.

        Asked only while it runs a call and does not answer heartbeats. What it has started does not count, unless it serves
        in the process's place, as under a command that is a wrapper.
        """

    async def wait(self) -> ExitStatus:
        """Wait until the process has ended; kill what is left of its group; reap it. May be awaited any number of times."""

    def terminate(self) -> None:
        """SIGTERM to the process group. Does nothing once the leader is reaped."""

    def kill(self) -> None:
        """SIGKILL to the process group. Does nothing once the leader is reaped."""

    async def aclose(self) -> None:
        """Kill the group, reap the leader, close every descriptor. Runs to its end even when cancelled. Idempotent."""


class ProcessBook(Protocol):
    """Where the processes of a run are written down, so that a later run can end what a killed host has left.

    None of its methods raises: a book that can't be written costs the clean-up after a SIGKILL, not the worker.
    """

    def reserve(self, process_id: str, kind: str, pool: str) -> None:
        """A process is about to be started. ``process_id`` is a worker's id or the like; ``kind`` says what it is."""

    def begun(self, process_id: str, pid: int) -> None:
        """It exists."""

    def ended(self, process_id: str) -> None:
        """It has ended and is reaped, or was never started."""


class NoBook:
    """A book that nobody keeps."""

    def reserve(self, process_id: str, kind: str, pool: str) -> None:
        """Nothing."""

    def begun(self, process_id: str, pid: int) -> None:
        """Nothing."""

    def ended(self, process_id: str) -> None:
        """Nothing."""


@attrs.frozen(kw_only=True)
class LaunchContext:
    """What a launcher may know of its pool and of the run that it belongs to.

    Attributes:
        config: The pool's options.
        run_id: The run's id; each :class:`WorkerSpec` has it, too.
        run_dir: A private directory on this machine, removed when the run ends.
        book: Where processes of this machine are written down, so that a later run can end what a killed host has left.
        most_workers: How many workers there may be at once: ``size`` or ``max_size``, ``surge`` and ``spares``.
        redact: Takes secrets out of a text that is to be logged.
    """

    config: PoolConfig
    run_id: str
    run_dir: Path
    book: ProcessBook
    most_workers: int
    redact: Callable[[str], str]


class Launcher(Protocol):
    """Starts the workers of one pool. The runtime enters it before the first start and leaves it after the last worker's end.

    A class that names it as its base inherits ``same_machine`` and ``__aenter__``; any object with these members will do.
    """

    #: Whether its workers share this machine's files and memory. If not, they get no ``socket_dir``, and shared memory
    #: only when they find the file that their host offers in the handshake.
    same_machine: bool = True

    async def __aenter__(self) -> Self:
        return self

    @abstractmethod
    async def __aexit__(self, *exc: object) -> None:
        """End whatever it still holds. Runs to its end even when cancelled, in bounded time."""

    @abstractmethod
    async def start(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a process. Returns as soon as it exists, or is asked for; what it then says is what
        :meth:`WorkerProcess.report` waits for.

        Raises:
            WorkerStartupError: The process could not be started; ``details["reason"]`` says why.
        """


#: What makes a pool's launcher when the pool opens: a class, a function, or what an entry point names.
LauncherFactory = Callable[[LaunchContext], Launcher]

_METHODS = ("__aenter__", "__aexit__", "start")


def lacks(value: Any) -> str:
    """What a value lacks to be a :class:`Launcher`, in words; empty when it is one."""
    missing = [f"{name}()" for name in _METHODS if not callable(getattr(value, name, None))]
    # Instances of a class may have it where the class has not.
    if not isinstance(value, type) and type(getattr(value, "same_machine", None)) is not bool:
        missing.append("same_machine (True or False)")
    return ", ".join(missing)


def is_launcher(value: Any) -> TypeGuard[Launcher]:
    """Whether a value is a launcher, and not what makes one."""
    return not isinstance(value, type) and not lacks(value)

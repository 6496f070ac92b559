"""The life of a worker incarnation as a table, and the ways in which it ends.

::

    STARTING --> READY <--> BUSY --> DRAINING --> STOPPED
        |          |         |          |
        +----------+----+----+----------+---> CRASHED
        +----------------------------------> STOPPED

STARTING lasts from the order to start until the handshake is done and the exchange is open. READY and BUSY take calls;
they differ in whether any call is held. DRAINING takes none and finishes those it has. STOPPED is an end that somebody
asked for, CRASHED any other.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from enum import Enum

import attrs

from snakepit_trio.launch.base import ExitStatus

__all__ = ["TRANSITIONS", "Exit", "WorkerState", "classify", "oom_kills"]


class WorkerState(Enum):
    """Where a worker incarnation is in its life."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPED = "stopped"
    CRASHED = "crashed"

    @property
    def over(self) -> bool:
        """Whether this is an end."""
        return self in (WorkerState.STOPPED, WorkerState.CRASHED)


_S = WorkerState
#: The states that may follow each state.
TRANSITIONS: Mapping[WorkerState, frozenset[WorkerState]] = {
    _S.STARTING: frozenset({_S.READY, _S.STOPPED, _S.CRASHED}),
    _S.READY: frozenset({_S.BUSY, _S.DRAINING, _S.STOPPED, _S.CRASHED}),
    _S.BUSY: frozenset({_S.READY, _S.DRAINING, _S.STOPPED, _S.CRASHED}),
    _S.DRAINING: frozenset({_S.READY, _S.BUSY, _S.STOPPED, _S.CRASHED}),
    _S.STOPPED: frozenset(),
    _S.CRASHED: frozenset(),
}


@attrs.frozen(kw_only=True)
class Exit:
    """How an incarnation ended.

    Attributes:
        reason: ``"stopped"``, ``"startup"``, ``"startup_timeout"``, ``"exited"``, ``"segfault"``, ``"aborted"``,
            ``"oom_killed"`` (by the system for lack of memory), ``"signal"``, ``"connection_lost"``, ``"heartbeat"``,
            ``"cancel_grace"``, ``"protocol"``, ``"node_lost"`` (with what it ran on), or ``"killed"`` (SIGKILL from
            elsewhere, or by this side on demand).
        message: The same for people.
        expected: Somebody asked for it.
        code: The exit code, where there was one.
        signal: The signal's name, where one ended it.
        stderr: The last lines of its standard error.
        error_code: The code of the error that the worker itself gave for not starting.
        remote_types: The types of the exception that the adapter raised while starting.
        remote_traceback: Its traceback.
    """

    reason: str
    message: str
    expected: bool = False
    code: int | None = None
    signal: str | None = None
    stderr: str = ""
    error_code: str = ""
    remote_types: tuple[str, ...] = ()
    remote_traceback: str = ""

    def details(self) -> dict[str, object]:
        """What a ``WorkerCrashed`` or ``WorkerStartupError`` says in its ``details``."""
        found: dict[str, object] = {"reason": self.reason}
        if self.code is not None:
            found["exit_code"] = self.code
        if self.signal is not None:
            found["signal"] = self.signal
        if self.stderr:
            found["stderr"] = self.stderr
        if self.remote_types:
            found["remote_type"] = self.remote_types[0].removeprefix("builtins.")
        if self.remote_traceback:
            found["remote_traceback"] = self.remote_traceback
        return found


_SIGNAL_REASONS = {
    signal.SIGSEGV: "segfault",
    signal.SIGBUS: "segfault",
    signal.SIGABRT: "aborted",
    signal.SIGKILL: "killed",
}


def oom_kills() -> int:
    """How many processes this system has killed for lack of memory since it started; 0 where it doesn't tell.

    See ``oom_kill`` in https://docs.kernel.org/filesystems/proc.html; it counts kills by cgroup limits too.
    """
    try:
        with open("/proc/vmstat", "rb") as file:
            found = re.search(rb"^oom_kill (\d+)", file.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def classify(status: ExitStatus, *, out_of_memory: bool = False) -> tuple[str, str, str | None]:
    """The reason, the words for it, and the signal's name, for a process that ended by itself.

    Args:
        status: How it ended.
        out_of_memory: The system has killed processes for lack of memory while it lived.
    """
    if status.lost:
        return "node_lost", f"was lost with its node: {status.lost}", None
    if out_of_memory and status.signal == signal.SIGKILL:
        return "oom_killed", "was killed by the system for lack of memory", "SIGKILL"
    if status.signal is not None:
        try:
            number = signal.Signals(status.signal)
        except ValueError:
            return "signal", f"ended by signal {status.signal}", str(status.signal)
        words = {
            signal.SIGSEGV: "crashed with a segmentation fault",
            signal.SIGBUS: "crashed with a bus error",
            signal.SIGABRT: "aborted",
            signal.SIGKILL: "was killed by SIGKILL",
        }.get(number, f"was ended by {number.name}")
        return _SIGNAL_REASONS.get(number, "signal"), words, number.name
    if status.code is not None:
        return "exited", f"exited with code {status.code}", None
    return "exited", "ended; how is not known", None

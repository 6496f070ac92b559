"""The causes of a worker's end, and their classification from the observed facts."""

from __future__ import annotations

import signal

import attrs

from snakepit_trio.errors import ConfigError, SnakepitError
from snakepit_trio.launch.base import ExitStatus
from snakepit_trio.observe.printable import printable

__all__ = ["Exit", "classify", "explain"]


_CONFIG_ERROR = f"{ConfigError.__module__}.{ConfigError.__qualname__}"


@attrs.frozen(kw_only=True)
class Exit:
    """The end of an incarnation.

    Attributes:
        reason: ``"stopped"``, ``"startup"``, ``"startup_timeout"``, ``"exited"``, ``"segfault"``, ``"aborted"``,
            ``"oom_killed"`` (by the system for lack of memory), ``"signal"``, ``"connection_lost"``, ``"heartbeat"``,
            ``"cancel_grace"``, ``"protocol"``, ``"node_lost"`` (with its machine), or ``"killed"`` (SIGKILL from
            outside, or by the host on demand).
        message: The reason for people. Like all text here it has no control characters except line ends and tabs.
        expected: Whether the end was requested.
        code: The exit code, if there was one.
        signal: The name of the signal that ended it, if one did.
        stderr: The last lines of its standard error.
        remote_types: The types of the exception that the adapter raised at its start.
        remote_traceback: The traceback of that exception.
        differs: Whether it offered other tools than the pool's other workers.
    """

    reason: str
    message: str
    expected: bool = False
    code: int | None = None
    signal: str | None = None
    stderr: str = ""
    remote_types: tuple[str, ...] = ()
    remote_traceback: str = ""
    differs: bool = False

    @property
    def hopeless(self) -> bool:
        """Whether it failed to start for a reason that would repeat."""
        return self.reason == "startup" and (self.differs or _CONFIG_ERROR in self.remote_types)

    def details(self) -> dict[str, object]:
        """Return the ``details`` of a ``WorkerCrashed`` or ``WorkerStartupError``."""
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


#: The largest number of characters of a message; parts of it may be the worker's text.
_LONGEST = 8 * 1024
_SIGNAL_REASONS = {
    signal.SIGSEGV: "segfault",
    signal.SIGBUS: "segfault",
    signal.SIGABRT: "aborted",
    signal.SIGKILL: "killed",
}


def classify(status: ExitStatus, *, out_of_memory: bool = False) -> tuple[str, str, str | None]:
    """Return the reason, a description, and the signal's name of a process that ended by itself.

    Args:
        status: Its exit status.
        out_of_memory: Whether the system has killed processes for lack of memory during its life.
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


def explain(
    reason: str,
    message: str,
    status: ExitStatus | None,
    *,
    out_of_memory: bool,
    killed: bool,
    stopping: bool,
    stderr: str,
    failure: SnakepitError | None,
) -> Exit:
    """Return the end of an incarnation, from the first observed cause and the exit status of its process.

    Args:
        reason, message: The first observed cause.
        status: The exit status; None if there was no process.
        out_of_memory: As in :func:`classify`.
        killed: Whether the host had to kill it.
        stopping: Whether it was being stopped.
        stderr: The last lines of its standard error.
        failure: The error that it reported for not starting.
    """
    code = name = None
    if status is not None:
        seen, words, name = classify(status, out_of_memory=out_of_memory)
        code = status.code
        # A process that did not end by the host's signal had ended by itself before.
        itself = not killed or status.signal not in (None, signal.SIGKILL)
        if (reason == "connection_lost" and itself) or (status.lost and reason in ("connection_lost", "heartbeat")):
            reason, message = seen, words
        elif reason == "startup" and killed:
            # It has reported the reason; the later kill was the host's.
            name = None
    return Exit(
        reason=reason,
        message=printable(message[:_LONGEST]),
        expected=stopping or reason == "stopped",
        code=code,
        signal=name,
        stderr=stderr,
        remote_types=tuple(map(printable, failure.details.get("remote_types", ()))) if failure is not None else (),
        remote_traceback=printable(failure.details.get("remote_traceback", "")) if failure is not None else "",
        differs=failure is not None and bool(failure.details.get("differs")),
    )

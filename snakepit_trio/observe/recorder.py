"""The flight recorder: the last events, and the state of everything, in a dump.

Recording costs almost nothing: the event bus keeps rare events, each pool keeps the ends of requests, and the state is
read when a dump is made.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from snakepit_trio._bulkhead import InternalErrors, operation
from snakepit_trio._interrupts import protected
from snakepit_trio.errors import ConfigError

from .events import EventBus
from .redaction import Redactor

__all__ = ["FlightRecorder", "dump_on_signal"]

_log = logging.getLogger(__name__)

#: The number of dumps kept in a state directory; the oldest are deleted first.
KEPT = 20


class FlightRecorder:
    """A runtime's flight recorder; ``runtime.recorder``.

    Args:
        events: Keeps the last events.
        look: Returns the state as plain values by name.
        place: Returns the directory for dumps, and creates it if necessary.
        redactor: Removes secrets from a dump.
        name: The prefix of the files' names.
    """

    def __init__(
        self,
        events: EventBus,
        look: Callable[[], Mapping[str, Any]],
        place: Callable[[], Path],
        redactor: Redactor,
        name: str,
    ) -> None:
        self._events = events
        self._look = look
        self._place = place
        self._redactor = redactor
        self._name = name
        self._count = 0

    @property
    def _errors(self) -> InternalErrors:
        return self._events.errors

    def __repr__(self) -> str:
        return f"<FlightRecorder events={len(self._events.history)} dumps={self._count}>"

    @operation
    def dump(self) -> dict[str, Any]:
        """Return the last events and the state of every request, worker and slot, as JSON types.

        Times are in seconds; ``time`` is the wall clock's. The dump contains no secrets, arguments or results.
        """
        found: dict[str, Any] = _plain(
            {
                "format": 1,
                "time": time.time(),
                "pid": os.getpid(),
                "python": platform.python_version(),
                "platform": platform.platform(),
                "argv0": os.path.basename(sys.argv[0]) if sys.argv else "",
                **self._redactor.value(self._look()),
                "events": [
                    {
                        "name": event.name,
                        "time": event.time,
                        "measurements": event.measurements,
                        "metadata": self._redactor.value(event.metadata),
                    }
                    for event in self._events.history
                ],
            }
        )
        return found

    @operation
    def write(self, reason: str = "demand", dump: Mapping[str, Any] | None = None) -> Path | None:
        """Write a dump to a new file that only this user can read.

        Args:
            reason: The reason: ``"demand"``, ``"signal"`` or ``"crash"``.
            dump: The dump; None: a new one.

        Returns:
            The file; None if it can't be written, after a warning with the reason.
        """
        try:
            directory = self._place()
            self._count += 1
            path = directory / f"{self._name}-{self._count}-{reason}.json"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w") as file:
                json.dump({"reason": reason, **(self.dump() if dump is None else dump)}, file, indent=1)
                file.write("\n")
            _prune(directory)
        except (OSError, ConfigError) as exc:
            _log.warning("the flight recorder can't write: %s", exc)
            return None
        self._events.emit("recorder.dumped", None, reason=reason, path=str(path))
        _log.warning("the flight recorder has written %s (%s)", path, reason)
        return path


def _prune(directory: Path) -> None:
    found = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in found[:-KEPT]:
        path.unlink(missing_ok=True)


@protected
async def dump_on_signal(recorder: FlightRecorder, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """Write a dump at each SIGUSR1, until cancelled; then the signal's previous handler is restored.

    Raises:
        ConfigError: This is not the main thread, to which alone Python delivers signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            "dump_on_signal: expected a runtime in the main thread",
            details={"source": "code", "key": "dump_on_signal", "expected": "a runtime in the main thread"},
        )
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with anyio.open_signal_receiver(signal.SIGUSR1) as signals:
            task_status.started()
            async for _ in signals:
                recorder.write("signal")
    finally:
        # asyncio restores the default handler, which would end the process.
        signal.signal(signal.SIGUSR1, before)


def _plain(value: Any) -> Any:
    """Convert a value to JSON types; a number that is not finite becomes None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)

"""The flight recorder: what happened last, and how everything stands, when somebody needs to know.

It costs nothing while all is well: the events that come singly are kept by the event bus, the ends of requests by each pool,
and how things stand is looked up when a dump is made.
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

#: Dumps that are kept in a state directory; the oldest go first.
KEPT = 20


class FlightRecorder:
    """A runtime's flight recorder; ``runtime.recorder``.

    Args:
        events: Keeps the last events.
        look: How things stand: plain values by name.
        place: Gives the directory in which dumps are written, and makes it when it is needed.
        redactor: Takes secrets out of a dump.
        name: What the files' names begin with.
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
        """All that it knows, as what JSON has: the last events, and the state of every request, worker and slot.

        Times are in seconds; ``time`` is the wall clock's. There are no secrets in it, and no arguments or results.
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
        """Write a dump to a file of its own that only this user can read.

        Args:
            reason: Why: ``"demand"``, ``"signal"`` or ``"crash"``.
            dump: What to write; None: a new one.

        Returns:
            The file, None when it can't be written; a warning then says why.
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
    """Write a dump at each SIGUSR1, until cancelled; what handled the signal before does so again afterwards.

    Raises:
        ConfigError: This is not the main thread, the only one that Python gives signals to.
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
        # asyncio puts the default in its place, which would end the process.
        signal.signal(signal.SIGUSR1, before)


def _plain(value: Any) -> Any:
    """The value in JSON's own types; what is not finite has no form there and becomes None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)

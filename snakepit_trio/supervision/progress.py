"""Detects by CPU time whether a worker that answers no heartbeat is computing.

Code that holds the GIL, or blocks the event loop of a worker in another language, prevents answers to heartbeats while
it runs. It uses CPU time meanwhile; a stopped or deadlocked process uses almost none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from snakepit_trio.launch.base import WorkerProcess

__all__ = ["Progress"]

#: A process that uses a smaller share of one core is not computing. It may use some, because a thread that waits for the
#: GIL requests it 200 times a second: an interpreter deadlocked with the GIL held used 0.4 %, and 2.6 % with 32 more
#: threads.
_AT_WORK = 0.05


class Progress:
    """Measures the CPU time of one process.

    Args:
        process: The process.
        patience: The longest time for an answer about it, in seconds.
    """

    def __init__(self, process: WorkerProcess, patience: float) -> None:
        self._process = process
        self._patience = patience
        self._last: tuple[float, float] | None = None

    async def look(self) -> float:
        """Return the time, on the event loop's clock, up to which the process is known to have computed; minus infinity if
        it has not.

        That is the time of the previous measurement: the process may have stopped right after it, and a stopped process
        must not be found later than one that answers heartbeats until it stops.
        """
        now, used = anyio.current_time(), None
        with anyio.move_on_after(self._patience):
            used = await self._process.cpu_time()
        last, self._last = self._last, None if used is None else (now, used)
        if last is None or used is None:
            return -math.inf
        since, before = last
        return since if now > since and used - before >= _AT_WORK * (now - since) else -math.inf

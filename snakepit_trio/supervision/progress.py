"""Whether a worker that answers nothing is at work all the same: by the CPU time that its process uses.

Code that holds the GIL, or blocks the event loop of a worker in another language, keeps heartbeats from being answered
for as long as it runs. It uses the CPU meanwhile; a process that is stopped or deadlocked uses next to none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from snakepit_trio.launch.base import WorkerProcess

__all__ = ["Progress"]

#: A process that uses less of one core than this is not at work. It may use some: a thread that waits for the GIL asks for it
#: 200 times a second. An interpreter that was deadlocked with the GIL held used 0.4 % with its own threads, 2.6 % with 32 more.
_AT_WORK = 0.05


class Progress:
    """Looks at the CPU time of one process now and then.

    Args:
        process: The process.
        patience: How long it may take to tell, in seconds.
    """

    def __init__(self, process: WorkerProcess, patience: float) -> None:
        self._process = process
        self._patience = patience
        self._last: tuple[float, float] | None = None

    async def look(self) -> float:
        """Up to when the process is known to have been at work, on the event loop's clock; minus infinity when it is not.

        That is the time of the look before, if the process has been at work since then: it may have stopped right after, and
        a stopped process must not be found later than one that answers heartbeats until it stops.
        """
        now, used = anyio.current_time(), None
        with anyio.move_on_after(self._patience):
            used = await self._process.cpu_time()
        last, self._last = self._last, None if used is None else (now, used)
        if last is None or used is None:
            return -math.inf
        since, before = last
        return since if now > since and used - before >= _AT_WORK * (now - since) else -math.inf

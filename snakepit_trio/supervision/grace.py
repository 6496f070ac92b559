"""The cancelled calls that a worker has not stopped yet, and their deadlines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import anyio

from snakepit_trio._bell import Bell

__all__ = ["Grace"]


class Grace:
    """The cancelled calls of one worker.

    Args:
        held: The calls that the worker holds, in the order in which they were sent.
        changed: Rung when it holds one call less, and when a held call is cancelled.

    Attributes:
        due: The time by which each cancelled call should have stopped, on the event loop's clock.
    """

    def __init__(self, held: Mapping[int, None], changed: Bell) -> None:
        self._held = held
        self._changed = changed
        self.due: dict[int, float] = {}
        self._begun = Bell()

    def __len__(self) -> int:
        return len(self.due)

    def begin(self, call_id: int, due: float) -> None:
        """Record that a call was cancelled and must stop by ``due``, on the event loop's clock."""
        self.due.setdefault(call_id, due)
        self._begun.ring()
        self._changed.ring()

    async def overdue(self) -> None:
        """Wait until a call has not stopped in time."""
        while True:
            while not self.due:
                await self._begun.wait()
            await anyio.sleep_until(min(self.due.values()))
            now = anyio.current_time()
            if any(due <= now for due in self.due.values()):
                return

    async def stopped(self, threads: int, stuck: Callable[[int], object]) -> bool:
        """Wait until only overdue calls may be running, or none; return whether there is none.

        Other calls in the process are not affected, because they have their own deadlines.

        Args:
            threads: The number of calls that the worker runs at once.
            stuck: Called with each overdue call while others run.
        """
        told: set[int] = set()
        while self.due and any(call_id not in self.due for call_id in itertools.islice(self._held, threads)):
            now = anyio.current_time()
            for call_id in [call_id for call_id, due in self.due.items() if due <= now and call_id not in told]:
                told.add(call_id)
                stuck(call_id)
            with anyio.CancelScope(deadline=min((due for due in self.due.values() if due > now), default=math.inf)):
                await self._changed.wait()
        if self.due:
            await anyio.sleep_until(max(self.due.values()))
        return not self.due

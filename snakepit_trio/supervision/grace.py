"""The cancelled calls that a worker has not stopped yet, and how long it may take to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import anyio

from snakepit_trio._bell import Bell

__all__ = ["Grace"]


class Grace:
    """The grace of one worker.

    Args:
        held: The calls that it holds, in the order in which they were sent.
        changed: Rings when it holds one less; is rung when one that it holds is cancelled.

    Attributes:
        due: When each of the cancelled calls should have stopped, by the event loop's clock.
    """

    def __init__(self, held: Mapping[int, None], changed: Bell) -> None:
        self._held = held
        self._changed = changed
        self.due: dict[int, float] = {}
        self._begun = Bell()

    def __len__(self) -> int:
        return len(self.due)

    def begin(self, call_id: int, due: float) -> None:
        """A call is cancelled; it should have stopped by ``due``, by the event loop's clock."""
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
        """Wait until only overdue calls are left among those that may run, or none; returns whether none is.

        Other calls in the same process are not made to pay for it: they have deadlines of their own.

        Args:
            threads: How many calls the worker runs at once.
            stuck: Called with each call that has not stopped in time while others run.
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

"""The deadline task of one pool, which ends each overdue request at its time."""

from __future__ import annotations

import anyio
import anyio.abc

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import protected

from .scheduling.scheduler import Scheduler

__all__ = ["DeadlineTask"]

#: Seconds. The pause after a failure.
_PAUSE = 0.1


class DeadlineTask:
    """Calls :meth:`Scheduler.expire` when something is due."""

    def __init__(self, errors: InternalErrors, pool: str) -> None:
        self._errors = errors
        self._pool = pool
        self._scheduler: Scheduler | None = None
        self._scope: anyio.CancelScope | None = None

    def note_due(self, when: float) -> None:
        """Record a due time, which may be earlier than the known one."""
        scope, scheduler = self._scope, self._scheduler
        if scope is not None and scheduler is not None and when < scope.deadline:
            scope.deadline = scheduler.ledger.arm()

    @protected
    async def run(self, scheduler: Scheduler, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Run until cancelled."""
        self._scheduler = scheduler
        task_status.started()
        while True:
            try:
                with anyio.CancelScope(deadline=scheduler.ledger.arm()) as scope:
                    self._scope = scope
                    await anyio.sleep_forever()
                scheduler.expire(anyio.current_time())
            except Exception as exc:
                self._errors.report(exc, "operation", pool=self._pool)
                # Due entries remain due, and retrying at once would leave no time for other tasks.
                await anyio.sleep(_PAUSE)

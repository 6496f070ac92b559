"""The clock of one pool: ends what is overdue, at the moment it is."""

from __future__ import annotations

import anyio
import anyio.abc

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import protected

from .ledger import Ledger

__all__ = ["Clock"]

#: Seconds before it goes on after a failure.
_PAUSE = 0.1


class Clock:
    """Calls :meth:`Ledger.expire` when something is due."""

    def __init__(self, errors: InternalErrors, pool: str) -> None:
        self._errors = errors
        self._pool = pool
        self._ledger: Ledger | None = None
        self._scope: anyio.CancelScope | None = None

    def note_due(self, when: float) -> None:
        """Something is due at that time, which may be earlier than was known."""
        scope, ledger = self._scope, self._ledger
        if scope is not None and ledger is not None and when < scope.deadline:
            scope.deadline = ledger.next_deadline()

    @protected
    async def run(self, ledger: Ledger, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Run until cancelled."""
        self._ledger = ledger
        task_status.started()
        while True:
            try:
                with anyio.CancelScope(deadline=ledger.next_deadline()) as scope:
                    self._scope = scope
                    await anyio.sleep_forever()
                ledger.expire(anyio.current_time())
            except Exception as exc:
                self._errors.report(exc, "operation", pool=self._pool)
                # What is due is due still, and to try at once and again would leave nobody else any time.
                await anyio.sleep(_PAUSE)

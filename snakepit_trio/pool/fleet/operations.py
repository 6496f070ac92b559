"""What may be done to the workers of a pool while it runs."""

from __future__ import annotations

from snakepit_trio._bulkhead import InternalErrors, operation

from .supervisor import Supervisor

__all__ = ["Operations"]


class Operations:
    """The part of a pool's interface that is about its workers."""

    _supervisor: Supervisor
    _errors: InternalErrors

    @operation
    async def wait_ready(self, n: int | None = None, timeout: float | None = None) -> None:
        """Wait until ``n`` workers are ready, all of them when None.

        A cancellation ends the wait, and nothing else.

        Raises:
            WorkerStartupError: So many can't be, for slots have failed. Also when the time was spent; then it is a TimeoutError,
                too.
            InvalidParameter: An argument is refused.
            PoolClosed: The pool is closing or closed.
        """
        await self._supervisor.wait_ready(n, timeout)

    @operation
    async def resize(self, size: int) -> None:
        """Change how many workers the pool has. Returns when the new ones are ready and the surplus ones have gone.

        Surplus workers finish the calls that they hold, within ``stop_grace``.

        A cancellation ends the wait; the new size stays.

        Raises:
            InvalidParameter: The size is not a positive int.
            WorkerStartupError: A new worker could not start.
        """
        await self._supervisor.resize(size)

    @operation
    async def rolling_restart(self) -> None:
        """Replace every worker by a new one, ``surge`` at a time, each ready before the old one drains; then the spares.

        The new ones may be of another version of the adapter (with ``start_method="spawn"``, whose workers import it anew);
        from the first of them on, its tools are the pool's. A slot that has no worker tries at once.

        After a cancellation the workers whose turn it is are replaced still, and those after them stay.

        Raises:
            WorkerStartupError: A replacement could not start; the workers that were not replaced yet go on.
        """
        await self._supervisor.rolling_restart()

    @operation
    async def recycle(self, worker_id: str) -> bool:
        """Replace one worker: a new one is ready first, then this one drains and stops.

        Returns whether that happened; False when the new one could not start, and this one goes on. One that is being replaced
        already is waited for.

        A cancellation ends the wait; the worker is replaced still.

        Raises:
            InvalidParameter: The pool has no such worker.
        """
        return await self._supervisor.recycle(worker_id)

    @operation
    def cordon(self, worker_id: str, *, cordoned: bool = True) -> None:
        """Give one worker no more calls, or, with ``cordoned=False``, calls again; those that it has go on.

        Raises:
            InvalidParameter: The pool has no such worker that takes calls.
        """
        self._supervisor.dispatch.cordon(worker_id, cordoned=cordoned)

    @operation
    async def drain(self, worker_id: str) -> None:
        """Give one worker no more calls, and wait until it holds none. ``cordon(..., cordoned=False)`` undoes it.

        A cancellation leaves the worker without new calls.

        Raises:
            InvalidParameter: The pool has no such worker that takes calls.
        """
        await self._supervisor.dispatch.drain(worker_id)

    @operation
    def kill_worker(self, worker_id: str) -> None:
        """End one worker at once; its calls fail or run elsewhere as after a crash, and its slot gets another worker.

        Raises:
            InvalidParameter: The pool has no such worker that is alive.
        """
        self._supervisor.kill_worker(worker_id)

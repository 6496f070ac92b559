"""The public operations on a running pool's workers."""

from __future__ import annotations

from snakepit_trio._bulkhead import InternalErrors, operation

from .supervisor import Supervisor

__all__ = ["Operations"]


class Operations:
    """The part of a pool's interface for its workers."""

    supervisor: Supervisor
    _errors: InternalErrors

    @operation
    async def wait_ready(self, n: int | None = None, timeout: float | None = None) -> None:
        """Wait until ``n`` workers are ready; None: all of them.

        A cancellation only ends the wait.

        Raises:
            WorkerStartupError: Not enough workers can become ready, because slots have failed; or the timeout passed,
                and then the error is a TimeoutError too.
            InvalidParameter: An argument is invalid.
            PoolClosed: The pool is closing or closed.
        """
        await self.supervisor.wait_ready(n, timeout)

    @operation
    async def resize(self, size: int) -> None:
        """Change the number of workers. Returns when new workers are ready and surplus ones have ended.

        Surplus workers finish their calls, within ``stop_grace``.

        A cancellation ends the wait; the new size stays.

        Raises:
            InvalidParameter: The size is not a positive int.
            WorkerStartupError: A new worker could not start.
        """
        await self.supervisor.resize(size)

    @operation
    async def rolling_restart(self) -> None:
        """Replace every worker, ``surge`` at a time, each replacement ready before the old worker drains; then the spares.

        The replacements may have another version of the adapter (with ``start_method="spawn"``, whose workers import it
        again); from the first of them on, the pool offers its tools. A slot without a worker tries to start one at
        once.

        After a cancellation the replacements in progress are completed, and the remaining workers stay.

        Raises:
            WorkerStartupError: A replacement could not start; the workers that were not replaced continue.
        """
        await self.supervisor.rolling_restart()

    @operation
    async def recycle(self, worker_id: str) -> bool:
        """Replace one worker: a new one becomes ready first, then the old one drains and stops.

        Returns whether the worker was replaced; False if the new one could not start and the old one continues. A
        replacement already in progress is awaited.

        A cancellation ends the wait; the worker is still replaced.

        Raises:
            InvalidParameter: The pool has no such worker.
        """
        return await self.supervisor.recycle(worker_id)

    @operation
    def cordon(self, worker_id: str, *, cordoned: bool = True) -> None:
        """Stop giving a worker new calls or, with ``cordoned=False``, start again; its running calls continue.

        Raises:
            InvalidParameter: The pool has no such worker that accepts calls.
        """
        self.supervisor.dispatch.cordon(worker_id, cordoned=cordoned)

    @operation
    async def drain(self, worker_id: str) -> None:
        """Stop giving a worker new calls, and wait until it holds none. ``cordon(..., cordoned=False)`` reverts it.

        A cancellation leaves the worker cordoned.

        Raises:
            InvalidParameter: The pool has no such worker that accepts calls.
        """
        await self.supervisor.dispatch.drain(worker_id)

    @operation
    def kill_worker(self, worker_id: str) -> None:
        """Kill one worker at once. Its calls fail or run on other workers, as after a crash, and its slot gets another
        worker.

        Raises:
            InvalidParameter: The pool has no such living worker.
        """
        self.supervisor.kill_worker(worker_id)

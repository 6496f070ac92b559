"""Faults on demand for the workers of a pool, such as the system, the network or a faulty tool may cause."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import anyio
import psutil

if TYPE_CHECKING:
    from snakepit_trio.pool.pool import Pool
    from snakepit_trio.pool.stats import WorkerInfo

__all__ = ["Faults"]

#: Seconds. The period in which a slowed worker runs and is stopped.
_TURN = 0.02


class Faults:
    """Breaks workers of one pool. A worker is chosen by its id; None chooses a busy worker, or a ready one if none is
    busy.

    As a context manager it resumes stopped workers at the end.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._stopped: set[int] = set()

    def __enter__(self) -> Faults:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in list(self._stopped):
            self._let_go(pid)

    def kill(self, worker_id: str | None = None, signal_number: int = signal.SIGKILL) -> WorkerInfo:
        """Send a signal to a worker's process, by default SIGKILL, as the system does when memory runs out. Returns the
        worker.
        """
        worker, pid = self._choose(worker_id)
        os.kill(pid, signal_number)
        return worker

    def stop(self, worker_id: str | None = None) -> WorkerInfo:
        """Stop a worker's process, as if it got no CPU time; it misses its heartbeats."""
        worker, pid = self._choose(worker_id)
        os.kill(pid, signal.SIGSTOP)
        self._stopped.add(pid)
        return worker

    def resume(self, worker_id: str) -> None:
        """Resume a stopped worker. Does nothing if it has ended."""
        for worker in self._pool.workers():
            if worker.id == worker_id and worker.pid is not None:
                self._let_go(worker.pid)

    @asynccontextmanager
    async def slow(self, worker_id: str | None = None, *, share: float = 0.1) -> AsyncIterator[WorkerInfo]:
        """Let a worker run only this share of the time during the block. The worker is resumed when the block ends, also
        by a cancellation.

        Raises:
            ValueError: The share is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"share must be between 0 and 1, not {share!r}")
        worker, pid = self._choose(worker_id)

        async def turns() -> None:
            with contextlib.suppress(ProcessLookupError):
                while True:
                    os.kill(pid, signal.SIGSTOP)
                    self._stopped.add(pid)
                    await anyio.sleep(_TURN * (1 - share))
                    self._let_go(pid)
                    await anyio.sleep(_TURN * share)

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(turns)
            try:
                yield worker
            finally:
                nursery.cancel_scope.cancel()
                self._let_go(pid)

    def drop_connection(self, worker_id: str | None = None) -> WorkerInfo:
        """Cut the connection to a worker; its process lives until the pool notices."""
        found, _ = self._choose(worker_id)
        self._pool.supervisor.drop_connection(found.id)
        return found

    # ---- inside ----------------------------------------------------------------------------------

    def _let_go(self, pid: int) -> None:
        self._stopped.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _choose(self, worker_id: str | None) -> tuple[WorkerInfo, int]:
        """Return a worker and its process id, which is never 0, because a signal to 0 would reach this process's group."""
        ours = {child.pid for child in psutil.Process().children(recursive=True)}
        alive = [
            (worker, worker.pid) for worker in self._pool.workers() if worker.pid in ours and worker.pid is not None
        ]
        if worker_id is None:
            states = [[found for found in alive if found[0].state == state] for state in ("busy", "ready")]
            alive = states[0] or states[1]
        else:
            alive = [found for found in alive if found[0].id == worker_id]
        if not alive:
            raise ProcessLookupError(
                f"pool {self._pool.name!r} has no worker {worker_id or 'that is ready'} of this process"
            )
        return alive[0]

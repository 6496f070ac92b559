"""Scripted workers: a real pool over workers that are coroutines, without processes and sockets, on the test's clock.

Everything above the wire is the production code: the queue, deadlines, cancellation, restarts, sessions. Below it, a
worker's tools are functions of the test that run on its event loop. On Trio's ``MockClock`` hours pass in no time, and
the same seed gives the same history. Faults of workers are drawn from that seed, or caused by the test.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from snakepit_trio._interrupts import interrupt_in, managed
from snakepit_trio.config import PoolConfig, RuntimeConfig
from snakepit_trio.launch.base import Launcher, WorkerSpec
from snakepit_trio.pool.pool import Pool
from snakepit_trio.runtime import assemble
from snakepit_trio.supervision.run import Run
from snakepit_trio.wire import frames
from snakepit_trio.wire.connection import Wire
from snakepit_trio.worker.adapter import options_of

from .scripted_worker import Behaviour, ScriptedWorker

__all__ = ["Behaviour", "ScriptedWorker", "ScriptedWorkers"]

#: No process has such an id, so a signal sent by mistake reaches none.
_FIRST_PID = 1 << 24


# Launcher comes last, because a protocol's `__init__` does not call the next one.
class ScriptedWorkers(Wire, Launcher):
    """The layer below a pool, without processes.

    ``async with ScriptedWorkers({"add": add}).open_pool(size=2) as pool: ...``

    Args:
        tools: Functions, coroutine functions, generators or async generators by name. They receive the arguments by
            name and no ``ToolContext``. ``@sp.tool(idempotent=True)`` on a function has its usual meaning.
        seed: The seed of all random choices.
        chances: ``crash``, ``deaf``, ``late``, ``start_failure``, ``delay``; see :class:`Behaviour`. All are 0 by
            default.

    Attributes:
        alive: The living workers.
        starts: The number of times each call was begun, by its number.
        held: The largest number of calls that one worker held when it got another.
        recalls: The number of calls that were taken back before they had begun.
    """

    name = "scripted"

    def __init__(self, tools: Mapping[str, Callable[..., Any]], *, seed: int = 0, **chances: float) -> None:
        super().__init__()
        self.tools: dict[str, Callable[..., Any]] = dict(tools)
        self.idempotent: set[str] = {
            name for name, function in tools.items() if (found := options_of(function)) is not None and found.idempotent
        }
        self.behaviour: Behaviour = Behaviour(seed, **chances)
        self.pids = _FIRST_PID
        self.alive: dict[ScriptedWorker, None] = {}
        self.starts: Counter[int] = Counter()
        self.held = 0
        self.recalls = 0

    def __repr__(self) -> str:
        return f"<ScriptedWorkers {', '.join(self.tools)} alive={len(self.alive)}>"

    @managed
    async def open_pool(self, **options: Any) -> AsyncIterator[Pool]:
        """Open a pool over these workers. Leaving the block, also by a cancellation, closes the pool.

        Args:
            options: Any field of :class:`~snakepit_trio.PoolConfig` except ``adapter``.
        """
        config = RuntimeConfig(pools=[PoolConfig(adapter="scripted", **{"size": 1, **options})], control=False)
        run = Run("scripted", Path(os.devnull))
        async with assemble(config, run, self, lambda *_: self) as runtime:
            yield runtime.pool(config.pools[0].name)

    def worker(self, worker_id: str) -> ScriptedWorker:
        """Return the worker with this id, as in ``pool.workers()``, to cause its failure: ``crash()``, ``freeze()``,
        ``close()``.

        Raises:
            LookupError: There is no such living worker.
        """
        for worker in self.alive:
            if worker.spec.worker_id == worker_id:
                return worker
        raise LookupError(f"no worker {worker_id!r} is alive")

    def check_start(self, call: frames.Call) -> None:
        """Called when a call begins, after it was counted in :attr:`starts`."""

    # ---- what a launcher and a wire do ---------------------------------------------------------------

    async def __aenter__(self) -> ScriptedWorkers:
        return self

    async def __aexit__(self, *exc: object) -> None:
        # A second interrupt stops an asyncio loop in the middle of its clean-up.
        interrupted = isinstance(exc[1], BaseException) and interrupt_in(exc[1]) is not None
        assert interrupted or not self.alive, "workers were left behind"

    async def start(self, spec: WorkerSpec) -> ScriptedWorker:
        worker = ScriptedWorker(self, spec)
        self.alive[worker] = None
        return worker

    async def connect(self, address: str, *, token: str, max_message: int, tls: object = None, name: str = "") -> Any:
        (found,) = [w for w in self.alive if f"unix:{w.spec.worker_id}" == address]
        if found.status is not None:
            raise OSError("nobody listens")
        return found

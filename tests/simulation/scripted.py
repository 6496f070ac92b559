"""The workers of the simulations: three tools, and everything that can go wrong, drawn from one seed."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import anyio

import snakepit_trio as sp
from snakepit_trio._fair_budget import FairBudget
from snakepit_trio.config import PoolConfig
from snakepit_trio.observe.events import EventBus
from snakepit_trio.pool.pool import Pool
from snakepit_trio.pool.services import PoolServices
from snakepit_trio.testing.scripted import ScriptedWorkers
from snakepit_trio.tools.serving import HostThreads
from snakepit_trio.tools.waits import Waits
from snakepit_trio.wire import frames

__all__ = ["World"]


async def work(**params: Any) -> dict[str, Any]:
    await anyio.sleep(params["seconds"])
    return params


@sp.tool(idempotent=True)
async def again(**params: Any) -> dict[str, Any]:
    return await work(**params)


async def stream(seconds: float, n: int) -> AsyncIterator[int]:
    for number in range(n):
        await anyio.sleep(seconds)
        yield number


CHANCES = {"crash": 0.03, "deaf": 0.1, "late": 0.2, "start_failure": 0.05, "delay": 0.002}


class World(ScriptedWorkers):
    """Everything below the pool: launcher and wire at once."""

    def __init__(self, seed: int, **chances: float) -> None:
        super().__init__({"work": work, "again": again, "stream": stream}, seed=seed, **{**CHANCES, **chances})
        self.events = EventBus()

    def check_start(self, call: frames.Call) -> None:
        assert self.starts[call.id] == 1 or list(self.tools)[call.tool_index - 1] == "again", "run twice"

    def pool(self, **options: Any) -> Pool:
        """A pool over this world, not yet open."""
        config = PoolConfig(adapter="scripted", **options)
        waits = Waits()
        parts = PoolServices(
            run_id="run",
            token="t",
            socket_dir=None,
            backend="trio",
            launcher=self,
            wire=self,
            events=self.events,
            ids=itertools.count(1),
            redact=str,
            registries=lambda _: (),
            waits=waits,
            host_threads=HostThreads(4, waits),
            host_call_bytes=FairBudget(1 << 28, 16),
            starting=anyio.Semaphore(4),
            errors=self.errors,
        )
        return Pool(config, parts, None)  # type: ignore[arg-type]

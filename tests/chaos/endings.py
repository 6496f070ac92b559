"""What holds of requests whatever is done to their workers: each ends once, and the pool's counters know of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

import snakepit_trio as sp

__all__ = ["each_request_ends_once"]

FINAL = {f"request.{word}" for word in ("completed", "failed", "cancelled", "expired", "rejected")}


@asynccontextmanager
async def each_request_ends_once(pool: sp.Pool) -> AsyncIterator[Counter[str]]:
    """Around requests of a pool that has none before: when the block is left, each has had one final event.

    Gives the names of the final events, counted so far.
    """
    finals: Counter[str] = Counter()
    names: Counter[str] = Counter()

    def hear(event: sp.Event) -> None:
        if event.name in FINAL:
            finals[event.metadata["request_id"]] += 1
            names[event.name] += 1

    before = pool.stats()
    assert (before.in_flight, before.queued) == (0, 0)
    async with pool.runtime.events.subscribe("request.", capacity=100_000) as events:
        async with anyio.create_task_group() as nursery:

            async def collect() -> None:
                async for event in events:
                    hear(event)

            nursery.start_soon(collect)
            yield names
            nursery.cancel_scope.cancel()
        # The last ones of it happened before the block was left.
        while (event := events.receive_nowait()) is not None:
            hear(event)
        assert not events.dropped
    stats = pool.stats()
    assert stats.accepted == stats.completed + stats.failed + stats.cancelled + stats.timed_out
    assert (stats.in_flight, stats.queued) == (0, 0)
    twice = [request_id for request_id, count in finals.items() if count != 1]
    assert not twice, f"ended more than once: {twice}"
    assert len(finals) == stats.accepted + stats.rejected - before.accepted - before.rejected
    assert names["request.completed"] == stats.completed - before.completed

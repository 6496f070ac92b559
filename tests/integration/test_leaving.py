"""A worker that gets SIGTERM from elsewhere: what it has begun ends there, all else runs elsewhere, and nobody is cancelled."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from tests.until import appears, until

pytestmark = pytest.mark.anyio

SYNC, ASYNC = "tests.adapters.short", "tests.adapters.short_async"


class Calls:
    """Calls under way, and what came of each."""

    def __init__(self, pool: sp.Pool) -> None:
        self.pool = pool
        self.ended: dict[str, Any] = {}

    async def call(self, name: str, tool: str, params: dict[str, Any], **options: Any) -> None:
        try:
            self.ended[name] = await self.pool.execute(tool, params, **options)
        except sp.SnakepitError as exc:
            self.ended[name] = exc


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        (SYNC, {}),
        (SYNC, {"threads": 2}),
        (SYNC, {"prefetch": 8}),
        (ASYNC, {"worker_backend": "trio"}),
        (ASYNC, {"worker_backend": "asyncio", "prefetch": 8}),
        (ASYNC, {"worker_backend": "trio", "threads": 2}),
    ],
    ids=["lead", "threads", "lead-prefetch", "trio", "asyncio", "trio-threads"],
)
async def test_what_it_has_not_begun_runs_elsewhere(adapter: str, options: dict[str, Any], tmp_path: Path) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    async with sp.open_pool(adapter, size=1, **options) as pool:
        # Short ones first, so that others are sent ahead of their time.
        for n in range(20):
            await pool.execute("echo", {"value": n})
        (old,) = pool.workers()
        calls = Calls(pool)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as nursery:
                held = {"marker": str(begun), "until": str(go_on)}
                nursery.start_soon(calls.call, "held", "hold", held)
                await appears(begun)
                for n in range(10):
                    nursery.start_soon(calls.call, f"before {n}", "echo", {"value": n})
                await anyio.wait_all_tasks_blocked()
                os.kill(old.pid, signal.SIGTERM)
                for n in range(10):
                    nursery.start_soon(calls.call, f"after {n}", "echo", {"value": n})
                # The others end while the one that it had begun still runs there.
                await until(lambda: len(calls.ended) == 20)
                assert "held" not in calls.ended
                go_on.touch()
        assert {name: value for name, value in calls.ended.items() if isinstance(value, sp.SnakepitError)} == {}
        assert len(calls.ended["held"]) == 2
        await until(lambda: len(pool.workers()) == 1)
        assert pool.workers()[0].pid != old.pid
        stats = pool.stats()
        assert (stats.failed, stats.cancelled, stats.late_replies) == (0, 0, 0)


async def test_what_it_stops_is_no_cancellation(tmp_path: Path) -> None:
    """A tool that can be interrupted is, after a while: its call failed with its worker, or runs again if it may."""
    go_on = tmp_path / "go on"
    async with sp.open_pool(ASYNC, size=1, poison_limit=1) as pool:
        calls = Calls(pool)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as nursery:
                for name, idempotent in (("once", False), ("again", True)):
                    params = {"marker": str(tmp_path / name), "until": str(go_on)}
                    nursery.start_soon(
                        lambda name=name, params=params, idempotent=idempotent: calls.call(  # type: ignore[misc]
                            name, "hold_async", params, idempotent=idempotent
                        )
                    )
                    await appears(tmp_path / f"{name}-1")
                    (busy,) = [worker.pid for worker in pool.workers() if worker.in_flight]
                    os.kill(busy, signal.SIGTERM)
                    await until(lambda name=name: name in calls.ended or (tmp_path / f"{name}-2").exists())  # type: ignore[misc]
                go_on.touch()
        assert isinstance(calls.ended["once"], sp.WorkerCrashed)
        assert calls.ended["once"].details["reason"] == "leaving"
        # The call had killed nobody, so it is not poison.
        assert calls.ended["again"] == 2
        assert pool.stats().cancelled == 0


async def test_a_stream_and_a_session(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with sp.open_pool(SYNC, size=2) as pool, pool.session("s", affinity="strict_queue") as session:
        pids = {worker.pid for worker in pool.workers()}
        await session.execute("echo", {"value": 1})
        (tied,) = [worker.pid for worker in pool.workers() if worker.requests]
        with anyio.fail_after(30):
            async with pool.stream("count", {"n": 3, "until": str(gate)}) as chunks:
                assert await anext(chunks) == 0
                for pid in pids:
                    os.kill(pid, signal.SIGTERM)
                # The session's worker is not there any more, and no other may take its place.
                await until(lambda: all(worker.pid != tied or worker.state == "draining" for worker in pool.workers()))
                with pytest.raises(sp.SessionWorkerUnavailable):
                    await session.execute("echo", {"value": 2})
                gate.touch()
                assert [chunk async for chunk in chunks] == [1, 2]
            assert await pool.execute("echo", {"value": 3}) == 3

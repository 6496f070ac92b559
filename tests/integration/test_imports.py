"""What the import of an adapter leaves to the workers that are forked after it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import snakepit_trio as sp

# What happens in workers does not depend on the host's event loop.
pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["trio"])]


async def test_workers_draw_numbers_of_their_own() -> None:
    """Even from generators that the import has seeded: setup is the place for what must be the same in each."""
    async with sp.open_pool("tests.adapters.random_at_import", size=2) as pool:
        drawn: list[dict[str, Any]] = []

        async def draw() -> None:
            drawn.append(await pool.execute("draw"))

        while len({each["pid"] for each in drawn}) < 2:
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(draw)
                nursery.start_soon(draw)
        assert len(drawn[0]) == 14
        for name in drawn[0].keys() - {"pid"}:
            assert len({each[name] for each in drawn}) == len(drawn), name


@pytest.mark.parametrize("start_method", ["fork_server", "spawn"])
async def test_a_lock_that_a_thread_of_the_import_holds_hangs_no_worker(start_method: str) -> None:
    """What waits for it is the tool's business, within the call's time."""
    async with sp.open_pool("tests.adapters.locks_at_import", size=1, threads=2, start_method=start_method) as pool:
        with anyio.fail_after(60):
            [worker] = pool.workers()
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(pool.execute, "say")
                while not pool.stats().in_flight:
                    await anyio.lowlevel.checkpoint()
                await pool.execute("release")
            assert await pool.execute("say") == "said"
            assert [still.pid for still in pool.workers()] == [worker.pid]


@pytest.mark.parametrize("start_method", ["fork_server", "spawn"])
async def test_standard_streams_that_are_none(start_method: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "snakepit_trio.worker")
    async with sp.open_pool("tests.adapters.streams_at_import", size=1, start_method=start_method) as pool:
        assert await pool.execute("speak") == "to nobody\n"
    assert "to the log" in [record.message for record in caplog.records]

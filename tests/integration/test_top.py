"""``snakepit top`` driven by keys, beside a runtime that is really running."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio.supervision.runs import list_runs

pytest.importorskip("textual")
from textual.widgets import DataTable, RichLog, Static

from snakepit_trio.cli.screen import Confirm, Screen, spark

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Textual is written for asyncio."""
    return "asyncio"


@asynccontextmanager
async def watched(state: Path, **options: Any) -> AsyncIterator[tuple[sp.Runtime, Screen, Any]]:
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter="tests.adapters.basic", **options)], state_dir=str(state))
    async with sp.open_runtime(config) as runtime:
        (run,) = list_runs(state)
        screen = Screen(run.control, interval=0.1)
        async with screen.run_test(size=(150, 40)) as pilot:
            await until(pilot, lambda: screen.looks > 1)
            yield runtime, screen, pilot


async def until(pilot: Any, condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await pilot.pause(0.02)


def cells(screen: Screen, id: str) -> list[list[str]]:
    table: DataTable[Any] = screen.query_one(f"#{id}", DataTable)
    return [[str(value) for value in table.get_row_at(row)] for row in range(table.row_count)]


async def test_what_it_shows(tmp_path: Path) -> None:
    async with watched(tmp_path, size=2, cancel_grace=0.1) as (runtime, screen, pilot):
        pool = runtime.pool()
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(pool.execute, "sleep", {"seconds": 60})
            for _ in range(20):
                await pool.execute("add", {"a": 1, "b": 2})
            await until(pilot, lambda: bool(cells(screen, "requests")))
            await until(pilot, lambda: cells(screen, "pools")[0][5] == "20")
            nursery.cancel_scope.cancel()
        title = str(screen.query_one("#title", Static).render())
        assert runtime.run_id in title
        assert f"pid {os.getpid()}" in title
        assert cells(screen, "pools")[0][:2] == ["default", "2/2"]
        assert {row[0] for row in cells(screen, "workers")} >= {worker.id for worker in pool.workers() if worker.pid}
        svg = screen.export_screenshot()
        for text in ("default", "workers", "events", "kill"):
            assert text in svg
        if place := os.environ.get("SNAKEPIT_TEST_SCREENSHOT"):
            Path(place).write_text(svg)


async def test_a_worker_is_killed_after_a_question(tmp_path: Path) -> None:
    async with watched(tmp_path, size=2) as (runtime, screen, pilot):
        pool = runtime.pool()
        first, second = (row[0] for row in cells(screen, "workers"))
        await pilot.press("k")
        await until(pilot, lambda: isinstance(screen.screen, Confirm))
        await pilot.press("n")
        await until(pilot, lambda: not isinstance(screen.screen, Confirm))
        await pilot.press("down", "k")
        await until(pilot, lambda: isinstance(screen.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: second not in {worker.id for worker in pool.workers()})
        assert first in {worker.id for worker in pool.workers()}
        await until(pilot, lambda: second not in {row[0] for row in cells(screen, "workers")})
        log = screen.query_one("#events", RichLog)
        await until(pilot, lambda: any("worker.ready" in line.text for line in log.lines))
        # The cursor stays on a worker that is there.
        await pool.wait_ready()
        await until(pilot, lambda: len(cells(screen, "workers")) == 2)
        before = {worker.id for worker in pool.workers()}
        await pilot.press("r")
        await until(pilot, lambda: isinstance(screen.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: len({worker.id for worker in pool.workers()} - before) == 1)


async def test_it_ends_with_the_runtime(tmp_path: Path) -> None:
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter="tests.adapters.basic", size=1)], state_dir=str(tmp_path))
    async with anyio.create_task_group() as nursery:
        leave = anyio.Event()

        async def serve(*, task_status: Any) -> None:
            async with sp.open_runtime(config):
                task_status.started(list_runs(tmp_path)[0].control)
                await leave.wait()

        screen = Screen(await nursery.start(serve), interval=0.05)
        async with screen.run_test() as pilot:
            await until(pilot, lambda: screen.looks > 0)
            leave.set()
            await until(pilot, lambda: screen.return_code is not None)
        assert screen.return_value == 1


def test_sparks() -> None:
    assert spark([]) == ""
    assert spark([0.0, 0.0]) == "▁▁"
    assert spark([0, None, 1, 2]) == "▁ ▄█"

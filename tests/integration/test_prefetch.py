"""Calls that are sent to a busy worker ahead of their time: still queued, for everybody to see."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

import snakepit_trio as sp
from tests.until import running, until

pytestmark = pytest.mark.anyio

ADAPTER = "tests.adapters.lines"


async def warm(pool: sp.Pool, tool: str = "work") -> None:
    """Let the pool see that the tool is short."""
    for _ in range(20):
        await pool.execute(tool, {})


class Callers:
    """Many calls under way, and what came of each."""

    def __init__(self, pool: sp.Pool) -> None:
        self.pool = pool
        self.ended: dict[str, object] = {}

    async def call(self, name: str, gate: Path | None = None, **options: object) -> None:
        """One call of this name; with a gate, it goes on until that is there."""
        params = {"name": name, "until": str(gate or ""), "dies": name == "dies"}
        try:
            self.ended[name] = await self.pool.execute("work", params, **options)  # type: ignore[arg-type]
        except sp.SnakepitError as exc:
            self.ended[name] = exc


async def test_what_stands_in_line_is_queued(tmp_path: Path) -> None:
    log, gate = str(tmp_path / "log"), tmp_path / "gate"
    async with sp.open_pool(ADAPTER, size=1, max_queue=6, env={"LINES_LOG": log}, queue_timeout=1.0) as pool:
        await warm(pool)
        async with (
            pool.runtime.events.subscribe("request.dispatched") as events,
            anyio.create_task_group() as nursery,
        ):
            callers = Callers(pool)
            nursery.start_soon(callers.call, "long", gate)
            await running(pool)
            for n in range(3):
                nursery.start_soon(callers.call, f"queued {n}")
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(callers.call, "cancelled")
                await until(lambda: pool.stats().queued == 4)
                (worker,) = pool.workers()
                assert (pool.stats().in_flight, worker.in_flight) == (1, 1)
                leaving.cancel_scope.cancel()
            await until(lambda: pool.stats().cancelled == 1)
            assert pool.stats().queued == 3
            nursery.start_soon(callers.call, "first")
            nursery.start_soon(callers.call, "second")
            nursery.start_soon(callers.call, "third")
            await until(lambda: pool.stats().queued == 6)
            with pytest.raises(sp.QueueFull):
                await pool.execute("work", {})
            await until(lambda: len(callers.ended) == 6)
            # They waited longer than they may.
            assert all(isinstance(error, sp.QueueTimeout) for error in callers.ended.values())
            gate.touch()
            await until(lambda: callers.ended.get("long") == "long")
        await warm(pool)
        assert Path(log).read_text().split("\n").count("long") == 1
        assert "queued 0" not in Path(log).read_text()
        assert "cancelled" not in Path(log).read_text()
        # Each of those that began was told of at that moment, and only they.
        dispatched = 0
        while events.receive_nowait() is not None:
            dispatched += 1
        assert dispatched >= 1
        stats = pool.stats()
        assert (stats.timed_out, stats.cancelled, stats.rejected, stats.queued, stats.in_flight) == (6, 1, 1, 0, 0)


async def test_a_long_call_holds_nobody_up(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with sp.open_pool(ADAPTER, size=2) as pool:
        await warm(pool)
        callers = Callers(pool)
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(callers.call, "long", gate)
            await running(pool)
            for n in range(40):
                nursery.start_soon(callers.call, f"{n}")
            await until(lambda: len(callers.ended) == 40)
            assert "long" not in callers.ended
            gate.touch()
        assert all(name == value for name, value in callers.ended.items())


async def test_a_worker_that_comes_takes_over_a_line(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with sp.open_pool(ADAPTER, size=1) as pool:
        await warm(pool)
        callers = Callers(pool)
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(callers.call, "long", gate)
            await running(pool)
            for n in range(5):
                nursery.start_soon(callers.call, f"{n}")
            await until(lambda: pool.stats().queued == 5)
            await pool.resize(2)
            await until(lambda: len(callers.ended) == 5)
            assert "long" not in callers.ended
            gate.touch()


async def test_a_line_outlives_its_worker(tmp_path: Path) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    async with sp.open_pool(ADAPTER, size=1, env={"LINES_LOG": str(log)}) as pool:
        await warm(pool)
        callers = Callers(pool)
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(callers.call, "dies", gate)
            await running(pool)
            for n in range(8):
                nursery.start_soon(callers.call, f"{n}")
                await until(lambda n=n: pool.stats().queued == n + 1)  # type: ignore[misc]
            gate.touch()
            await until(lambda: len(callers.ended) == 9)
        assert isinstance(callers.ended.pop("dies"), sp.WorkerCrashed)
        assert all(name == value for name, value in callers.ended.items())
        # In their old order, each once.
        assert [line for line in log.read_text().split("\n") if line.isdigit()] == [str(n) for n in range(8)]


async def test_priority_overtakes_a_line(tmp_path: Path) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    async with sp.open_pool(ADAPTER, size=1, env={"LINES_LOG": str(log)}) as pool:
        await warm(pool)
        (seats,) = pool._scheduler.ledger.seats
        callers = Callers(pool)
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(callers.call, "long", gate)
            await running(pool)
            for n in range(4):
                nursery.start_soon(callers.call, f"low {n}")
                await until(lambda n=n: pool.stats().queued == n + 1)  # type: ignore[misc]
            nursery.start_soon(lambda: callers.call("high", priority=5))
            await until(lambda: pool.stats().queued == 5)
            # What was ahead of it has been given back.
            await until(lambda: not seats.ahead or next(iter(seats.ahead.values())).priority == 5)
            gate.touch()
        lines = [line for line in log.read_text().split("\n") if line.startswith(("low", "high"))]
        assert lines == ["high", "low 0", "low 1", "low 2", "low 3"]


async def test_a_call_that_does_not_stop_is_ended_whatever_stands_behind_it(tmp_path: Path) -> None:
    async with sp.open_pool(ADAPTER, size=1, cancel_grace=0.2) as pool:
        await warm(pool)
        callers = Callers(pool)
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(lambda: callers.call("deaf", tmp_path / "never", timeout=1.0))
            await running(pool)
            for n in range(4):
                nursery.start_soon(callers.call, f"{n}")
            await until(lambda: len(callers.ended) == 5)
        assert isinstance(callers.ended.pop("deaf"), sp.RequestTimeout)
        assert all(name == value for name, value in callers.ended.items())
        assert pool.stats().restarts == 1


async def test_closing_ends_a_line(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    callers: Callers | None = None

    async def open_when_closing(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with pool.runtime.events.subscribe("pool.closing") as events:
            task_status.started()
            await anext(events)
            gate.touch()

    async with anyio.create_task_group() as nursery:
        async with sp.open_pool(ADAPTER, size=1) as pool:
            await warm(pool)
            callers = Callers(pool)
            await nursery.start(open_when_closing)
            nursery.start_soon(callers.call, "long", gate)
            await running(pool)
            for n in range(4):
                nursery.start_soon(callers.call, f"{n}")
            await until(lambda: pool.stats().queued == 4)
    assert callers.ended.pop("long") == "long"
    assert all(isinstance(error, sp.PoolClosed) for error in callers.ended.values())
    assert len(callers.ended) == 4


@pytest.mark.parametrize("tool", ["work", "async_work"])
async def test_one_at_a_time(tool: str) -> None:
    """A worker with one seat never runs two calls at once, however many it holds."""
    async with sp.open_pool(ADAPTER, size=1) as pool:
        await warm(pool, tool)
        async with anyio.create_task_group() as nursery:
            for _ in range(200):
                nursery.start_soon(pool.execute, tool, {})
        assert await pool.execute("most_at_once") == 1


async def test_it_can_be_switched_off() -> None:
    async with sp.open_pool(ADAPTER, size=1, prefetch=0) as pool:
        await warm(pool)
        async with anyio.create_task_group() as nursery:
            for _ in range(20):
                nursery.start_soon(pool.execute, "work", {})
        assert pool.stats().completed == 40

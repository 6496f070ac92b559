"""Leaving a call or a stream at any moment, by any way: nothing is lost, doubled or left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from tests.until import appears

pytestmark = pytest.mark.anyio

BASIC = "tests.adapters.basic"


def nothing_is_held(pool: sp.Pool) -> bool:
    """Every table of the pool is empty."""
    scheduler = pool._scheduler
    stats = pool.stats()
    ended = stats.completed + stats.failed + stats.cancelled + stats.timed_out
    assert stats.accepted == ended + stats.in_flight + stats.queued
    return (
        not stats.in_flight
        and not stats.queued
        and not any(seats.load for seats in scheduler.ledger.seats)
        and len(scheduler.ledger.deadlines) == 0
        and not any(worker.in_flight for worker in pool.workers())
        and not any(w._grace for slot in pool.supervisor.slots for w in slot.workers)
    )


async def until_nothing_is_held(pool: sp.Pool) -> None:
    while not nothing_is_held(pool):
        await anyio.sleep(0.005)


async def test_a_call_can_be_cancelled_at_every_point_of_its_life() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, cancel_grace=5) as pool:
            (before,) = pool.workers()
            for tool, params in [("add", {"a": 1, "b": 1}), ("sleep", {"seconds": 0.002})]:
                for step in range(30):
                    with anyio.CancelScope() as scope:
                        async with anyio.create_task_group() as nursery:

                            async def cancel_after(steps: int = step, scope: anyio.CancelScope = scope) -> None:
                                for _ in range(steps):
                                    await anyio.sleep(0 if steps < 15 else 0.0002)
                                scope.cancel()

                            nursery.start_soon(cancel_after)
                            await pool.execute(tool, params)
                    # The next call is never mixed up with the one that was left.
                    assert await pool.execute("add", {"a": step, "b": 100}) == step + 100
            await until_nothing_is_held(pool)
            (after,) = pool.workers()
            assert after.pid == before.pid


async def test_a_cancelled_scope_sends_nothing() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await pool.execute("add", {"a": 1, "b": 1})
            with anyio.CancelScope() as scope:
                scope.cancel()
                async with pool.stream("count", {"n": 1}):
                    pass
            assert pool.stats().accepted == 0


@pytest.mark.parametrize("way", ["break", "raise", "cancel", "timeout"])
async def test_leaving_a_stream_at_each_chunk_closes_its_generator(way: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, cancel_grace=5) as pool:
            (before,) = pool.workers()
            for index in range(21):
                marker = tmp_path / str(index)
                params: dict[str, Any] = {"n": 10**9, "marker": str(marker)}
                with anyio.CancelScope() as scope:
                    try:
                        timeout = 0.02 if way == "timeout" else None
                        async with pool.stream("count_and_note", params, timeout=timeout) as chunks:
                            async for chunk in chunks:
                                if chunk == index and way != "timeout":
                                    if way == "break":
                                        break
                                    if way == "raise":
                                        raise LookupError
                                    scope.cancel()
                    except LookupError:
                        assert way == "raise"
                    except sp.RequestTimeout:
                        assert way == "timeout"
                if way in ("break", "raise"):
                    # A block that was not cancelled waits for it.
                    assert marker.exists()
                while not marker.exists() or not marker.read_text():
                    await anyio.sleep(0.001)
                # The generator ran ahead by its credits and not further.
                if way != "timeout":
                    assert index <= int(marker.read_text()) <= index + 200
                if way == "timeout" and index > 3:
                    break
            assert await pool.execute("add", {"a": 1, "b": 1}) == 2
            await until_nothing_is_held(pool)
            (after,) = pool.workers()
            assert before.pid == after.pid


async def test_a_paused_reader_pauses_the_generator(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            async with pool.stream("count_and_note", {"n": 10**9, "marker": str(marker)}) as chunks:
                assert await anext(chunks) == 0
                request = chunks.request
                assert request is not None
                # All that may come without a credit comes; then it is quiet.
                while len(chunks._chunks) < 63:
                    await anyio.sleep(0.001)
                for _ in range(50):
                    await anyio.sleep(0.001)
                    assert len(chunks._chunks) == 63
            assert int(marker.read_text()) == 63


async def test_ten_thousand_cancels_and_timeouts_leave_every_table_empty() -> None:
    with anyio.fail_after(110):
        async with sp.open_pool(BASIC, size=2, max_queue=None, cancel_grace=30, cancel_set_ttl=0.5) as pool:
            await pool.execute("add", {"a": 1, "b": 1})
            descriptors = len(os.listdir("/proc/self/fd"))

            async def cancelled(number: int) -> None:
                with anyio.move_on_after(0.001 * (number % 50)):
                    await pool.execute("sleep", {"seconds": 0.001}, timeout=None)

            async def timed_out(number: int) -> None:
                with anyio.move_on_after(60):
                    try:
                        await pool.execute("sleep", {"seconds": 0.001}, timeout=0.001 * (1 + number % 50))
                    except sp.RequestTimeout:
                        pass

            for _ in range(10):
                async with anyio.create_task_group() as nursery:
                    for number in range(500):
                        nursery.start_soon(cancelled, number)
                        nursery.start_soon(timed_out, number)
            await until_nothing_is_held(pool)
            while pool.stats().cancel_set_size:
                await anyio.sleep(0.02)
            stats = pool.stats()
            assert stats.restarts == 0
            assert stats.cancelled > 1000
            assert stats.timed_out > 1000
            assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_deaf_tool_is_left_to_finish_when_asked_so(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, cancel_grace=0.01, on_cancel="abandon") as pool:
            (before,) = pool.workers()
            marker, gate = tmp_path / "marker", tmp_path / "gate"
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as nursery:
                    nursery.start_soon(pool.execute, "wait_for_file", {"marker": str(marker), "path": str(gate)})
                    await appears(marker)
                    scope.cancel()
            # Its seat is not handed out meanwhile.
            added: list[int] = []

            async def add() -> None:
                added.append(await pool.execute("add", {"a": 1, "b": 1}))

            async with anyio.create_task_group() as nursery:
                nursery.start_soon(add)
                await anyio.sleep(0.2)
                assert not added
                gate.touch()
            assert added == [2]
            (after,) = pool.workers()
            assert after.pid == before.pid
            assert pool.stats().late_replies == 1


async def test_one_of_several_calls_in_a_worker_is_killed_after_the_others_have_ended(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, threads=3, cancel_grace=0.05) as pool:
            results: list[str] = []

            begun, other, gate = tmp_path / "begun", tmp_path / "other", tmp_path / "gate"

            async def neighbour() -> None:
                results.append(await pool.execute("wait_for_file", {"marker": str(begun), "path": str(gate)}))

            async with anyio.create_task_group() as nursery:
                nursery.start_soon(neighbour)
                await appears(begun)
                async with anyio.create_task_group() as deaf:
                    params = {"marker": str(other), "path": str(tmp_path / "never")}
                    deaf.start_soon(pool.execute, "wait_for_file", params)
                    await appears(other)
                    deaf.cancel_scope.cancel()
                # It had its time to stop; the worker goes when its neighbour has ended, and not before.
                while not pool.workers()[0].tainted:
                    await anyio.sleep(0.005)
                gate.touch()
            assert results == ["there"]
            assert await pool.execute("add", {"a": 1, "b": 1}) == 2
            assert pool.stats().restarts == 1


async def test_the_deadline_is_spent_by_waiting_and_seen_by_the_tool() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            found: list[float] = []

            async def waits() -> None:
                said = await pool.execute("whoami", timeout=50)
                found.append(said["deadline"])

            async with anyio.create_task_group() as nursery:
                nursery.start_soon(pool.execute, "sleep", {"seconds": 0.5})
                while pool.stats().in_flight < 1:
                    await anyio.lowlevel.checkpoint()
                nursery.start_soon(waits)
            assert 0 < found[0] < 49.6
            # The caller's own scope counts too, when it is earlier.
            with anyio.fail_after(20):
                said = await pool.execute("whoami", timeout=100)
            assert said["deadline"] < 20


async def test_the_callers_scope_ends_a_call_without_an_error_of_the_pools() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.asynchronous", size=1) as pool:
            for _ in range(20):
                with anyio.move_on_after(0.02) as scope:
                    await pool.execute("wait", {"marker": os.devnull}, timeout=100)
                assert scope.cancelled_caught
            stats = pool.stats()
            assert stats.timed_out + stats.cancelled == 20
            assert stats.restarts == 0


async def test_a_hopeless_request_is_refused_at_once() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, reject_hopeless=True) as pool:
            await pool.execute("sleep", {"seconds": 0.5})
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(pool.execute, "sleep", {"seconds": 0.5})
                while pool.stats().in_flight < 1:
                    await anyio.lowlevel.checkpoint()
                with pytest.raises(sp.QueueTimeout) as caught:
                    await pool.execute("add", {"a": 1, "b": 1}, timeout=0.1)
                assert caught.value.details["hopeless"] is True
                assert await pool.execute("add", {"a": 1, "b": 1}, timeout=20) == 2

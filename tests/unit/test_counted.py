"""What is counted of pools, processes and threads: nothing twice, and nothing for ever."""

from __future__ import annotations

import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import anyio
import numpy as np
import pytest
import trio
import trio.testing

from snakepit_trio.cli import measure
from snakepit_trio.testing import ScriptedWorkers
from snakepit_trio.tools.serving import HostThreads
from snakepit_trio.tools.waits import Waits
from snakepit_trio.wire.codec.tables import is_array


@pytest.mark.anyio
async def test_what_two_workers_more_have_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = cast("list[int]", [])
    process = SimpleNamespace(
        num_fds=lambda: 10 + 7 * len(workers), children=lambda recursive: [None] * (1 + 2 * len(workers)),
        memory_full_info=lambda: SimpleNamespace(uss=100), memory_info=lambda: SimpleNamespace(rss=300), num_threads=lambda: 2,
    )  # fmt: skip

    @asynccontextmanager
    async def pool(adapter: str, size: int) -> AsyncIterator[Any]:
        workers[:] = range(size)

        async def resize(size: int) -> None:
            workers[:] = range(size)

        yield SimpleNamespace(resize=resize, workers=lambda: [SimpleNamespace(pid=pid) for pid in workers])

    monkeypatch.setattr(measure, "_pool", pool)
    monkeypatch.setattr(measure, "pid_room", lambda: 33)
    monkeypatch.setattr(measure, "_memory_room", lambda machine: 1000)
    monkeypatch.setattr(measure.psutil, "Process", lambda pid=None: process)
    for soft, room, fits in ((1017, 1000, 142), (resource.RLIM_INFINITY, None, None)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, soft=soft: (soft, soft))
        found = await measure._scaling("m")
        assert found["per_worker"] == {"memory": 100, "rss": 300, "descriptors": 7, "pids": 3}
        assert found["room"] == {"memory": 1000, "descriptors": room, "pids": 33}
        assert found["fits"].get("descriptors") == fits and (found["workers"], found["limited_by"]) == (10, "memory")
        assert found["first_worker_after"] >= 0 and found["next_worker_after"] >= 0


def test_the_age_of_a_request() -> None:
    async def main() -> None:
        async def hang() -> None:
            await anyio.sleep_forever()

        async with (
            ScriptedWorkers({"hang": hang}).open_pool(queue_timeout=None, heartbeat_interval=60.0) as pool,
            trio.open_nursery() as nursery,
        ):
            for _ in range(3):
                nursery.start_soon(lambda: pool.execute("hang", timeout=100.0))
                await trio.sleep(10)
            found = sorted(pool.snapshot()["requests"], key=lambda one: one["age"])
            assert [round(one["age"]) for one in found] == [10, 20, 30]
            assert [round(one["time_left"]) for one in found] == [90, 80, 70]
            assert [one["phase"] for one in found] == ["queued", "queued", "running"]
            stats = pool.stats()
            assert (stats.in_flight, stats.queued, stats.accepted) == (1, 2, 3)
            nursery.cancel_scope.cancel()
        stats = pool.stats()
        assert (stats.in_flight, stats.queued, stats.cancelled) == (0, 0, 3)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Request:
    """Whose host call it is."""

    chain = permits = ()


class Run:
    """A host call, as the threads see it."""

    def __init__(self) -> None:
        self.refused: Exception | None = None
        self.call = SimpleNamespace(name="t")
        self.request = Request()


@pytest.mark.anyio
async def test_a_thread_that_is_passed_on_to_one_who_leaves_goes_to_the_next() -> None:
    threads, order = HostThreads(1, Waits()), cast("list[str]", [])
    scopes = {name: anyio.CancelScope() for name in ("second", "third")}
    go = anyio.Event()

    async def first() -> None:
        threads._holders.add(cast("Any", "first"))
        await go.wait()
        # At once: it gets the thread, and is cancelled.
        threads._pass_on(cast("Any", "first"))
        scopes["second"].cancel()

    async def follow(name: str) -> None:
        with scopes[name]:
            await threads.run(cast("Any", Run()), lambda: order.append(name))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(first)
            await anyio.wait_all_tasks_blocked()
            for name in scopes:
                nursery.start_soon(follow, name)
                await anyio.wait_all_tasks_blocked()
            assert repr(threads) == "<HostThreads 1 of 1, 2 wait>"
            go.set()
    assert order == ["third"] and repr(threads) == "<HostThreads 0 of 1, 0 wait>"


@pytest.mark.anyio
async def test_one_who_waits_and_leaves_takes_no_thread() -> None:
    threads = HostThreads(1, Waits())
    threads._holders.add(cast("Any", "first"))
    with anyio.move_on_after(0.01) as scope:
        await threads.run(cast("Any", Run()), lambda: None)
    assert scope.cancelled_caught and repr(threads) == "<HostThreads 1 of 1, 0 wait>"


def test_which_values_are_arrays_of_other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("__dlpack__", "__dlpack_device__")
    for given in ((), names[:1], names[1:], names):
        assert is_array(SimpleNamespace(**dict.fromkeys(given))) is (given == names)
    assert is_array(np.zeros(1))
    monkeypatch.delitem(sys.modules, "numpy")
    assert not is_array(SimpleNamespace(**dict.fromkeys(names)))

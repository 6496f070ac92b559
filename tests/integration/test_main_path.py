"""The way of a call through real workers: results, errors, streams, maps, time, and the end."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import snakepit_trio as sp
from tests.until import appears

pytestmark = pytest.mark.anyio

BASIC = "tests.adapters.basic"
ASYNC = "tests.adapters.asynchronous"


def conserved(stats: sp.PoolStats) -> bool:
    ended = stats.completed + stats.failed + stats.cancelled + stats.timed_out
    return stats.accepted == ended + stats.in_flight + stats.queued


async def test_a_result_and_what_the_context_says() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            said = await pool.execute("whoami", timeout=5, metadata={"k": "v"})
            (worker,) = pool.workers()
            assert said["pid"] == worker.pid
            assert said["worker_id"] == worker.id
            assert said["attempt"] == 1
            assert said["metadata"] == {"k": "v"}
            assert 0 < said["deadline"] <= 5
            assert said["session_id"] is None
            assert worker.state == "ready"
            assert worker.pool == "default"


async def test_the_handles_address_is_the_workers_own() -> None:
    with anyio.fail_after(60):
        for transport in ("unix", "tcp"):
            async with sp.open_pool(BASIC, size=1, transport=transport) as pool:
                (worker,) = pool.workers()
                scheme, _, rest = worker.address.partition(":")
                assert scheme == transport
                if scheme == "unix":
                    assert os.path.exists(rest)
                    assert os.stat(os.path.dirname(rest)).st_mode & 0o077 == 0
                assert await pool.execute("add", {"a": 2, "b": 2}) == 4


async def test_a_remote_exception_has_its_type_and_traceback() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            with pytest.raises(sp.remote(ValueError)) as caught:
                await pool.execute("fail", {"message": "boo"})
            error = caught.value
            assert error.remote_type == "ValueError"
            assert error.remote_message == "boo"
            assert "def fail" not in error.message
            assert "basic.py" in error.remote_traceback
            assert "raise ValueError(message)" in error.remote_traceback
            with pytest.raises(sp.remote(ValueError)):
                await pool.execute("fail_with", {"name": "unicode"})
            with pytest.raises(sp.remote("tests.adapters.basic.CustomError")):
                await pool.execute("fail_with", {"name": "custom"})
            with pytest.raises(sp.ToolError) as caught:
                await pool.execute("fail_with", {"name": "exit"})
            assert caught.value.remote_type == "SystemExit"
            assert pool.stats().restarts == 0
            assert await pool.execute("add", {"a": 1, "b": 1}) == 2


@pytest.mark.parametrize(
    ("tool", "params", "error", "path"),
    [
        ("add", {"a": 1}, sp.InvalidParameter, 'params["b"]'),
        ("add", {"a": 1, "b": "x"}, sp.InvalidParameter, 'params["b"]'),
        ("add", {"a": 1, "b": 2, "c": 3}, sp.InvalidParameter, 'params["c"]'),
        ("echo", {"value": [1, {"deep": object()}]}, sp.InvalidParameter, 'params["value"][1]["deep"]'),
        ("echo", {"value": lambda: 0}, sp.InvalidParameter, 'params["value"]'),
    ],
)
async def test_bad_arguments_are_named(tool: str, params: Any, error: type[Exception], path: str) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            with pytest.raises(error) as caught:
                await pool.execute(tool, params)
            assert caught.value.details["path"] == path  # type: ignore[attr-defined]


async def test_unknown_and_misused_tools() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            with pytest.raises(sp.ToolNotFound, match="did you mean 'add'"):
                await pool.execute("ad", {})
            with pytest.raises(sp.StreamingUnsupported, match=r"pool\.stream"):
                await pool.execute("count", {"n": 1})
            with pytest.raises(sp.StreamingUnsupported, match="generator"):
                async with pool.stream("add", {"a": 1, "b": 1}):
                    pass
            with pytest.raises(sp.InvalidPayload, match="object"):
                await pool.execute("unencodable")
            for bad in (-1, float("nan"), "1"):
                with pytest.raises(sp.InvalidParameter):
                    await pool.execute("add", {"a": 1, "b": 1}, timeout=bad)  # type: ignore[arg-type]
            with pytest.raises(sp.PoolNotFound, match="'gpu'"):
                pool.runtime.pool("gpu")
            with pytest.raises(sp.ConfigError, match="did you mean 'size'"):
                async with sp.open_pool(BASIC, sizes=2):
                    pass


async def test_values_cross_the_border_exactly() -> None:
    values = [None, True, 2**70, -1.5, "a\0\U0001f600", b"\0\xff", (1, (2,)), {1, 2}, {"k": [1, 2.0]}, b"x" * 200_000]
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            for value in values:
                found = await pool.execute("echo", {"value": value})
                assert found == value
                assert type(found) is type(value)


async def test_streams() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            async with pool.stream("count", {"n": 1000}) as chunks:
                assert [chunk async for chunk in chunks] == list(range(1000))
            found = []
            with pytest.raises(sp.remote(ValueError)):
                async with pool.stream("count_then_fail", {"n": 3}) as chunks:
                    async for chunk in chunks:
                        found.append(chunk)  # noqa: PERF401
            assert found == [0, 1, 2]
            assert conserved(pool.stats())


async def test_what_a_consumer_raises_leaves_unwrapped() -> None:
    class Mine(Exception):
        pass

    with anyio.fail_after(60):
        with pytest.raises(Mine):
            async with sp.open_pool(BASIC, size=1) as pool, pool.stream("count", {"n": 10**9}) as chunks:
                async for _ in chunks:
                    raise Mine
        with pytest.raises(Mine):
            async with sp.open_pool(BASIC, size=1) as pool:
                await pool.execute("add", {"a": 1, "b": 1})
                raise Mine
        with pytest.raises(KeyboardInterrupt):
            async with sp.open_pool(BASIC, size=1):
                raise KeyboardInterrupt


async def test_map() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=2) as pool:
            inputs = [{"a": n, "b": n} for n in range(100)]
            async with pool.map("add", inputs) as results:
                assert [result async for result in results] == [2 * n for n in range(100)]
            async with pool.map("add", iter(inputs), ordered=False, limit=7) as results:
                found = {}
                async for result in results:
                    found[results.index] = result
            assert found == {n: 2 * n for n in range(100)}
            bad = [{"a": 1, "b": 1}, {"a": 1, "b": "x"}, {"a": object(), "b": 1}, {"a": 2, "b": 2}]
            async with pool.map("add", bad, return_errors=True) as results:
                listed = [result async for result in results]
            assert listed[0] == 2
            assert isinstance(listed[1], sp.InvalidParameter)
            assert isinstance(listed[2], sp.InvalidParameter)
            assert listed[3] == 4
            with pytest.raises(sp.InvalidParameter):
                async with pool.map("add", bad) as results:
                    async for _ in results:
                        pass
            async with pool.map("sleep", ({"seconds": 60} for _ in range(10))) as results:
                with anyio.move_on_after(0.05):
                    await anext(results)
            assert pool.stats().in_flight == 0
            assert conserved(pool.stats())


async def test_cancel_reaches_a_sync_tool(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            (before,) = pool.workers()
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(pool.execute, "wait_for_cancel", {"marker": str(marker)})
                await appears(marker)
                nursery.cancel_scope.cancel()
            await appears(tmp_path / "started.cancelled")
            assert await pool.execute("add", {"a": 1, "b": 1}) == 2
            (after,) = pool.workers()
            assert after.pid == before.pid
            stats = pool.stats()
            assert stats.cancelled == 1
            assert conserved(stats)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_cancel_reaches_an_async_tool(backend: str, tmp_path: Path) -> None:
    marker = tmp_path / "started"
    with anyio.fail_after(60):
        async with sp.open_pool(ASYNC, size=1, worker_backend=backend) as pool:
            assert await pool.execute("which") == backend
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(pool.execute, "wait", {"marker": str(marker)})
                await appears(marker)
                nursery.cancel_scope.cancel()
            await appears(tmp_path / "started.cancelled")
            assert await pool.execute("sync_add", {"a": 1, "b": 1}) == 2
            assert pool.stats().restarts == 0


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_async_streams(backend: str, tmp_path: Path) -> None:
    marker = tmp_path / "closed"
    with anyio.fail_after(60):
        async with sp.open_pool(ASYNC, size=1, worker_backend=backend) as pool:
            async with pool.stream("count", {"n": 500}) as chunks:
                assert [chunk async for chunk in chunks] == list(range(500))
            async with pool.stream("count_and_note", {"marker": str(marker)}) as chunks:
                async for chunk in chunks:
                    if chunk == 5:
                        break
            assert marker.exists()
            assert pool.stats().restarts == 0


async def test_a_timeout_comes_in_time_and_costs_the_worker_of_a_deaf_tool() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, cancel_grace=0.1) as pool:
            (before,) = pool.workers()
            started = anyio.current_time()
            with pytest.raises(sp.RequestTimeout) as caught:
                await pool.execute("sleep", {"seconds": 60}, timeout=0.5)
            assert caught.value.details["phase"] == "running"
            assert anyio.current_time() - started < 5
            # The next call waits for the replacement, not for the sleeper.
            assert await pool.execute("add", {"a": 1, "b": 1}) == 2
            (after,) = pool.workers()
            assert after.pid != before.pid
            with pytest.raises(TimeoutError), anyio.fail_after(0.05):
                await pool.execute("sleep", {"seconds": 60})
            assert conserved(pool.stats())


async def test_the_queue_is_bounded_in_number_and_time(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, max_queue=1, queue_timeout=0.2) as pool:
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(pool.execute, "wait_for_cancel", {"marker": str(marker)})
                await appears(marker)

                async def waits() -> None:
                    with pytest.raises(sp.QueueTimeout):
                        await pool.execute("add", {"a": 1, "b": 1})

                nursery.start_soon(waits)
                while pool.stats().queued < 1:
                    await anyio.lowlevel.checkpoint()
                with pytest.raises(sp.QueueFull):
                    await pool.execute("add", {"a": 1, "b": 1})
                with anyio.fail_after(30):
                    while pool.stats().timed_out < 1:
                        await anyio.sleep(0.01)
                with pytest.raises(sp.RequestTimeout) as caught:
                    await pool.execute("add", {"a": 1, "b": 1}, timeout=0.05)
                assert caught.value.details["phase"] == "queued"
                nursery.cancel_scope.cancel()
            stats = pool.stats()
            assert stats.rejected == 1
            assert stats.timed_out == 2
            assert conserved(stats)


async def test_a_killed_worker_is_replaced_and_its_call_fails_with_the_reason() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=2) as pool:
            with pytest.raises(sp.WorkerCrashed) as caught:
                await pool.execute("die")
            assert caught.value.details["signal"] == "SIGKILL"
            with pytest.raises(sp.WorkerCrashed) as caught:
                await pool.execute("leave", {"code": 7})
            assert caught.value.details["exit_code"] == 7
            assert "last words" in caught.value.details["stderr"]
            with pytest.raises(sp.WorkerCrashed) as caught:
                await pool.execute("die", {"with_signal": 11})
            assert caught.value.details["reason"] == "segfault"
            await pool.wait_ready(timeout=20)
            stats = pool.stats()
            assert stats.restarts == 3
            assert stats.ready == 2
            assert await pool.execute("add", {"a": 1, "b": 1}) == 2


async def test_an_idempotent_call_is_run_again_and_a_poisonous_one_is_not(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=2) as pool:
            assert await pool.execute("die_once", {"marker": str(tmp_path / "died")})
            with pytest.raises(sp.WorkerCrashed) as caught:
                await pool.execute("die_always")
            assert caught.value.details["poison"] is True
            assert caught.value.details["deaths"] == 2


async def test_no_worker_can_start(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        with pytest.raises(sp.WorkerStartupError) as caught:
            async with sp.open_pool("tests.adapters.broken_setup", size=2):
                pass
        assert caught.value.details["pool"] == "default"
        assert "RuntimeError: no such device" in caught.value.message
        with pytest.raises(sp.WorkerStartupError, match="ModuleNotFoundError"):
            async with sp.open_pool("tests.adapters.not_there"):
                pass
        pools = [
            sp.PoolConfig(name="a", adapter="tests.adapters.not_there", size=1),
            sp.PoolConfig(name="b", adapter="tests.adapters.broken_setup", size=1),
        ]
        with pytest.raises(
            sp.WorkerStartupError, match=r"pool 'a': .*ModuleNotFoundError.*; pool 'b': .*no such device"
        ) as caught:
            async with sp.open_runtime(sp.RuntimeConfig(pools=pools)):
                pass
        assert caught.value.details["pool"] == "a"
        assert {name: "reason" in details for name, details in caught.value.details["pools"].items()} == {
            "a": True,
            "b": True,
        }
        with pytest.raises(sp.WorkerStartupError, match="was not ready within"):
            async with sp.open_pool("tests.adapters.hanging_setup", size=1, startup_timeout=0.5):
                pass


async def test_one_pool_of_several_fails_alone() -> None:
    config = sp.RuntimeConfig(
        pools=[
            sp.PoolConfig(adapter=BASIC, size=1),
            sp.PoolConfig(name="broken", adapter="tests.adapters.broken_setup", size=2),
        ]
    )
    with anyio.fail_after(60):
        async with sp.open_runtime(config) as runtime:
            assert await runtime.pool("default").execute("add", {"a": 1, "b": 1}) == 2
            with pytest.raises(sp.WorkerStartupError, match="no such device"):
                await runtime.pool("broken").execute("add", {"a": 1, "b": 1})
            # At once, though each of its slots has attempts left.
            assert [worker.state for worker in runtime.pool("broken").workers()] == ["failed"] * 2
            assert all("no such device" in worker.reason for worker in runtime.pool("broken").workers())
            with pytest.raises(sp.WorkerStartupError, match="no such device"):
                await runtime.pool("broken").wait_ready()


async def test_threads_really_overlap(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, profile="thread", threads=10) as pool:
            gate = tmp_path / "gate"
            markers = [tmp_path / str(number) for number in range(10)]
            async with anyio.create_task_group() as nursery:
                for marker in markers:
                    nursery.start_soon(pool.execute, "wait_for_file", {"marker": str(marker), "path": str(gate)})
                # None ends before all have begun.
                for marker in markers:
                    await appears(marker)
                gate.touch()


async def test_closing_lets_running_calls_end_and_ends_the_rest(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    outcomes: list[object] = []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as nursery:
            async with sp.open_pool(BASIC, size=1) as pool:

                async def call(tool: str, params: dict[str, Any]) -> None:
                    try:
                        outcomes.append(await pool.execute(tool, params))
                    except sp.SnakepitError as exc:
                        outcomes.append(type(exc))

                nursery.start_soon(call, "sleep", {"seconds": 0.3})
                while pool.stats().in_flight < 1:
                    await anyio.lowlevel.checkpoint()
                nursery.start_soon(call, "wait_for_cancel", {"marker": str(marker)})
                while pool.stats().queued < 1:
                    await anyio.lowlevel.checkpoint()
        assert sorted(map(str, outcomes)) == sorted(["slept", str(sp.PoolClosed)])
        with pytest.raises(sp.PoolClosed):
            await pool.execute("add", {"a": 1, "b": 1})


async def test_a_cancelled_body_leaves_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    with anyio.fail_after(60):
        with anyio.CancelScope() as scope:
            async with sp.open_pool(BASIC, size=2) as pool, anyio.create_task_group() as nursery:
                nursery.start_soon(pool.execute, "sleep", {"seconds": 60})
                nursery.start_soon(pool.execute, "wait_for_cancel", {"marker": str(marker)})
                await appears(marker)
                scope.cancel()
        assert scope.cancelled_caught


async def test_opening_can_be_cancelled() -> None:
    for delay in (0, 0.01, 0.05, 0.1, 0.2, 0.3):
        with anyio.move_on_after(delay):
            async with sp.open_pool(BASIC, size=2):
                await anyio.sleep_forever()


async def test_worker_output_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "snakepit_trio.worker")
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            await pool.execute("say", {"text": "hello; password=hunter2"})
            (worker,) = pool.workers()
            while not any("hello" in record.message for record in caplog.records):
                await anyio.sleep(0.001)
    (record,) = [record for record in caplog.records if "hello" in record.message]
    assert record.worker_id == worker.id  # type: ignore[attr-defined]
    assert "hunter2" not in caplog.text


async def test_events_tell_each_request_and_its_one_end() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool:
            async with pool.runtime.events.subscribe("request.") as events:
                await pool.execute("add", {"a": 1, "b": 1})
                with pytest.raises(sp.ToolError):
                    await pool.execute("fail", {"message": "x"})
                seen = []
                while (event := events.receive_nowait()) is not None:
                    seen.append(event)
            assert [event.name for event in seen] == [
                "request.dispatched",
                "request.completed",
                "request.dispatched",
                "request.failed",
            ]
            assert all(event.metadata["pool"] == "default" for event in seen)
            assert seen[0].measurements["queue_wait"] >= 0
            assert seen[0].metadata["request_id"] == seen[1].metadata["request_id"]


async def test_descriptors_stay_flat_over_many_calls() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=2) as pool:
            await pool.execute("add", {"a": 1, "b": 1})
            before = len(os.listdir("/proc/self/fd"))

            async def many() -> None:
                for n in range(250):
                    assert await pool.execute("add", {"a": n, "b": 1}) == n + 1

            async with anyio.create_task_group() as nursery:
                for _ in range(40):
                    nursery.start_soon(many)
            assert len(os.listdir("/proc/self/fd")) == before
            assert pool.stats().completed == 10_001


async def test_execute_many() -> None:
    async with sp.open_pool("tests.adapters.basic", size=2) as pool:
        assert await pool.execute_many("add", []) == []
        inputs = [{"a": n, "b": 1} for n in range(500)]
        assert await pool.execute_many("add", iter(inputs)) == [n + 1 for n in range(500)]

        async def later() -> AsyncIterator[dict[str, int]]:
            for params in inputs[:5]:
                await anyio.lowlevel.checkpoint()
                yield params

        assert await pool.execute_many("add", later()) == [1, 2, 3, 4, 5]
        found = await pool.execute_many("add", [{"a": 1, "b": 2}, {"a": "x"}], return_errors=True)
        assert found[0] == 3 and isinstance(found[1], sp.InvalidParameter)
        with pytest.raises(sp.InvalidParameter):
            await pool.execute_many("add", [{"a": 1, "b": 2}, {"a": "x"}, *inputs])
        with pytest.raises(sp.InvalidParameter, match="limit"):
            await pool.execute_many("add", inputs, limit=0)
        with anyio.move_on_after(0.2) as scope:
            await pool.execute_many("sleep", ({"seconds": 0.05} for _ in itertools.count()))
        assert scope.cancelled_caught
        stats = pool.stats()
        assert (stats.in_flight, stats.queued) == (0, 0)


async def test_a_map_gives_each_result_though_the_next_input_is_yet_to_come() -> None:
    answers: list[int] = []
    asked = anyio.Event()

    async def inputs() -> AsyncIterator[dict[str, int]]:
        yield {"a": 0, "b": 0}
        await asked.wait()
        for n in range(1, 4):
            yield {"a": n, "b": n}

    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.basic", size=1) as pool, pool.map("add", inputs()) as results:
            async for result in results:
                answers.append(result)
                asked.set()
    assert answers == [0, 2, 4, 6]


async def test_what_the_inputs_of_a_map_raise_and_what_its_reader_raises() -> None:
    async def inputs() -> AsyncIterator[dict[str, int]]:
        yield {"a": 1, "b": 1}
        raise KeyError("of the source")

    async def endless() -> AsyncIterator[dict[str, int]]:
        while True:
            yield {"a": 1, "b": 1}

    async with sp.open_pool("tests.adapters.basic", size=1) as pool:
        with pytest.raises(KeyError, match="of the source"):
            async with pool.map("add", inputs()) as results:
                async for _ in results:
                    pass
        with pytest.raises(LookupError, match="mine"):
            async with pool.map("add", endless()) as results:
                async for _ in results:
                    raise LookupError("mine")
        with pytest.raises(sp.InvalidParameter):
            async with pool.map("add", [7]) as results:  # type: ignore[list-item]
                async for _ in results:
                    pass
        assert await pool.execute("add", {"a": 1, "b": 1}) == 2

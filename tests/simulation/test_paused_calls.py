"""Paused calls, and streams that are left: each ends for the same causes as a running call, and its session lives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio.testing import ScriptedWorkers


async def nap(seconds: float = 0.0) -> float:
    await anyio.sleep(seconds)
    return seconds


async def fail() -> None:
    raise OSError("no")


async def count(n: int, pause: float = 0.0) -> AsyncIterator[int]:
    for number in range(n):
        yield number
        await anyio.sleep(pause)


def simulate(body: Callable[[sp.Pool], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        tools = {"nap": nap, "fail": fail, "count": count}
        async with ScriptedWorkers(tools) as workers, workers.open_pool(**{"prefetch": 0, **options}) as pool:
            with trio.fail_after(500):
                await body(pool)
            assert not len(pool.calls.paused)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=True)


LIMIT = {"limits": [sp.LimitConfig(concurrency=1)], "size": 2}
RATE = {"limits": [sp.LimitConfig(rate=0.1, burst=1)], "size": 2}
RETRY = {"size": 2, "retry": sp.RetryConfig(delay=20, max_delay=20, on=["OSError"])}
WAITS = pytest.mark.parametrize(
    ("options", "tool"), [(LIMIT, "nap"), (RATE, "nap"), (RETRY, "fail")], ids=["permit", "token", "retry"]
)


async def occupy(pool: sp.Pool, nursery: trio.Nursery) -> None:
    """The next call has to wait for the limit that there is."""

    async def call() -> None:
        try:
            await pool.execute("nap", {"seconds": 9.0})
        except sp.PoolClosed:
            pass

    nursery.start_soon(call)
    await trio.sleep(0.01)


@WAITS
def test_a_wait_hears_of_the_close_of_its_pool(options: dict[str, Any], tool: str) -> None:
    async def body(pool: sp.Pool) -> None:
        async with trio.open_nursery() as nursery:
            await occupy(pool, nursery)

            async def call() -> None:
                with pytest.raises(sp.PoolClosed):
                    await pool.execute(tool, idempotent=True)
                ended.append(trio.current_time())

            ended: list[float] = []
            nursery.start_soon(call)
            await trio.sleep(1)
            closed_at = trio.current_time()
            await pool.aclose(drain=False)
        assert ended == pytest.approx([closed_at], abs=0.01)
        with pytest.raises(sp.PoolClosed):
            await pool.execute(tool)

    simulate(body, **options)


@WAITS
def test_a_wait_hears_of_the_end_of_its_session(options: dict[str, Any], tool: str) -> None:
    async def body(pool: sp.Pool) -> None:
        async with trio.open_nursery() as nursery:
            await occupy(pool, nursery)

            async def call(session: sp.Session) -> None:
                with pytest.raises(sp.RequestCancelled, match="closed while"):
                    await session.execute(tool, idempotent=True)
                ended.append(trio.current_time())

            for by_hand in (True, False):
                ended: list[float] = []
                async with pool.session("s") as session:
                    nursery.start_soon(call, session)
                    await trio.sleep(1)
                    if by_hand:
                        await session.close()
                    closed_at = trio.current_time()
                await trio.sleep(0.1)
                assert ended == pytest.approx([closed_at], abs=0.01)

    simulate(body, **options)


@WAITS
def test_a_wait_hears_of_its_deadline(options: dict[str, Any], tool: str) -> None:
    async def body(pool: sp.Pool) -> None:
        async with trio.open_nursery() as nursery:
            await occupy(pool, nursery)
            began = trio.current_time()
            with pytest.raises(sp.SnakepitError) as caught:
                await pool.execute(tool, idempotent=True, timeout=2)
            # What surely can't be in time is told at once.
            assert trio.current_time() - began == pytest.approx(2 if options is LIMIT else 0, abs=0.01)
            assert isinstance(caught.value, sp.ToolError if tool == "fail" else sp.RequestTimeout)

    simulate(body, **options)


@WAITS
def test_a_session_lives_while_its_call_waits(options: dict[str, Any], tool: str) -> None:
    async def body(pool: sp.Pool) -> None:
        async with trio.open_nursery() as nursery:
            await occupy(pool, nursery)
            async with pool.session("s", ttl=0.5, detach=True) as session:
                try:
                    await session.execute(tool, idempotent=True)
                except sp.ToolError:
                    assert trio.current_time() > 30
                assert trio.current_time() > 8
                await session.put("k", 1)
                await trio.sleep(1)
                with pytest.raises(sp.SessionNotFound):
                    await session.get("k")

    simulate(body, **options)


def test_a_rebuild_runs_within_its_calls_time_and_ends_with_its_session_and_its_pool() -> None:
    async def body(pool: sp.Pool) -> None:
        begun: list[float] = []
        ended: list[float] = []

        async def rebuild(session: sp.Session) -> None:
            begun.append(trio.current_time())
            try:
                await trio.sleep_forever()
            finally:
                ended.append(trio.current_time())

        async def lose(session: sp.Session) -> None:
            await session.execute("nap")
            assert session.worker_id is not None
            pool.kill_worker(session.worker_id)
            await trio.sleep(0.5)

        async def expect(error: type[sp.SnakepitError], call: Callable[[], Awaitable[Any]]) -> None:
            with pytest.raises(error) as caught:
                await call()
            if error is sp.RequestTimeout:
                assert "rebuilt" in caught.value.message
                assert caught.value.details["phase"] == "queued"

        async with trio.open_nursery() as nursery:
            async with pool.session("s", affinity="strict_queue", on_lost=rebuild, ttl=1.0) as session:
                await lose(session)
                start = trio.current_time()

                async def stream() -> None:
                    async with session.stream("count", {"n": 1}, timeout=5):
                        pass

                async with trio.open_nursery() as callers:
                    callers.start_soon(expect, sp.RequestTimeout, lambda: session.execute("nap", timeout=3))
                    await trio.sleep(0.1)
                    # This one waits for that rebuild, and tries it itself when that has failed.
                    callers.start_soon(expect, sp.RequestTimeout, stream)
                assert begun == pytest.approx([start, start + 3])
                assert ended == pytest.approx([start + 3, start + 5.1])
                nursery.start_soon(expect, sp.RequestCancelled, lambda: session.execute("nap"))
                await trio.sleep(3)
                closed_at = trio.current_time()
            await trio.sleep(0.1)
            assert ended[-1] == pytest.approx(closed_at)

            async with pool.session("t", affinity="strict_queue", on_lost=rebuild) as session:
                await lose(session)
                nursery.start_soon(expect, sp.PoolClosed, lambda: session.execute("nap"))
                await trio.sleep(1)
                closed_at = trio.current_time()
                await pool.aclose(drain=True)
                await trio.sleep(0.1)
                assert ended[-1] == pytest.approx(closed_at, abs=0.01)

    simulate(body, size=2)


def test_a_plain_function_may_rebuild_and_a_rebuild_spends_the_time_of_its_call() -> None:
    async def body(pool: sp.Pool) -> None:
        rebuilt: list[str] = []

        async def slowly(session: sp.Session) -> None:
            await session.execute("nap")
            await trio.sleep(2)

        for on_lost in (lambda session: rebuilt.append(session.id), slowly):
            async with pool.session("s", affinity="strict_queue", on_lost=on_lost) as session:
                await session.execute("nap")
                assert session.worker_id is not None
                pool.kill_worker(session.worker_id)
                await trio.sleep(0.5)
                if on_lost is slowly:
                    start = trio.current_time()
                    with pytest.raises(sp.RequestTimeout):
                        await session.execute("nap", {"seconds": 5}, timeout=3)
                    assert trio.current_time() - start == pytest.approx(3, abs=0.05)
                else:
                    await session.execute("nap")
        assert rebuilt == ["s"]

    simulate(body, size=2)


def test_what_a_rebuild_starts_elsewhere_waits_for_it() -> None:
    async def body(pool: sp.Pool) -> None:
        order: list[str] = []

        async with trio.open_nursery() as application:

            async def elsewhere(session: sp.Session) -> None:
                await session.execute("nap")
                order.append("elsewhere")

            async def rebuild(session: sp.Session) -> None:
                application.start_soon(elsewhere, session)
                async with trio.open_nursery() as own:
                    own.start_soon(session.execute, "nap")
                await trio.sleep(1)
                order.append("rebuilt")

            async with pool.session("s", affinity="strict_queue", on_lost=rebuild) as session:
                await session.execute("nap")
                assert session.worker_id is not None
                pool.kill_worker(session.worker_id)
                await trio.sleep(0.5)
                # The application's nursery is another task's.
                async with trio.open_nursery() as callers:
                    callers.start_soon(session.execute, "nap")
                await trio.sleep(0.1)
        assert order == ["rebuilt", "elsewhere"]

    simulate(body, size=2)


# ---- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("waiting", [True, False])
def test_a_stream_that_is_left_tells_its_reader(waiting: bool) -> None:
    async def body(pool: sp.Pool) -> None:
        found: list[object] = []

        async def read(chunks: Any) -> None:
            with pytest.raises(anyio.ClosedResourceError):
                while True:
                    found.append(await anext(chunks))

        async with trio.open_nursery() as nursery:
            async with pool.stream("count", {"n": 10**9, "pause": 1.0 if waiting else 0.0}) as chunks:
                nursery.start_soon(read, chunks)
                # It waits for a chunk, or lets others have their turn while there are some.
                while len(found) < (1 if waiting else 20):
                    await trio.lowlevel.checkpoint()
                if waiting:
                    await trio.sleep(0.5)
            with pytest.raises(anyio.ClosedResourceError):
                await anext(chunks)
        async with pool.stream("count", {"n": 1}) as chunks:
            assert [chunk async for chunk in chunks] == [0]
        # What has come to its end stays there.
        assert [chunk async for chunk in chunks] == []

    simulate(body)


def test_a_circuit_counts_how_a_stream_ends_and_not_what_its_block_raises() -> None:
    async def body(pool: sp.Pool) -> None:
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: pool.execute("fail"),
            lambda: pool.execute("nap", {"seconds": 9}, timeout=0.1),
        ]
        for _ in range(5):
            for call in calls:
                with pytest.raises(sp.SnakepitError):
                    async with pool.stream("count", {"n": 3}) as chunks:
                        await anext(chunks)
                        await call()
            with pytest.raises(KeyError):
                async with pool.stream("count", {"n": 3}) as chunks:
                    raise KeyError
            # The time is spent by the reader.
            with pytest.raises(sp.RequestTimeout):
                async with pool.stream("count", {"n": 1000}, timeout=0.5) as chunks:
                    await anext(chunks)
                    await trio.sleep(1)
                    await anext(chunks)
            with trio.move_on_after(0.1):
                async with pool.stream("count", {"n": 3, "pause": 9.0}) as chunks:
                    async for _ in chunks:
                        pass
        assert pool.circuits()["count"] == "closed"
        assert pool.circuits()["fail"] == pool.circuits()["nap"] == "open"
        for _ in range(9):
            with pytest.raises((sp.RequestTimeout, sp.CircuitOpen)):
                async with pool.stream("count", {"n": 3, "pause": 9.0}, timeout=1.0) as chunks:
                    async for _ in chunks:
                        pass
        assert pool.circuits()["count"] == "open"
        # A probe that is left early, after a chunk, has succeeded; one that is cancelled says nothing.
        await trio.sleep(10)
        with trio.move_on_after(0.1):
            async with pool.stream("count", {"n": 3, "pause": 9.0}) as chunks:
                await trio.sleep_forever()
        assert pool.circuits()["count"] == "half_open"
        async with pool.stream("count", {"n": 3, "pause": 9.0}) as chunks:
            await anext(chunks)
        assert pool.circuits()["count"] == "closed"

    circuit = sp.CircuitConfig(min_calls=4, open_for=10, failure_rate=0.3, window=1000.0)
    simulate(body, size=3, circuit=circuit)

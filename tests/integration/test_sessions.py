"""Sessions through real workers: affinity under load and under death, resuming, closing, values, quotas."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import snakepit_trio as sp
from tests.redis_server import redis_server

pytestmark = pytest.mark.anyio

NESTED = "tests.adapters.nested"


def config(size: int = 2, pool: dict[str, Any] | None = None, **options: Any) -> sp.RuntimeConfig:
    return sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=NESTED, size=size, **(pool or {}))], **options)


async def kill(pool: sp.Pool, worker_id: str) -> None:
    """Kill a worker, and wait until its pool knows."""
    (pid,) = [worker.pid for worker in pool.workers() if worker.id == worker_id]
    async with pool.runtime.events.subscribe("worker.gone") as events:
        os.kill(pid, signal.SIGKILL)
        async for event in events:
            if event.metadata["worker_id"] == worker_id:
                return


# ---- affinity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("affinity", ["strict_queue", "strict_fail_fast", "hint"])
async def test_affinity_under_load(affinity: str) -> None:
    """Many sessions and many calls at once, the first ones together: strict ones see one worker each."""
    with anyio.fail_after(60):
        async with sp.open_runtime(config(3, {"queue_timeout": None})) as runtime:
            pool = runtime.pool()
            seen: dict[str, Counter[str]] = {}
            busy = 0

            async def one(session: sp.Session) -> None:
                nonlocal busy
                try:
                    said = await session.execute("who")
                except sp.WorkerBusy:
                    busy += 1
                else:
                    assert said["session"] == session.id
                    seen.setdefault(session.id, Counter())[said["worker"]] += 1

            async def user(name: str) -> None:
                async with pool.session(name, affinity=affinity) as session, anyio.create_task_group() as calls:
                    for _ in range(20):
                        calls.start_soon(one, session)

            async with anyio.create_task_group() as nursery:
                for number in range(12):
                    nursery.start_soon(user, f"s{number}")
            done = sum(sum(counts.values()) for counts in seen.values())
            if affinity == "hint":
                assert done == 240
            else:
                assert all(len(counts) == 1 for counts in seen.values())
                assert len({next(iter(counts)) for counts in seen.values()}) == 3
                assert done + busy == 240
                assert (busy > 0) == (affinity == "strict_fail_fast")
            assert runtime.pool().stats().in_flight == 0


async def test_a_lost_worker_by_affinity_and_on_lost() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(2)) as runtime:
            pool = runtime.pool()
            rebuilt: list[str] = []

            async def rebuild(session: sp.Session) -> None:
                rebuilt.append(session.id)
                await session.execute("keep", {"key": session.id, "value": await session.get("value")})

            async with (
                pool.session("error", affinity="strict_queue") as error,
                pool.session("fast", affinity="strict_fail_fast") as fast,
                pool.session("rebind", affinity="strict_queue", on_lost="rebind") as rebind,
                pool.session("rebuild", affinity="strict_queue", on_lost=rebuild) as again,
                pool.session("hint") as hint,
            ):
                sessions = [error, fast, rebind, again, hint]
                await again.put("value", 7)
                for session in sessions:
                    assert session.worker_id is None
                    await session.execute("keep", {"key": session.id, "value": 7})
                    assert session.worker_id is not None
                workers = {session.worker_id for session in sessions}
                # All are idle when it happens: the tie is lost all the same.
                for worker_id in [worker.id for worker in pool.workers()]:
                    await kill(pool, worker_id)
                await pool.wait_ready()
                for session in (error, fast):
                    for _ in range(2):
                        with pytest.raises(sp.SessionWorkerUnavailable) as raised:
                            await session.execute("who")
                        assert raised.value.details["session"] == session.id
                    assert session.worker_id is None
                assert await rebind.execute("kept", {"key": "rebind"}) is None
                results: list[Any] = []

                async def look() -> None:
                    results.append(await again.execute("kept", {"key": "rebuild"}))

                async with anyio.create_task_group() as nursery:
                    for _ in range(5):
                        nursery.start_soon(look)
                # Each waited until it was rebuilt, once.
                assert results == [7] * 5
                assert rebuilt == ["rebuild"]
                assert (await hint.execute("who"))["worker"] not in workers
                # The values are the host's, and stay.
                assert await again.get("value") == 7


async def test_calls_that_run_or_wait_for_a_strict_worker_that_dies() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(2)) as runtime:
            pool = runtime.pool()
            outcomes: Counter[str] = Counter()

            async with pool.session("s", affinity="strict_queue") as session:

                async def call(tool: str, **params: Any) -> None:
                    try:
                        await session.execute(tool, params)
                    except sp.SnakepitError as exc:
                        outcomes[type(exc).__name__] += 1
                    else:
                        outcomes["done"] += 1

                await session.execute("who")
                async with anyio.create_task_group() as nursery:
                    nursery.start_soon(lambda: call("nap_sync", seconds=30))
                    while pool.stats().in_flight < 1:
                        await anyio.sleep(0.001)
                    for _ in range(5):
                        nursery.start_soon(lambda: call("who"))
                    while pool.stats().queued < 5:
                        await anyio.sleep(0.001)
                    worker = session.worker_id
                    assert worker is not None
                    await kill(pool, worker)
            assert outcomes == {"SessionWorkerUnavailable": 6}
            stats = pool.stats()
            assert stats.queued == stats.in_flight == 0


async def test_a_strict_session_whose_worker_is_replaced_in_order() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(1)) as runtime:
            pool = runtime.pool()
            async with (
                pool.session("s", affinity="strict_queue") as session,
                pool.session("r", affinity="strict_queue", on_lost="rebind") as other,
            ):
                first = await session.execute("who")
                await other.execute("who")
                assert await pool.recycle(first["worker"])
                with pytest.raises(sp.SessionWorkerUnavailable):
                    await session.execute("who")
                assert (await other.execute("who"))["worker"] != first["worker"]


async def test_death_under_load_harms_only_its_own() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(3, {"queue_timeout": None})) as runtime:
            pool = runtime.pool()
            outcomes: Counter[str] = Counter()
            stop = anyio.Event()

            async def user(number: int) -> None:
                options: Any = {"affinity": "strict_queue", "on_lost": "rebind"}
                async with pool.session(f"u{number}", **options) as session:
                    while not stop.is_set():
                        try:
                            await session.execute("who")
                            outcomes["done"] += 1
                        except sp.SessionWorkerUnavailable:
                            outcomes["lost"] += 1

            async with anyio.create_task_group() as nursery:
                for number in range(9):
                    nursery.start_soon(user, number)
                for _ in range(3):
                    reached = outcomes["done"] + 200
                    while outcomes["done"] < reached:
                        await anyio.sleep(0.001)
                    await kill(pool, next(w.id for w in pool.workers() if w.state in ("ready", "busy")))
                await pool.wait_ready()
                reached = outcomes["done"] + 200
                while outcomes["done"] < reached:
                    await anyio.sleep(0.001)
                stop.set()
            stats = pool.stats()
            assert stats.accepted == stats.completed + stats.failed
            assert outcomes["done"] == stats.completed
            assert await runtime.sessions.list() == ()


async def test_a_rebuild_that_fails_is_tried_again() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(1)) as runtime:
            pool = runtime.pool()
            attempts = 0

            async def rebuild(session: sp.Session) -> None:
                nonlocal attempts
                attempts += 1
                async with anyio.create_task_group() as nursery:
                    nursery.start_soon(session.execute, "who")
                if attempts == 1:
                    raise KeyError("not yet")

            async with pool.session("s", affinity="strict_queue", on_lost=rebuild) as session:
                worker = (await session.execute("who"))["worker"]
                await kill(pool, worker)
                with pytest.raises(KeyError, match="not yet"):
                    await session.execute("who")
                await session.execute("who")
            assert attempts == 2


# ---- life ------------------------------------------------------------------------------------------


async def test_a_session_ends_with_its_block() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(1)) as runtime:
            pool = runtime.pool()
            outcomes: list[BaseException] = []
            async with anyio.create_task_group() as nursery:
                async with pool.session(metadata={"user": "me"}) as session:
                    assert (await runtime.sessions.get(session.id)).metadata == {"user": "me"}
                    await session.put("k", "v")
                    await runtime.programs.put("p", b"code", session.id)

                    async def call() -> None:
                        with pytest.raises(sp.RequestCancelled) as raised:
                            await session.execute("nap", {"seconds": 30})
                        outcomes.append(raised.value)

                    nursery.start_soon(call)
                    while pool.stats().in_flight < 1:
                        await anyio.sleep(0.001)
            assert len(outcomes) == 1
            for use in (session.execute("who"), session.put("k", 1), session.get("k"), session.keys(), session.info()):
                with pytest.raises(sp.SessionNotFound):
                    await use
            with pytest.raises(sp.SessionNotFound):
                async with session.stream("numbers", {"n": 1}):
                    pass
            with pytest.raises(sp.SessionNotFound):
                await runtime.sessions.get(session.id)
            assert await runtime.programs.get("p", session.id) is None
            await session.close()
            assert not await runtime.sessions.close(session.id)

            # What the body raises leaves as it is.
            with pytest.raises(KeyError):
                async with pool.session():
                    raise KeyError("mine")
            assert await runtime.sessions.list() == ()
            with anyio.move_on_after(0.05) as scope:
                async with pool.session():
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert await runtime.sessions.list() == ()


async def test_detached_ones_are_resumed_by_id() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(3)) as runtime:
            pool = runtime.pool()
            async with pool.session("s", affinity="strict_queue", detach=True) as session:
                await session.put("k", {"a": 1})
                session.tools.register("mine", lambda: "mine")
                worker = (await session.execute("who"))["worker"]
            async with pool.session("s", affinity="strict_queue", detach=True, ttl=1) as session:
                assert session.ttl == 3600
                assert await session.get("k") == {"a": 1}
                assert (await session.execute("who"))["worker"] == worker
                assert await session.execute("ask", {"name": "mine", "params": {}}) == "mine"
            async with pool.session("s") as first:
                async with pool.session("s") as second:
                    await second.put("k", 2)
                assert await first.get("k") == 2
            with pytest.raises(sp.SessionNotFound):
                await runtime.sessions.get("s")


async def test_an_idle_one_expires_by_the_clock_and_a_running_call_keeps_it() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(1)) as runtime:
            pool = runtime.pool()
            async with runtime.events.subscribe("session.expired") as events:
                async with pool.session("s", ttl=1.0) as session:
                    await session.execute("nap", {"seconds": 1.3})
                    await session.put("k", 1)
                    async with session.stream("numbers", {"n": 13, "pause": 0.1}) as chunks:
                        assert [chunk async for chunk in chunks] == list(range(13))
                    assert await session.get("k") == 1
                    # Nobody does anything, and it is gone.
                    async for event in events:
                        assert event.metadata["session_id"] == "s"
                        break
                    assert "ended" in repr(session)
                    with pytest.raises(sp.SessionNotFound):
                        await session.execute("who")
                # Another one of that name is another one.
                async with pool.session("s") as session:
                    assert await session.get("k") is None


async def test_quotas_and_an_idempotent_open() -> None:
    quotas = {"max_sessions": 2, "session_max_entries": 2, "session_max_bytes": 100}
    with anyio.fail_after(60):
        async with sp.open_runtime(config(1, **quotas)) as runtime:
            pool = runtime.pool()
            async with pool.session("a") as a, pool.session("b", ttl=1.5, detach=True):
                with pytest.raises(sp.QuotaExceeded) as raised:
                    async with pool.session("c"):
                        pass
                assert raised.value.details == {"quota": "max_sessions", "limit": 2, "used": 2, "asked": 1}
                async with pool.session("a"):
                    pass
                assert await a.put("k", 1)
                assert await a.put("l", 2)
                with pytest.raises(sp.QuotaExceeded) as raised:
                    await a.put("m", 3)
                assert raised.value.details["quota"] == "session_max_entries"
                with pytest.raises(sp.QuotaExceeded) as raised:
                    await a.put("k", "x" * 200)
                details = raised.value.details
                assert (details["quota"], details["limit"], details["session"]) == ("session_max_bytes", 100, "a")
                assert details["used"] + details["asked"] > 100
                assert (await a.get("k"), await a.get("l"), await a.keys()) == (1, 2, ("k", "l"))
            # The detached one has lived long enough by itself.
            while await runtime.sessions.list():
                await anyio.sleep(0.01)
            async with pool.session("c"), pool.session("d"):
                pass


async def test_values_are_copied_and_compared() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(1)) as runtime:
            async with runtime.pool().session() as session:
                value = {"list": [1]}
                await session.put("k", value)
                value["list"].append(2)
                (await session.get("k"))["list"].append(3)
                assert await session.get("k") == {"list": [1]}
                assert await session.get("none") is None
                assert await session.get("none", default=5) == 5
                await session.put("null", None)
                assert await session.get("null", default=5) is None
                array = np.arange(100_000)
                await session.put("array", array)
                array[0] = 9
                np.testing.assert_array_equal(await session.get("array"), np.arange(100_000))

                version = (await session.get_versioned("k"))[1]
                assert await session.put("k", 1, expect=0) is None
                newer = await session.put("k", 1, expect=version)
                assert newer is not None and newer > version
                assert await session.put("k", 2, expect=version) is None
                # A value that was deleted and made anew is another one.
                assert await session.delete("k")
                assert not await session.delete("k")
                assert await session.put("k", 1, expect=0) != newer
                await session.put("n", 0)
                async with anyio.create_task_group() as nursery:
                    for _ in range(20):
                        nursery.start_soon(session.update, "n", lambda n: n + 1)
                assert await session.get("n") == 20
                for bad in ("", "x" * 300, "a\nb", 5, None):
                    with pytest.raises(sp.InvalidParameter):
                        await session.put(bad, 1)  # type: ignore[arg-type]
                with pytest.raises(sp.InvalidParameter) as raised:
                    await session.put("k", {"a": object()})
                assert raised.value.details["path"] == 'value["a"]'


async def test_what_is_refused_at_the_door() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(1)) as runtime:
            pool = runtime.pool()
            for options in (
                {"affinity": "sticky"}, {"on_lost": "ignore"}, {"ttl": 0}, {"ttl": -1}, {"ttl": True}, {"ttl": "1"},
                {"ttl": float("nan")}, {"metadata": {"k": 1}}, {"id": ""}, {"id": 5}, {"id": "a\nb"},
            ):  # fmt: skip
                with pytest.raises(sp.InvalidParameter) as raised:
                    async with pool.session(**options):  # type: ignore[arg-type]
                        pass
                assert next(iter(options)) in raised.value.details["path"]
            assert await runtime.sessions.list() == ()
        with pytest.raises(sp.PoolClosed):
            async with pool.session():
                pass


# ---- programs, and stores that last ----------------------------------------------------------------


async def test_programs() -> None:
    quotas = {"max_programs": 3, "program_max_bytes": 10, "programs_max_bytes": 15, "program_ttl": 30}
    with anyio.fail_after(60):
        async with sp.open_runtime(config(1, **quotas)) as runtime:
            programs = runtime.programs
            await programs.put("a", bytearray(b"123"))
            assert await programs.get("a") == b"123"
            assert await programs.get("none") is None
            assert await programs.get("none", default=b"") == b""
            await programs.put("a", b"1234567890")
            for name, data, quota in (("b", b"x" * 11, "program_max_bytes"), ("b", b"x" * 6, "programs_max_bytes")):
                with pytest.raises(sp.QuotaExceeded) as raised:
                    await programs.put(name, data)
                assert raised.value.details["quota"] == quota
                assert raised.value.details["asked"] == len(data)
            await programs.put("b", b"", ttl=1.0)
            await programs.put("c", b"")
            with pytest.raises(sp.QuotaExceeded):
                await programs.put("d", b"")
            (info,) = [info for info in await programs.list() if info.name == "b"]
            assert 0 < info.expires_in <= 1.0
            await anyio.sleep(info.expires_in)
            assert [info.name for info in await programs.list()] == ["a", "c"]
            await programs.put("d", b"")
            with pytest.raises(sp.SessionNotFound):
                await programs.put("e", b"", session="nobody")
            assert await programs.delete("a")
            assert not await programs.delete("a")
            async with runtime.pool().session("s") as session:
                await programs.put("mine", b"1", session=session.id)
                assert await programs.get("mine") is None
                assert await programs.get("mine", "s") == b"1"
                assert [info.name for info in await programs.list("s")] == ["mine"]
            assert await programs.get("mine", "s") is None
            for bad in ({"name": 5, "data": b""}, {"name": "x", "data": "text"}, {"name": "x", "data": b"", "ttl": -1}):
                with pytest.raises(sp.InvalidParameter):
                    await programs.put(**bad)  # type: ignore[arg-type]


async def test_a_file_survives_a_restart(tmp_path: Path) -> None:
    options: Any = {"store": f"sqlite:{tmp_path}/store.db"}
    with anyio.fail_after(60):
        async with sp.open_runtime(config(1, **options)) as runtime:
            async with runtime.pool().session("s", detach=True) as session:
                await session.put("k", [1, b"x"])
            async with runtime.pool().session("gone"):
                pass
            await runtime.programs.put("p", b"code")
        async with sp.open_runtime(config(1, **options)) as runtime:
            assert [info.id for info in await runtime.sessions.list()] == ["s"]
            async with runtime.pool().session("s", affinity="strict_queue") as session:
                assert await session.get("k") == [1, b"x"]
                await session.execute("who")
            assert await runtime.programs.get("p") == b"code"


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_two_runtimes_share_a_store(kind: str, tmp_path: Path) -> None:
    with nullcontext(f"sqlite:{tmp_path}/store.db") if kind == "sqlite" else redis_server() as store:
        await share(store)


async def share(store: str) -> None:
    options: Any = {"store": store, "max_sessions": 2}
    with anyio.fail_after(60):
        async with sp.open_runtime(config(1, **options)) as one, sp.open_runtime(config(1, **options)) as two:
            async with one.pool().session("s", detach=True, ttl=1.0) as here:
                await here.put("k", 1)
                async with two.pool().session("s", detach=True) as there:
                    assert there.ttl == 1.0
                    await there.put("k", 2)
                    assert await here.get("k") == 2

                    async def call() -> None:
                        await here.execute("nap", {"seconds": 2.0})

                    async with anyio.create_task_group() as nursery:
                        nursery.start_soon(call)
                        await anyio.sleep(1.6)
                        # A call at one of them keeps it alive for the other.
                        assert (await two.sessions.get("s")).entries == 1
                    await there.close()
                async with two.pool().session("s", detach=True) as anew:
                    await anew.put("k", 3)
                    with pytest.raises(sp.SessionNotFound):
                        await here.get("k")
                    with pytest.raises(sp.SessionNotFound):
                        await here.execute("nap", {"seconds": 0.0})
                    await here.close()
                    assert await anew.get("k") == 3
                    await anew.close()
            # What they may have is counted together.
            async with one.pool().session("x"), two.pool().session("y"):
                for runtime in (one, two):
                    with pytest.raises(sp.QuotaExceeded):
                        async with runtime.pool().session("z"):
                            pass
            await one.programs.put("p", b"code", ttl=30)
            assert await two.programs.get("p") == b"code"
            assert await two.programs.delete("p")


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_odd_rows_of_a_store_are_in_nobodys_way(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(60), contextlib.ExitStack() as stack:
        url = f"sqlite:{tmp_path}/store.db" if kind == "sqlite" else stack.enter_context(redis_server())
        pools = [sp.PoolConfig(adapter="tests.adapters.basic", size=1)]
        async with sp.open_runtime(sp.RuntimeConfig(store=url, pools=pools)) as runtime:
            pool = runtime.pool()
            for id in ("odd", "sound"):
                async with pool.session(id, ttl=0.5, detach=True) as session:
                    await session.put("k", [1, 2, 3])
            await runtime.programs.put("p", b"program")
            if kind == "sqlite":
                with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as db, db:
                    db.execute("UPDATE sessions SET expires = 'abc' WHERE id = 'odd'")
                    db.execute("UPDATE programs SET data = 'abc'")
            else:
                import redis

                with contextlib.closing(redis.Redis.from_url(url)) as client:
                    client.zadd("{snakepit}:expiry", {b"\xff\xfe": 1})
                    client.delete("{snakepit}:sessions")
                    client.set("{snakepit}:sessions", "abc")
                    client.hset("{snakepit}:s:odd", "used", "abc")
                    client.delete("{snakepit}:p:")
                    client.set("{snakepit}:p:", "abc")
            async with runtime.events.subscribe("session.expired") as events:
                # The sound one goes in its time, and calls without sessions never notice.
                while (await events.__anext__()).metadata["session_id"] != "sound":
                    pass
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            assert await runtime.sessions.list() == ()
            assert await runtime.programs.get("p") is None
            await runtime.programs.put("p", b"again")
            assert await runtime.programs.get("p") == b"again"
            # It is as if there were none: a new one of that id is a whole one.
            async with pool.session("odd", ttl=5.0) as session:
                assert await session.get("k") is None
                await session.put("k", "new")
                assert await session.get("k") == "new"
            assert not runtime.internal_errors.counts
    told = [record.message for record in caplog.records if "makes no sense" in record.message]
    assert told and len(told) == len(set(told))


async def test_a_store_that_can_not_be_used(tmp_path: Path) -> None:
    for store in (f"sqlite:{tmp_path}/no/such/dir/store.db", "redis://secret:pass@127.0.0.1:1/0"):
        with pytest.raises(sp.ConfigError) as raised:
            async with sp.open_runtime(config(1, store=store)):
                pass
        assert raised.value.details["key"] == "store"
        assert "pass@" not in str(raised.value)

"""One pass through everything that a runtime does, short and the same each time, and what went otherwise in it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import attrs

import snakepit_trio as sp
from snakepit_trio.policies.options import CircuitConfig, HedgeConfig, LimitConfig, RetryConfig
from tests.injection.sightings import tells_of_it
from tests.injection.tracing import Injected, depth_of

__all__ = [
    "Record",
    "Trouble",
    "config",
    "fails",
    "in_host",
    "leaves",
    "limited",
    "register_host_tools",
    "same",
    "step",
    "twenty",
    "undo",
]

#: Seconds after which a step is stranded; the longest of them takes a tenth of that.
LIMIT = 8.0


def config(store: str = "memory") -> sp.RuntimeConfig:
    """Small pools of each kind; whatever is bounded by time is short."""
    common: dict[str, Any] = {
        "queue_timeout": None, "cancel_grace": 0.1, "stop_grace": 1.0, "heartbeat_interval": 0.25, "heartbeat_misses": 6,
        "health_interval": 0.4, "restart_limit": 10_000, "backoff_base": 0.01, "backoff_max": 0.05, "startup_timeout": 5.0,
    }  # fmt: skip
    return sp.RuntimeConfig(
        pools=[
            sp.PoolConfig(name="main", adapter="tests.injection.tools:Sync", size=2, spares=1, **common),
            sp.PoolConfig(
                name="tasks", adapter="tests.injection.tasks", size=1, threads=2, max_size=2, target_wait=0.05,
                scale_down_after=0.3, retry=RetryConfig(attempts=2, delay=0.001, jitter=0.0, on=("ConnectionError",)),
                circuit=CircuitConfig(min_calls=100_000), limits=[LimitConfig(tools=("rest",), concurrency=1)],
                hedge=HedgeConfig(delay=0.02, tools=("slow_first",), max_share=1.0), **common,
            ),
            sp.PoolConfig(name="by", adapter="tests.injection.tools:Sync", size=1, **common),
        ],
        bridge=sp.BridgeConfig(),
        metrics=sp.MetricsConfig(),
        # Each pass makes three dumps.
        recorder_size=50,
        store=store,
    )  # fmt: skip


# ---- what went otherwise ---------------------------------------------------------------------------


@attrs.frozen
class Trouble:
    """A step that did not go as it does without an injection.

    Attributes:
        group: Whose it was: a pool's direct calls, or a client.
        step: Its name.
        code: An error's code; ``"raw"``: the exception itself; ``"stranded"``: it did not end; ``"wrong"``: another result.
        text: More of it.
        depth: For a raw one, the package's functions that it went through.
    """

    group: str
    step: str
    code: str
    text: str
    depth: int = 0


class Record:
    """The troubles of one pass.

    Attributes:
        told: A caller was told of the exception that was raised.
    """

    def __init__(self) -> None:
        self.troubles: list[Trouble] = []
        self.told = False

    def add(self, group: str, step: str, exc: BaseException) -> None:
        self.told = self.told or tells_of_it(exc)
        for leaf in leaves(exc):
            code = "wrong"
            if isinstance(leaf, TimeoutError):
                code = "stranded"
            elif isinstance(leaf, Injected):
                code = "raw"
            elif isinstance(leaf, sp.SnakepitError):
                code = leaf.code
            text = f"{type(leaf).__name__}: {leaf}"[:600]
            self.troubles.append(Trouble(group, step, code, text, depth_of(leaf)))


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """What a group comes down to, or the exception itself."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves(inner)
    else:
        yield exc


async def step(record: Record, group: str, function: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run one step and note how it ends."""
    try:
        with anyio.fail_after(LIMIT):
            await function(*args)
    except Exception as exc:
        record.add(group, function.__name__, exc)


@contextmanager
def fails(*codes: str) -> Iterator[None]:
    """The block raises an error of one of these codes, and not because of the injection."""
    try:
        yield
    except sp.SnakepitError as exc:
        if exc.code not in codes or tells_of_it(exc):
            raise
    else:
        raise AssertionError(f"nothing failed with {codes}")


def same(found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{found!r:.100} instead of {wanted!r:.100}")


# ---- host tools ------------------------------------------------------------------------------------


def register_host_tools(runtime: sp.Runtime) -> None:
    async def double(value: int) -> int:
        return 2 * value

    def double_sync(value: int) -> int:
        return 2 * value

    async def broken() -> None:
        raise LookupError("as asked")

    async def slow(seconds: float) -> None:
        await anyio.sleep(seconds)

    async def nested(value: int) -> int:
        found: int = await runtime.pool("by").execute("add", {"a": value, "b": value})
        return found

    runtime.tools.register_many(
        {"double": double, "double_sync": double_sync, "broken": broken, "slow": slow, "nested": nested}
    )


# ---- the host's steps ------------------------------------------------------------------------------


async def plain_calls(pool: sp.Pool) -> None:
    for n in range(4):
        same(await pool.execute("add", {"a": n, "b": 1}, metadata={"k": "v"}), n + 1)
    same(await pool.execute("add", {"a": 1, "b": 1}, priority=3, timeout=4.0), 2)


async def large_values(pool: sp.Pool) -> None:
    value = {"data": b"\1" * 300_000, "more": [1, 2.5, None, "x" * 1000]}
    for _ in range(3):
        same(await pool.execute("echo", {"value": value}), value)


async def refused(pool: sp.Pool) -> None:
    with fails("tool_error"):
        await pool.execute("fail", {"message": "as asked"})
    with fails("tool_not_found"):
        await pool.execute("nothing")
    with fails("invalid_parameter"):
        await pool.execute("add", {"a": 1, "b": object()})
    with fails("invalid_parameter"):
        await pool.execute("add", {"a": 1, "b": "x"})
    with fails("streaming_unsupported"):
        await pool.execute("count", {"n": 1})


async def many_at_once(pool: sp.Pool) -> None:
    async def one(n: int) -> None:
        same(await pool.execute("add", {"a": n, "b": n}), 2 * n)

    async with anyio.create_task_group() as nursery:
        for n in range(40):
            nursery.start_soon(one, n)


async def streams(pool: sp.Pool) -> None:
    async with pool.stream("count", {"n": 150}) as chunks:
        same([chunk async for chunk in chunks], list(range(150)))
    async with pool.stream("count", {"n": 10_000}) as chunks:
        async for chunk in chunks:
            if chunk == 5:
                break
    async with pool.stream("blocks", {"n": 4, "size": 200_000}) as chunks:
        same([len(chunk) async for chunk in chunks], [200_000] * 4)
    with fails("tool_error"):
        async with pool.stream("count_then_fail", {"n": 3}) as chunks:
            async for _ in chunks:
                pass


async def maps(pool: sp.Pool) -> None:
    async with pool.map("add", ({"a": n, "b": 1} for n in range(60))) as results:
        same([result async for result in results], list(range(1, 61)))
    inputs = [{"a": 1, "b": 1}, {"a": 1}, {"a": 2, "b": 2}]
    async with pool.map("add", inputs, ordered=False, return_errors=True) as results:
        found = [result async for result in results]
    for result in found:
        if isinstance(result, sp.SnakepitError) and result.code == "internal":
            raise result
    same(sorted(str(getattr(result, "code", result)) for result in found), ["2", "4", "invalid_parameter"])
    same(await pool.execute_many("add", [{"a": n, "b": n} for n in range(20)]), [2 * n for n in range(20)])

    async def later() -> AsyncIterator[dict[str, int]]:
        for n in range(5):
            await anyio.lowlevel.checkpoint()
            yield {"a": n, "b": n}

    async with pool.map("add", later(), limit=2) as results:
        same([result async for result in results], [0, 2, 4, 6, 8])
    async with pool.map("add", ({"a": n, "b": 1} for n in range(1000)), limit=4) as results:
        async for _ in results:
            break


async def sessions(pool: sp.Pool) -> None:
    runtime = pool.runtime
    async with pool.session(affinity="strict_queue", metadata={"k": "v"}) as session:
        same(await session.execute("session_of"), session.id)
        await session.put("key", {"n": 1})
        same(await session.get("key"), {"n": 1})
        same(await session.update("key", lambda value: {"n": value["n"] + 1}), {"n": 2})
        same(await session.keys(), ("key",))
        async with session.stream("count", {"n": 3}) as chunks:
            same([chunk async for chunk in chunks], [0, 1, 2])

        async def own(value: int) -> int:
            return value + 100

        session.tools.register("own", own)
        same(await session.execute("ask", {"name": "own", "params": {"value": 1}}), 101)
        await session.delete("key")
        same((await runtime.sessions.get(session.id)).entries, 0)
    for affinity in ("hint", "strict_fail_fast"):
        async with pool.session("again", affinity=affinity, ttl=0.1, detach=True) as session:
            same(await when_free(session.execute, "session_of"), "again")
    await runtime.sessions.list()
    await runtime.programs.put("blob", b"x" * 100, ttl=0.02)
    await runtime.programs.put("kept", b"y")
    same(await runtime.programs.get("kept"), b"y")
    await runtime.programs.list()
    same(await runtime.programs.delete("kept"), True)
    # By the clock, not by anybody's traffic.
    await until_async(lambda: _gone(runtime))


async def _gone(runtime: sp.Runtime) -> bool:
    sessions = {session.id for session in await runtime.sessions.list()}
    return await runtime.programs.get("blob") is None and "again" not in sessions


async def when_free(call: Callable[..., Awaitable[Any]], tool: str) -> Any:
    """What a call gives whose worker may be busy with others."""
    while True:
        try:
            return await call(tool)
        except sp.SnakepitError as exc:
            if exc.code != "worker_busy":
                raise
            await anyio.sleep(0.01)


async def host_tools(pool: sp.Pool) -> None:
    for name in ("double", "double_sync", "nested"):
        for _ in range(2):
            same(await pool.execute("ask", {"name": name, "params": {"value": 21}}), 42)
    with fails("tool_error"):
        await pool.execute("ask", {"name": "broken", "params": {}})
    with fails("tool_not_found", "tool_error"):
        await pool.execute("ask", {"name": "nothing", "params": {}})
    with fails("request_timeout", "tool_error"):
        await pool.execute("ask", {"name": "slow", "params": {"seconds": 30}, "timeout": 0.05})
    with anyio.move_on_after(0.05):
        await pool.execute("ask", {"name": "slow", "params": {"seconds": 30}})
    async with pool.stream("asked_stream", {"n": 3}) as chunks:
        same([chunk async for chunk in chunks], [0, 2, 4])


async def async_tools(pool: sp.Pool) -> None:
    for n in range(3):
        same(await pool.execute("add", {"a": n, "b": 1}), n + 1)
    async with pool.stream("count", {"n": 100}) as chunks:
        same([chunk async for chunk in chunks], list(range(100)))
    same(await pool.execute("ask", {"name": "double", "params": {"value": 21}}), 42)
    same(await pool.execute("blocking", {"value": 21}), 42)
    same(await pool.execute_many("add", [{"a": n, "b": n} for n in range(10)]), [2 * n for n in range(10)])


async def policies(pool: sp.Pool) -> None:
    with fails("tool_error"):
        await pool.execute("lose_connection")
    await pool.execute("slow_first", {"seconds": 0.05})
    async with anyio.create_task_group() as nursery:
        for _ in range(6):
            nursery.start_soon(pool.execute, "rest", {"seconds": 0.01})
    with anyio.move_on_after(0.02):
        await pool.execute("rest", {"seconds": 5.0})
    with fails("request_timeout"):
        await pool.execute("rest", {"seconds": 5.0}, timeout=0.03)
    pool.circuits()
    await pool.rolling_restart()


async def cancels(pool: sp.Pool) -> None:
    with anyio.move_on_after(0.03):
        await pool.execute("nap", {"seconds": 30.0})
    async with anyio.create_task_group() as nursery:
        for _ in range(4):
            nursery.start_soon(pool.execute, "nap", {"seconds": 30.0})
        await anyio.sleep(0.03)
        nursery.cancel_scope.cancel()
    with anyio.move_on_after(0.03):
        async with pool.stream("blocks", {"n": 10_000, "size": 1000}) as chunks:
            async for _ in chunks:
                await anyio.sleep(0.01)


async def time_outs(pool: sp.Pool) -> None:
    with fails("request_timeout"):
        await pool.execute("nap", {"seconds": 30.0}, timeout=0.03)
    async with anyio.create_task_group() as nursery:
        for _ in range(4):
            nursery.start_soon(pool.execute, "nap", {"seconds": 5.0})
        await anyio.sleep(0.02)
        with fails("request_timeout"):
            await pool.execute("add", {"a": 1, "b": 1}, timeout=0.02)
            raise AssertionError(f"it did not wait for {pool.workers()}")
        nursery.cancel_scope.cancel()


async def out_of_grace(pool: sp.Pool) -> None:
    """Its worker is ended, and replaced."""
    with anyio.move_on_after(0.03):
        await pool.execute("deaf", {"seconds": 20.0})


async def deaths(pool: sp.Pool) -> None:
    with fails("worker_crashed"):
        await pool.execute("die")
    # The third time when the second worker was lost by what was raised.
    same(await pool.execute("die_first") in (2, 3), True)
    pool.kill_worker(await ready_worker(pool))
    await pool.wait_ready(timeout=LIMIT)


async def ready_worker(pool: sp.Pool) -> str:
    while True:
        for worker in pool.workers():
            if worker.state == "ready" and worker.slot >= 0:
                return worker.id
        await anyio.sleep(0.005)


async def operations(pool: sp.Pool) -> None:
    await pool.resize(3)
    await pool.resize(2)
    await pool.recycle(await ready_worker(pool))
    worker = await ready_worker(pool)
    await pool.drain(worker)
    pool.cordon(worker, cordoned=False)


async def observers(runtime: sp.Runtime) -> None:
    async with runtime.events.subscribe() as everything, runtime.events.subscribe("request.") as some:
        pool = runtime.pool("main")
        await pool.execute("say", {"text": "spoken"})
        same(await pool.execute("add", {"a": 1, "b": 1}), 2)
        seen = set()
        # An event whose making fails is lost.
        with anyio.move_on_after(1.0):
            async for event in everything:
                seen.add(event.name)
                if {"scenario.said", "request.completed"} <= seen:
                    break
        with anyio.move_on_after(1.0):
            async for event in some:
                if event.name == "request.completed":
                    break
    runtime.recorder.dump()
    if runtime.recorder.write() is None:
        raise AssertionError("no dump was written")
    repr(runtime)
    for pool in runtime.pools.values():
        pool.snapshot(), pool.workers(), pool.tools(), repr(pool)


async def until_async(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await anyio.sleep(0.01)


async def in_host(runtime: sp.Runtime, pools: Mapping[str, sp.Pool], record: Record) -> None:
    """The steps of the host's own callers, in three lines at once; the last does what ends workers."""
    main, tasks, by = (pools[name] for name in ("main", "tasks", "by"))
    over = anyio.Event()

    async def quick() -> None:
        for function in (plain_calls, large_values, refused, streams, maps, sessions, host_tools, many_at_once):
            await step(record, "main", function, main)
        await step(record, "main", observers, runtime)
        for function in (cancels, time_outs, out_of_grace, deaths, operations):
            await step(record, "main", function, main)

    async def with_tasks() -> None:
        for function in (async_tools, policies):
            await step(record, "tasks", function, tasks)

    async def bystander() -> None:
        while not over.is_set():
            await step(record, "by", _one, by)
            with anyio.move_on_after(0.05):
                await over.wait()

    async with anyio.create_task_group() as nursery:
        nursery.start_soon(bystander)
        async with anyio.create_task_group() as lines:
            lines.start_soon(quick)
            lines.start_soon(with_tasks)
        over.set()


async def twenty(pool: sp.Pool) -> None:
    """Twenty calls at once."""

    async def one(n: int) -> None:
        same(await pool.execute("add", {"a": n, "b": 1}), n + 1)

    async with anyio.create_task_group() as nursery:
        for n in range(20):
            nursery.start_soon(one, n)


async def limited(pool: sp.Pool) -> None:
    """More calls at once than their limit allows: none of its permits is lost."""
    async with anyio.create_task_group() as nursery:
        for _ in range(4):
            nursery.start_soon(pool.execute, "rest", {"seconds": 0.001})


async def undo(runtime: sp.Runtime) -> None:
    """Undo what an operation has left that failed: what it did was asked for."""
    for pool in runtime.pools.values():
        for worker in pool.workers():
            with suppress(sp.SnakepitError):
                pool.cordon(worker.id, cordoned=False)
        if pool.stats().size != pool.config.size and pool.config.max_size is None:
            with suppress(sp.SnakepitError):
                await pool.resize(pool.config.size)


async def _one(pool: sp.Pool) -> None:
    n = time.monotonic_ns() % 1000
    same(await pool.execute("add", {"a": n, "b": 1}), n + 1)

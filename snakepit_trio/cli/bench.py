"""``snakepit bench``: measure calls on this machine, beside the standard library's process pool."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeAlias

import typer

from .common import run, to_json
from .words import quantile

__all__ = ["Call", "bench", "cpu_of_children", "latency", "machine", "throughput"]

Call: TypeAlias = Callable[[bytes], Awaitable[Any]]

_ADAPTER = "snakepit_trio.cli.bench_tools"
#: Calls before the measured ones.
_WARM_UP = 200


def bench(
    workers: Annotated[int, typer.Option(help="The number of workers in each pool.", min=1)] = 2,
    callers: Annotated[int, typer.Option(help="The number of tasks that call concurrently.", min=1)] = 64,
    payload: Annotated[int, typer.Option(help="Bytes of the argument and of the result.", min=0)] = 64,
    calls: Annotated[int, typer.Option(help="The number of calls in each round.", min=1)] = 5000,
    rounds: Annotated[int, typer.Option(help="The number of rounds; figures are medians over them.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure latency, calls and chunks per second, and CPU time per call. The two pools take turns in each round."""

    async def main() -> int:
        import statistics

        contenders = {"snakepit_trio": _pool, "ProcessPoolExecutor": _executor}
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        data = os.urandom(payload)
        for number in range(rounds):
            order = list(contenders)[:: -1 if number % 2 else 1]
            for name in order:
                async with contenders[name](workers) as (call, chunks):
                    laps = await latency(call, data, max(100, calls // 5))
                    lap = {**laps, **await throughput(call, data, callers, calls)}
                    if chunks is not None:
                        lap["chunks_per_second"] = await chunks(calls * 4)
                    taken[name].append(lap)
        medians = {
            name: {key: statistics.median(lap[key] for lap in laps) for key in laps[0]} for name, laps in taken.items()
        }
        options = {"workers": workers, "callers": callers, "payload": payload, "calls": calls, "rounds": rounds}
        if as_json:
            print(to_json({"machine": machine(), **options, "medians": medians}))
        else:
            _show(medians, options)
        return 0

    run(main)


async def latency(call: Call, data: bytes, count: int) -> dict[str, float]:
    """Return percentiles of the duration of sequential calls, in microseconds."""
    for _ in range(_WARM_UP):
        if await call(data) != data:
            raise RuntimeError("echo returned other data than it was sent")
    laps = []
    for _ in range(count):
        begun = time.perf_counter()
        await call(data)
        laps.append((time.perf_counter() - begun) * 1e6)
    laps.sort()
    return {name: quantile(laps, part) for name, part in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999))}


async def throughput(call: Call, data: bytes, callers: int, count: int) -> dict[str, float]:
    """Return the calls per second of concurrent callers, and CPU time per call here and in the child processes, in
    microseconds.
    """
    import anyio

    async def caller(calls: int) -> None:
        for _ in range(calls):
            await call(data)

    async def all_callers(calls: int) -> None:
        async with anyio.create_task_group() as nursery:
            for _ in range(callers):
                nursery.start_soon(caller, calls)

    await all_callers(5)
    each = max(1, count // callers)
    begun, host, children = time.perf_counter(), time.process_time(), cpu_of_children()
    await all_callers(each)
    spent = time.perf_counter() - begun
    done = each * callers
    return {
        "calls_per_second": done / spent,
        "host_cpu_us": (time.process_time() - host) / done * 1e6,
        "worker_cpu_us": (cpu_of_children() - children) / done * 1e6,
    }


def cpu_of_children() -> float:
    """Return the CPU time of all living descendants of this process, in seconds; the kernel counts in hundredths."""
    import psutil

    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def machine() -> str:
    """Return a description of the machine."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


@asynccontextmanager
async def _pool(workers: int) -> AsyncIterator[tuple[Call, Any]]:
    import snakepit_trio as sp

    async with sp.open_pool(_ADAPTER, size=workers) as pool:

        async def call(data: bytes) -> Any:
            return await pool.execute("echo", {"data": data})

        async def chunks(count: int) -> float:
            begun = time.perf_counter()
            async with pool.stream("count", {"n": count}) as stream:
                async for _ in stream:
                    pass
            return count / (time.perf_counter() - begun)

        yield call, chunks


@asynccontextmanager
async def _executor(workers: int) -> AsyncIterator[tuple[Call, None]]:
    """Run the process pool from Trio: a future wakes a task through the loop's thread-safe queue."""
    import concurrent.futures
    import multiprocessing

    import trio

    from . import bench_tools

    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as executor:
        token = trio.lowlevel.current_trio_token()

        async def call(data: bytes) -> Any:
            done = trio.Event()
            future = executor.submit(bench_tools.echo, data)
            future.add_done_callback(lambda _: token.run_sync_soon(done.set))
            await done.wait()
            return future.result()

        yield call, None


def _show(medians: dict[str, dict[str, float]], options: dict[str, int]) -> None:
    ours = medians["snakepit_trio"]
    print(f"{'':22}{'p50':>10}{'p99':>10}{'calls/s':>10}{'host CPU':>11}{'worker CPU':>12} | snakepit_trio beside it")
    for name, m in medians.items():
        beside = ""
        if m is not ours:
            beside = (
                f"{ours['p50_us'] / m['p50_us']:.2f}x the latency, "
                f"{ours['calls_per_second'] / m['calls_per_second']:.2f}x the calls/s"
            )
        print(
            f"{name:22}{m['p50_us']:7.0f} us{m['p99_us']:7.0f} us{m['calls_per_second']:10.0f}"
            f"{m['host_cpu_us']:8.1f} us{m['worker_cpu_us']:9.1f} us | {beside}"
        )
    print(f"a stream: {ours['chunks_per_second']:.0f} chunks/s")
    print(
        f"medians of {options['rounds']} rounds; {options['workers']} workers; calls/s with {options['callers']} callers; "
        f"{options['payload']} bytes there and back; {machine()}"
    )

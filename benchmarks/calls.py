"""A trivial call through ``pool.execute``, beside its peers, in one run.

Each contender gets the same work: 64 bytes there and back, two workers. The contenders take turns, round after round, so
that a machine that grows slow grows slow for all; the figures are medians over the rounds, the ratios are of those medians.

    python benchmarks/calls.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

import snakepit_trio as sp

WORKERS, CALLERS = 2, 64
SEQUENTIAL, PARALLEL = 1000, 6400
DATA = b"x" * 64

Call = Callable[[bytes], Awaitable[Any]]


@sp.tool
def echo(data: bytes) -> bytes:
    """What every contender runs."""
    return data


async def measure(call: Call) -> dict[str, float]:
    """Latency of one call after another, in seconds, and calls per second of many callers."""
    for _ in range(100):
        assert await call(DATA) == DATA
    laps = []
    for _ in range(SEQUENTIAL):
        begun = time.perf_counter()
        await call(DATA)
        laps.append(time.perf_counter() - begun)
    laps.sort()

    async def caller() -> None:
        for _ in range(PARALLEL // CALLERS):
            await call(DATA)

    begun, cpu = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as nursery:
        for _ in range(CALLERS):
            nursery.start_soon(caller)
    spent = time.perf_counter() - begun
    return {
        "p50_us": laps[len(laps) // 2] * 1e6,
        "p99_us": laps[len(laps) * 99 // 100] * 1e6,
        "calls_per_second": PARALLEL / spent,
        "host_cpu_us": (time.process_time() - cpu) / PARALLEL * 1e6,
    }


@asynccontextmanager
async def pool() -> AsyncIterator[Call]:
    async with sp.open_pool("calls", size=WORKERS) as opened:

        async def call(data: bytes) -> Any:
            return await opened.execute("echo", {"data": data})

        yield call


@asynccontextmanager
async def trio_parallel() -> AsyncIterator[Call]:
    import trio
    import trio_parallel

    limiter = trio.CapacityLimiter(WORKERS)
    async with trio_parallel.open_worker_context() as context:

        async def call(data: bytes) -> Any:
            return await context.run_sync(echo, data, limiter=limiter)

        yield call


@asynccontextmanager
async def executor() -> AsyncIterator[Call]:
    loop = asyncio.get_running_loop()
    with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as processes:

        async def call(data: bytes) -> Any:
            return await loop.run_in_executor(processes, echo, data)

        yield call


@asynccontextmanager
async def grpcio() -> AsyncIterator[Call]:
    import grpc.aio

    with tempfile.TemporaryDirectory() as directory:
        address = f"unix:{directory}/grpc.sock"
        server = subprocess.Popen([sys.executable, __file__, "--serve-grpc", address], stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            server.stdout.readline()
            async with grpc.aio.insecure_channel(address) as channel:
                yield channel.unary_unary("/bench.Echo/Echo")
        finally:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()


async def serve_grpc(address: str) -> None:
    import grpc.aio

    async def handler(data: bytes, context: Any) -> bytes:
        return echo(data)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("bench.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(handler)})]
    )
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


CONTENDERS: dict[str, tuple[str, Any, str]] = {
    "snakepit_trio on Trio": ("trio", pool, "snakepit-trio"),
    "snakepit_trio on asyncio": ("asyncio", pool, "snakepit-trio"),
    "trio-parallel": ("trio", trio_parallel, "trio-parallel"),
    "ProcessPoolExecutor": ("asyncio", executor, ""),
    "grpcio.aio, unary (1 server)": ("asyncio", grpcio, "grpcio"),
}


async def one_round(opener: Any) -> dict[str, float]:
    async with opener() as call:
        return await measure(call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve-grpc", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_grpc:
        asyncio.run(serve_grpc(options.serve_grpc))
        return
    names = [n for n, (_, _, dist) in CONTENDERS.items() if not dist or importlib.util.find_spec(_module(dist))]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(options.rounds):
        # Each round begins with another contender.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            backend, opener, _ = CONTENDERS[name]
            taken[name].append(anyio.run(one_round, opener, backend=backend))
    medians = {
        name: {key: statistics.median(lap[key] for lap in laps) for key in laps[0]} for name, laps in taken.items()
    }
    ours = medians[names[0]]
    print(f"{'':30} {'p50':>9} {'p99':>9} {'calls/s':>9} {'host CPU':>10} | {names[0]} beside it")
    for name, m in medians.items():
        latency = f"{ours['p50_us'] / m['p50_us']:.2f}x the latency"
        throughput = f"{ours['calls_per_second'] / m['calls_per_second']:.2f}x the calls/s"
        print(
            f"{name:30} {m['p50_us']:6.0f} us {m['p99_us']:6.0f} us {m['calls_per_second']:9.0f} "
            f"{m['host_cpu_us']:7.1f} us | {latency}, {throughput}"
        )
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"medians of {options.rounds} rounds; {WORKERS} workers; calls/s with {CALLERS} callers; {machine}")
    if options.json:
        versions = {
            d: importlib.metadata.version(d)
            for _, _, d in CONTENDERS.values()
            if d and importlib.util.find_spec(_module(d))
        }
        record = {"machine": machine, "rounds": options.rounds, "versions": versions, "medians": medians, "all": taken}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _module(distribution: str) -> str:
    return {"grpcio": "grpc"}.get(distribution, distribution.replace("-", "_"))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()

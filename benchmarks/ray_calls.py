"""Workers that Ray has placed, beside a pool of Ray actors: calls per second, latency, payloads, ratios, in one run.

python benchmarks/ray_calls.py [--rounds 3] [--seconds 1.5] [--json FILE]

Starts a Ray of its own on this machine, for workers and actors alike: two of each, all on one event loop (asyncio), which
take turns round after round. The same bytes go there and back. Ray's actors are async ones and are called as Ray's
documentation shows it, by awaiting the reference, the callers in turn over the actors. "inline" are workers placed by Ray
without shared memory, as they are on other machines; Ray's actors have it in each row. Takes about a minute and a half.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import ray

import snakepit_trio as sp

sys.path.insert(0, str(Path(__file__).parent))

WORKERS = 2
CALLERS = 64
SIZES = {"64 B": 64, "64 KiB": 1 << 16, "1 MiB": 1 << 20, "10 MiB": 10 << 20}
COLUMNS = ["calls/s", "host CPU us", "p50 64 B us", "p99 64 B us", *(f"p50 {size} us" for size in list(SIZES)[1:])]
PEER = "Ray actors"
Call = Callable[[bytes], Awaitable[Any]]


@sp.tool
def echo(data: bytes) -> bytes:
    """The same."""
    return data


def ray_actors() -> Call:
    @ray.remote(num_cpus=0.1)
    class Echo:
        async def echo(self, data: bytes) -> bytes:
            return data

    actors = [Echo.remote() for _ in range(WORKERS)]
    turn = 0

    async def call(data: bytes) -> Any:
        nonlocal turn
        turn += 1
        return await actors[turn % WORKERS].echo.remote(data)

    return call


async def latency(call: Call, data: bytes, seconds: float, most: int = 2000) -> tuple[float, float]:
    """Median and 99th percentile of calls one after the other, in seconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while ((begun := time.perf_counter()) < end and len(times) < most) or len(times) < 3:
        assert len(await call(data)) == len(data)
        times.append(time.perf_counter() - begun)
    times.sort()
    return statistics.median(times), times[min(len(times) - 1, int(len(times) * 0.99))]


async def throughput(call: Call, seconds: float) -> tuple[float, float]:
    """Calls per second with many callers, and CPU time of this process for each, in seconds."""
    done = 0
    data = os.urandom(64)
    end = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call(data)
            done += 1

    begun, cpu = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as nursery:
        for _ in range(CALLERS):
            nursery.start_soon(caller)
    return done / (time.perf_counter() - begun), (time.process_time() - cpu) / done


async def main(rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    contenders: dict[str, Call] = {}
    found: dict[str, dict[str, list[float]]] = {}
    async with AsyncExitStack() as stack:
        # Ray takes its time on a busy machine.
        placed = {"launcher": "ray", "ray": sp.RayConfig(resources={"num_cpus": 0.1}), "startup_timeout": 120}
        for name, options in {
            "workers placed by Ray": placed,
            "workers placed by Ray, inline": {**placed, "shm_limit": 0},
            "local workers": {},
        }.items():
            pool = await stack.enter_async_context(sp.open_pool("ray_calls", size=WORKERS, **options))
            contenders[name] = lambda data, pool=pool: pool.execute("echo", {"data": data})  # type: ignore[misc]
        contenders[PEER] = ray_actors()
        for call in contenders.values():
            for _ in range(100):
                await call(b"x")
        for _ in range(rounds):
            for name, call in contenders.items():
                figures = found.setdefault(name, {})
                rate, cpu = await throughput(call, seconds)
                figures.setdefault("calls/s", []).append(rate)
                figures.setdefault("host CPU us", []).append(cpu * 1e6)
                for size, count in SIZES.items():
                    p50, p99 = await latency(call, os.urandom(count), seconds / 2)
                    figures.setdefault(f"p50 {size} us", []).append(p50 * 1e6)
                    if size == "64 B":
                        figures.setdefault("p99 64 B us", []).append(p99 * 1e6)
    return {name: {key: statistics.median(v) for key, v in figures.items()} for name, figures in found.items()}


def show(medians: dict[str, dict[str, float]]) -> None:
    """The figures, and how many times better than Ray's actors the others are: more calls, less time."""
    print(" " * 30 + "".join(f"{column.removesuffix(' us'):>12}" for column in COLUMNS))
    for name, figures in medians.items():
        print(f"{name:30}" + "".join(f"{figures[column]:12.0f}" for column in COLUMNS))
    print(f"how many times better than {PEER} (more calls, less time):")
    for name, figures in medians.items():
        if name != PEER:
            ratios = [figures[column] / medians[PEER][column] for column in COLUMNS]
            better = [
                ratio if column == "calls/s" else 1 / ratio for column, ratio in zip(COLUMNS, ratios, strict=True)
            ]
            print(f"{name:30}" + "".join(f"{ratio:12.2f}" for ratio in better))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    ray.init(
        address="local", num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False,
        configure_logging=False,
    )  # fmt: skip
    try:
        medians = anyio.run(main, options.rounds, options.seconds)
    finally:
        ray.shutdown()
    show(medians)
    print(
        f"medians of {options.rounds} rounds; {WORKERS} workers; times in us; calls/s with {CALLERS} callers; Ray {ray.__version__}"
    )
    if options.json is not None:
        options.json.write_text(
            json.dumps({"options": vars(options) | {"json": None}, "medians": medians}, indent=2) + "\n"
        )

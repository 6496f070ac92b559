"""Calls per second by callers, by workers and by size, and chunks per second; some peers beside, taking turns.

python benchmarks/sweeps.py [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import anyio
from contenders import OURS, installed

import snakepit_trio as sp
from snakepit_trio.cli.bench import machine, throughput

NAMES = [OURS, "snakepit_trio on asyncio", "trio-parallel", "ProcessPoolExecutor"]
CALLERS = [1, 4, 16, 64, 256]
WORKERS = [1, 2, 4]
SIZES = [64, 4 * 1024, 64 * 1024, 1024 * 1024, 16 * 1024 * 1024]
#: About so long each figure is measured, in seconds.
SPAN = 0.4
CHUNKS = 50_000

Figures = dict[str, dict[str, list[float]]]


async def by_callers(name: str, into: Figures) -> None:
    async with installed()[name].opener(2) as call:
        await throughput(call, b"x" * 64, 64, 1000)
        for callers in CALLERS:
            rate = (await throughput(call, b"x" * 64, callers, 300))["calls_per_second"]
            found = await throughput(call, b"x" * 64, callers, max(callers, int(rate * SPAN)))
            into[name][str(callers)].append(found["calls_per_second"])


async def by_workers(name: str, into: Figures) -> None:
    for workers in WORKERS:
        async with installed()[name].opener(workers) as call:
            rate = (await throughput(call, b"x" * 64, 64, 1000))["calls_per_second"]
            found = await throughput(call, b"x" * 64, 64, int(rate * SPAN))
            into[name][str(workers)].append(found["calls_per_second"])


async def by_size(name: str, into: Figures) -> None:
    async with installed()[name].opener(2) as call:
        for size in SIZES:
            data = b"x" * size
            count = 300 if size < 1 << 20 else 30 if size < 1 << 24 else 6
            await throughput(call, data, 2, 4)
            found = await throughput(call, data, 2, count)
            into[name][str(size)].append(found["calls_per_second"])


async def chunks(backend: str, into: Figures) -> None:
    async with sp.open_pool("snakepit_trio.cli.bench_tools", size=1) as pool:
        for count in (CHUNKS // 10, CHUNKS):
            begun = time.perf_counter()
            async with pool.stream("count", {"n": count}) as stream:
                async for _ in stream:
                    pass
            rate = count / (time.perf_counter() - begun)
        into[f"snakepit_trio on {backend}"]["chunks/s"].append(rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    contenders = installed()
    names = [name for name in NAMES if name in contenders]
    sweeps: dict[str, Figures] = {
        kind: defaultdict(lambda: defaultdict(list)) for kind in ("callers", "workers", "size", "chunks")
    }
    for number in range(options.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            for kind, sweep in (("callers", by_callers), ("workers", by_workers), ("size", by_size)):
                anyio.run(sweep, name, sweeps[kind], backend=contenders[name].backend)
        for backend in ("trio", "asyncio"):
            anyio.run(chunks, backend, sweeps["chunks"], backend=backend)
    medians = {
        kind: {name: {at: statistics.median(laps) for at, laps in found.items()} for name, found in figures.items()}
        for kind, figures in sweeps.items()
    }
    titles = {
        "callers": "calls/s by callers (2 workers, 64 bytes)",
        "workers": "calls/s by workers (64 callers, 64 bytes)",
        "size": "calls/s by bytes there and back (2 workers, 2 callers)",
        "chunks": "one stream, consumer and generator trivial",
    }
    for kind, title in titles.items():
        columns = list(next(iter(medians[kind].values())))
        print(f"{title:56}" + "".join(f"{column:>10}" for column in columns))
        for name, found in medians[kind].items():
            print(f"  {name:54}" + "".join(f"{found[column]:10.0f}" for column in columns))
    print(f"medians of {options.rounds} rounds; {machine()}")
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine(), "rounds": options.rounds, "medians": medians}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()

"""A numpy array there and back, beside its peers and beside copying it.

python benchmarks/arrays.py [--mib 10] [--rounds 20] [--json FILE]

The contenders take turns of four calls, round after round; medians of the last three of each. ``memcpy twice`` copies the array into memory that exists, twice:
no transport between two processes that copies at each end once can be faster. Another line has shared memory turned off.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np

import snakepit_trio as sp


@sp.tool
def echo(value: Any) -> Any:
    return value


def same(value: Any) -> Any:
    return value


async def measure(mib: float, rounds: int) -> dict[str, float]:
    array = np.random.default_rng(1).integers(0, 256, int(mib * (1 << 20)), dtype=np.uint8)
    target = np.zeros_like(array)
    seconds: dict[str, list[float]] = {}
    with concurrent.futures.ProcessPoolExecutor(1) as executor:
        async with sp.open_pool("arrays", size=1) as shared, sp.open_pool("arrays", size=1, shm_limit=0) as inline:

            async def through(pool: sp.Pool) -> Any:
                return await pool.execute("echo", {"value": array})

            async def copied() -> Any:
                target[:] = array
                target[:] = array
                return target

            async def pickled() -> Any:
                return await anyio.to_thread.run_sync(executor.submit(same, array).result)

            contenders = {
                "memcpy twice": copied,
                "snakepit_trio, shared memory": lambda: through(shared),
                "snakepit_trio, inline": lambda: through(inline),
                "ProcessPoolExecutor, pickle": pickled,
            }
            for number in range(rounds + 2):
                for name, contender in contenders.items():
                    for call in range(4):
                        begun = time.perf_counter()
                        found = await contender()
                        spent = time.perf_counter() - begun
                        assert found[-1] == array[-1]
                        del found
                        # The first one pays for what the contender before it has done to the caches.
                        if number >= 2 and call:
                            seconds.setdefault(name, []).append(spent)
    return {name: statistics.median(values) * 1e3 for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = anyio.run(measure, options.mib, options.rounds, backend="trio")
    base = found["memcpy twice"]
    for name, value in found.items():
        print(
            f"{name:30} {value:8.2f} ms   {2 * options.mib / value * 1000 / 1024:6.2f} GiB/s   {base / value:5.2f}x of memcpy's speed"
        )
    print(
        f"{options.mib:g} MiB there and back; medians of {options.rounds} rounds; "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()

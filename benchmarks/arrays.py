"""A numpy array there and back, beside its peers and beside copying it.

python benchmarks/arrays.py [--mib 1,10,100] [--rounds 20] [--json FILE]

The contenders take turns of four calls, round after round; medians of the last three of each. ``memcpy twice`` copies the
array into memory that exists, twice: no transport between two processes that copies at each end once can be faster. In one
line the worker gives back what it was given, which is not copied on its way back; in the next one another array of that size,
which is. Another line has shared memory turned off, but for the largest. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np

import snakepit_trio as sp

#: In MiB; more than this inline would only show how patient the reader is.
LARGEST_INLINE = 10


#: The worker's own array.
ours: Any = None


@sp.tool
def echo(value: Any) -> Any:
    return value


@sp.tool
def swap(value: Any) -> Any:
    global ours  # noqa: PLW0603
    if ours is None or ours.shape != value.shape:
        ours = value.copy()
    return ours


def same(value: Any) -> Any:
    return value


@contextlib.contextmanager
def ray_echo() -> Iterator[Any]:
    """A call of an actor, whose argument and result go through the object store."""
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:

        @ray.remote
        class Echo:
            def same(self, value: Any) -> Any:
                return value

        actor = Echo.remote()
        yield lambda value: ray.get(actor.same.remote(value))
    finally:
        ray.shutdown()


async def measure(mib: float, rounds: int) -> dict[str, float]:
    array = np.random.default_rng(1).integers(0, 256, int(mib * (1 << 20)), dtype=np.uint8)
    target = np.zeros_like(array)
    limit = 4 * array.nbytes + (64 << 20)
    seconds: dict[str, list[float]] = {}
    async with contextlib.AsyncExitStack() as stack:
        executor = stack.enter_context(concurrent.futures.ProcessPoolExecutor(1))
        open_pool = functools.partial(sp.open_pool, "arrays", size=1, max_payload=limit)
        shared = await stack.enter_async_context(open_pool(shm_limit=8 * limit))
        inline = await stack.enter_async_context(open_pool(shm_limit=0))

        async def through(pool: sp.Pool, tool: str = "echo") -> Any:
            return await pool.execute(tool, {"value": array})

        async def copied() -> Any:
            target[:] = array
            target[:] = array
            return target

        async def pickled() -> Any:
            return await anyio.to_thread.run_sync(executor.submit(same, array).result)

        contenders = {
            "memcpy twice": copied,
            "snakepit_trio, shared memory": lambda: through(shared),
            "  another array back": lambda: through(shared, "swap"),
        }
        if mib <= LARGEST_INLINE:
            contenders["snakepit_trio, inline"] = lambda: through(inline)
        contenders["ProcessPoolExecutor, pickle"] = pickled
        if importlib.util.find_spec("trio_parallel") is not None:
            import trio_parallel

            context = await stack.enter_async_context(trio_parallel.open_worker_context())
            contenders["trio-parallel, pickle"] = lambda: context.run_sync(same, array)
        if importlib.util.find_spec("ray") is not None:
            call = stack.enter_context(ray_echo())
            contenders["Ray actor, object store"] = lambda: anyio.to_thread.run_sync(call, array)
        for number in range(rounds + 2):
            for name, contender in contenders.items():
                for turn in range(4):
                    begun = time.perf_counter()
                    found = await contender()
                    spent = time.perf_counter() - begun
                    assert found[-1] == array[-1]
                    del found
                    # The first one pays for what the contender before it has done to the caches.
                    if number >= 2 and turn:
                        seconds.setdefault(name, []).append(spent)
    return {name: statistics.median(values) * 1e3 for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", default="1,10,100")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for mib in map(float, options.mib.split(",")):
        found = results[f"{mib:g} MiB"] = anyio.run(measure, mib, options.rounds, backend="trio")
        base = found["memcpy twice"]
        for name, value in found.items():
            speed = 2 * mib / value * 1000 / 1024
            print(
                f"{mib:4g} MiB  {name:30} {value:8.2f} ms   {speed:6.2f} GiB/s   {base / value:5.2f}x of memcpy's speed"
            )
    print(
        f"there and back; medians of {options.rounds} rounds; "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()

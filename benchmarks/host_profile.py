"""Where the host's time of a trivial call goes, by package, as cProfile sees it: own time of each function, added up.

A profiler makes every call of a function dearer, so the shares say more than the sum; the last line is without it.

    python benchmarks/host_profile.py [--backend trio] [--calls 6400]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import re
import time
from collections import Counter

import anyio

import snakepit_trio as sp

CALLERS, WORKERS = 64, 2
DATA = b"x" * 64
#: The first that fits says where a function belongs.
ROOMS = [
    ("the socket and epoll", r"'(send|recv|poll)' of"),
    ("h2, hyperframe, hpack", r"/(h2|hyperframe|hpack)/"),
    ("grpclib", r"/grpclib/"),
    ("Trio, asyncio, anyio, sniffio", r"/(trio|asyncio|anyio|sniffio|outcome)/|contextvars|_asyncio"),
    ("snakepit_trio.wire", r"/snakepit_trio/wire/"),
    ("snakepit_trio.pool", r"/snakepit_trio/pool/"),
    ("snakepit_trio.supervision", r"/snakepit_trio/supervision/"),
]


@sp.tool
def echo(data: bytes) -> bytes:
    return data


async def run(calls: int) -> None:
    async with sp.open_pool("host_profile", size=WORKERS) as pool:

        async def caller(count: int) -> None:
            for _ in range(count):
                await pool.execute("echo", {"data": DATA})

        async def callers() -> float:
            begun = time.process_time()
            async with anyio.create_task_group() as nursery:
                for _ in range(CALLERS):
                    nursery.start_soon(caller, calls // CALLERS)
            return (time.process_time() - begun) / (calls // CALLERS * CALLERS) * 1e6

        await callers()
        profile = cProfile.Profile()
        profile.enable()
        await callers()
        profile.disable()
        spent = await callers()
    rooms: Counter[str] = Counter()
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        text = f"{file} {name}"
        rooms[next((room for room, pattern in ROOMS if re.search(pattern, text)), "everything else")] += own / calls
    for room, seconds in rooms.most_common():
        print(f"{room:32}{seconds * 1e6:8.1f} us of a call")
    print(f"{'without the profiler':32}{spent:8.1f} us of the host's CPU for a call")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="trio")
    parser.add_argument("--calls", type=int, default=6400)
    options = parser.parse_args()
    anyio.run(run, options.calls, backend=options.backend)


if __name__ == "__main__":
    main()

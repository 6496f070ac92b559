"""Sessions of one runtime: opened, used, looked up and expired, with 1 000 and with 10 000 of them. Costs should be flat,
and so should memory over one generation of sessions after another.

python benchmarks/sessions.py [--json FILE]

Times are CPU time of this process, so that a busy machine does not change them. The first part has no workers: it measures the
directory, the store in memory, and what a call of a session costs beside the call itself. The second goes the whole way.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil

import snakepit_trio as sp
from snakepit_trio.observe.events import EventBus
from snakepit_trio.sessions.directory import SessionDirectory
from snakepit_trio.sessions.records import Limits
from snakepit_trio.sessions.store import open_store
from snakepit_trio.tools.registry import ToolRegistry

SIZES = (1_000, 10_000)
GENERATIONS = 5
TTL = 60.0


def micros(begun: float, count: int) -> float:
    return (time.process_time() - begun) / count * 1e6


class Clock:
    """The store's clock, which goes when it is told to."""

    value = 0.0

    def __call__(self) -> float:
        return self.value


async def generation(sessions: SessionDirectory, now: Clock, count: int, name: str) -> dict[str, float]:
    """Open so many sessions, use them, let them expire."""
    store, found = sessions.store, {}
    begun = time.process_time()
    known = [await sessions.open(f"{name}-{number}", TTL, {}) for number in range(count)]
    found["open"] = micros(begun, count)
    begun = time.process_time()
    for one in known:
        # What a call costs beside the call.
        await sessions.use(one)
        sessions.begin(one, one, lambda: None)
        sessions.finish(one, one)
    found["use"] = micros(begun, count)
    begun = time.process_time()
    for one in known:
        await store.ask(store.tables.put, one.id, "key", b"x" * 64, None, store.clock())
    found["put"] = micros(begun, count)
    begun = time.process_time()
    for one in known:
        await store.ask(store.tables.read, one.id, "key", store.clock())
    found["get"] = micros(begun, count)
    for one in known:
        await sessions.leave(one, detach=True)
    now.value += 2 * TTL
    begun = time.process_time()
    await sessions.sweep()
    found["expire"] = micros(begun, count)
    assert await sessions.list() == ()
    return found


def look_up(count: int) -> float:
    registry = ToolRegistry()
    registry.register_many({f"tool_{number}": micros for number in range(count)})
    names = [f"tool_{number}" for number in range(count)]
    begun = time.process_time()
    for _ in range(20):
        for name in names:
            registry.get(name)
    return micros(begun, count * 20)


@sp.tool
def nothing() -> None:
    """What the workers of :func:`through_a_pool` run."""


async def through_a_pool(count: int, generations: int) -> dict[str, object]:
    """The whole way: sessions of a pool, each with one call in a worker, expired by the runtime's clock."""
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter="benchmarks.sessions", size=2)], max_sessions=count)
    memory, costs = [], []
    async with sp.open_runtime(config) as runtime:
        pool = runtime.pool()

        async def user(numbers: Iterator[int]) -> None:
            for number in numbers:
                async with pool.session(f"s{number}", affinity="strict_queue", detach=True, ttl=3.0) as session:
                    await session.execute("nothing")

        for _ in range(generations):
            begun = time.process_time()
            numbers = iter(range(count))
            async with anyio.create_task_group() as nursery:
                for _ in range(64):
                    nursery.start_soon(user, numbers)
            costs.append(micros(begun, count))
            async with runtime.events.subscribe("session.expired") as events:
                left = len(await runtime.sessions.list())
                while left:
                    await anext(events)
                    left -= 1
            gc.collect()
            memory.append(psutil.Process().memory_info().rss / 1024 / 1024)
    return {"open_call_leave": min(costs), "rss_mib_after_each_generation": memory}


async def measure() -> dict[str, object]:
    costs: dict[str, dict[str, float]] = {}
    limits = Limits(max_sessions=None, session_max_entries=1000, session_max_bytes=1 << 20)
    async with open_store("memory", limits) as store:
        now = store.clock = Clock()
        sessions = SessionDirectory(store, EventBus())
        await generation(sessions, now, 100, "warm")
        for size in SIZES:
            rounds = [await generation(sessions, now, size, f"{size}.{number}") for number in range(3)]
            costs[str(size)] = {key: min(r[key] for r in rounds) for key in rounds[0]}
            costs[str(size)]["tool"] = look_up(size)
        memory = []
        for number in range(GENERATIONS):
            await generation(sessions, now, SIZES[-1], f"g{number}")
            gc.collect()
            memory.append(psutil.Process().memory_info().rss / 1024 / 1024)
    whole = await through_a_pool(SIZES[-1], 3)
    return {"microseconds": costs, "rss_mib_after_each_generation": memory, "through_a_pool": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = anyio.run(measure, backend="trio")
    costs = found["microseconds"]
    print(f"{'sessions':>9} " + " ".join(f"{key:>8}" for key in costs[str(SIZES[0])]) + "   us of CPU each")
    for size, row in costs.items():
        print(f"{size:>9} " + " ".join(f"{value:8.2f}" for value in row.values()))
    memory = found["rss_mib_after_each_generation"]
    print(
        f"RSS after each of {GENERATIONS} generations of {SIZES[-1]}: " + ", ".join(f"{m:.1f}" for m in memory) + " MiB"
    )
    whole = found["through_a_pool"]
    print(
        f"through a pool: open, one call, leave {whole['open_call_leave']:.0f} us of the host's CPU; RSS after each of 3 "
    )
    print("generations: " + ", ".join(f"{m:.1f}" for m in whole["rss_mib_after_each_generation"]) + " MiB")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

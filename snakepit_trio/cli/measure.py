"""The measurements of ``snakepit diagnose``: real workers, in a separate runtime, on temporary state."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psutil

import snakepit_trio as sp
from snakepit_trio import hardware

from .checks import pid_room
from .words import quantile

__all__ = ["how_many", "measure"]

TRIVIAL = "snakepit_trio.cli.trivial"
#: Sequential calls; concurrent callers, and calls of each.
_CALLS, _CALLERS, _EACH = 300, 16, 100
_CANCELS = 20


@asynccontextmanager
async def _pool(adapter: str, size: int) -> AsyncIterator[sp.Pool]:
    with tempfile.TemporaryDirectory(prefix="snakepit-diagnose-") as place:
        config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=adapter, size=size)], state_dir=place, control=False)
        async with sp.open_runtime(config) as runtime:
            yield runtime.pool()


async def measure(adapter: str | None) -> dict[str, Any]:
    """Measure the resources of a worker and the speed of calls. Sizes are in bytes, times in seconds."""
    found: dict[str, Any] = {"adapter": adapter or TRIVIAL, "scaling": await _scaling(adapter or TRIVIAL)}
    found["latency"] = await _latency()
    return found


async def _scaling(adapter: str) -> dict[str, Any]:
    host = psutil.Process()
    before = time.perf_counter()
    async with _pool(adapter, 1) as pool:
        started = time.perf_counter() - before
        fds, others = host.num_fds(), _descendants(host)
        begun = time.perf_counter()
        await pool.resize(3)
        growth = (time.perf_counter() - begun) / 2
        workers = [psutil.Process(worker.pid) for worker in pool.workers()]
        per_worker = {
            "memory": max(map(_own_memory, workers)),
            "rss": max(process.memory_info().rss for process in workers),
            "descriptors": max(1, -(-(host.num_fds() - fds) // 2)),
            # Further processes that appeared with two workers belong to them, such as processes that the adapter starts.
            "pids": max(process.num_threads() for process in workers) + max(0, (_descendants(host) - others - 2) // 2),
        }
        machine = hardware.detect()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room: dict[str, int | None] = {
            "memory": _memory_room(machine),
            "descriptors": None if soft == resource.RLIM_INFINITY else soft - fds,
            "pids": pid_room(),
        }
    return {
        "per_worker": per_worker,
        "room": room,
        **how_many(per_worker, room),
        "cores": machine.cpu.usable,
        "first_worker_after": started,
        "next_worker_after": growth,
    }


def how_many(per_worker: Mapping[str, int], room: Mapping[str, int | None]) -> dict[str, Any]:
    """Return the number of workers for which there is room: by resource, in all, and the limiting resource. None is no limit."""
    fits = {name: max(0, left // per_worker[name]) for name, left in room.items() if left is not None}
    limit = min(fits, key=lambda name: fits[name]) if fits else None
    return {"fits": fits, "workers": None if limit is None else fits[limit], "limited_by": limit}


def _memory_room(machine: hardware.Hardware) -> int:
    memory = machine.memory
    if memory.limit is None:
        return memory.available
    used = 0
    for folder in hardware.control_groups():
        with contextlib.suppress(OSError, ValueError):
            used = max(used, int((folder / "memory.current").read_text()))
    return max(0, min(memory.available, memory.limit - used))


def _own_memory(process: psutil.Process) -> int:
    """Return the memory that would be free without this process; workers of one template share most of their pages."""
    try:
        return int(process.memory_full_info().uss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)


def _descendants(process: psutil.Process) -> int:
    return len(process.children(recursive=True))


async def _latency() -> dict[str, Any]:
    """Measure the library's own share of a call with a tool that does nothing."""
    async with _pool(TRIVIAL, min(2, os.cpu_count() or 1)) as pool:
        for _ in range(_CALLS // 10):
            await pool.execute("nothing")
        times = []
        for _ in range(_CALLS):
            begun = time.perf_counter()
            await pool.execute("nothing", {"text": "x" * 64})
            times.append(time.perf_counter() - begun)
        times.sort()

        async def caller() -> None:
            for _ in range(_EACH):
                await pool.execute("nothing", {"text": "x" * 64})

        begun = time.perf_counter()
        async with anyio.create_task_group() as nursery:
            for _ in range(_CALLERS):
                nursery.start_soon(caller)
        rate = _CALLERS * _EACH / (time.perf_counter() - begun)
        cancels = sorted([await _cancel(functools.partial(pool.execute, "nothing")) for _ in range(_CANCELS)])
        stats = pool.stats()
    return {
        "calls": _CALLS,
        "p50": quantile(times, 0.5),
        "p99": quantile(times, 0.99),
        "max": times[-1],
        "callers": _CALLERS,
        "calls_per_second": rate,
        "cancel_max": cancels[-1],
        "failed": stats.failed,
    }


async def _cancel(call: Any) -> float:
    """Return the time from a cancellation to the end of its scope, in seconds."""
    cancelled = 0.0
    async with anyio.create_task_group() as nursery:

        async def endless() -> None:
            while True:
                await call()

        nursery.start_soon(endless)
        await anyio.sleep(0.002)
        cancelled = time.perf_counter()
        nursery.cancel_scope.cancel()
    return time.perf_counter() - cancelled

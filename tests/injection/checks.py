"""What there is to see of a runtime, and of the process that it is in, after a try."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import trio

import snakepit_trio as sp

__all__ = ["Size", "amiss"]


def amiss(runtime: sp.Runtime) -> list[str]:
    """What is not idle, is missing, or does not add up; each begins with what kind it is."""
    found = []
    for pool in runtime.pools.values():
        stats, config = pool.stats(), pool.config
        ended = stats.completed + stats.failed + stats.cancelled + stats.timed_out
        if stats.accepted != ended + stats.in_flight + stats.queued:
            found.append(f"books: {pool.name}: {stats}")
        if stats.in_flight or stats.queued or stats.busy:
            found.append(f"seat: {pool.name}: {stats}")
        if stats.ready != stats.size or stats.size != config.size:
            found.append(f"workers: {pool.name}: {stats}")
        workers = pool.workers()
        found += [
            f"workers: {pool.name}: {worker}"
            for worker in workers
            if worker.state not in ("ready", "spare") or worker.in_flight or worker.tainted
        ]
        if pool.supervisor._slots._surge.value != max(1, config.surge):
            found.append(f"seat: {pool.name}: a replacement keeps its turn")
        if len(workers) != stats.size + config.spares:
            found.append(f"workers: {pool.name}: {[worker.state for worker in workers]}")
    return found


#: Tasks of which there are more or fewer with the way in which a worker came to its slot.
_VARYING = ("slot.Slot._follow", "slot._first.<locals>.wait")


class Size:
    """What a process holds, by kind; taken on the event loop."""

    def __init__(self) -> None:
        self.processes = Counter(
            " ".join(command[:4]) for c in psutil.Process().children(recursive=True) if (command := _command(c))
        )
        self.descriptors = Counter(re.sub(r"[0-9]+|/[0-9a-f]{8,}", "*", target) for target in _descriptors())
        self.tasks = Counter(name for name in _tasks() if not name.endswith(_VARYING))

    def grown(self) -> list[str]:
        """What there is more, or less, of now."""
        now, found = Size(), []
        for name in ("processes", "descriptors", "tasks"):
            here, there = getattr(now, name), getattr(self, name)
            # A client may not have closed its end yet; a task that is missing has ended.
            if here.total() > there.total() or (name == "tasks" and here.total() < there.total()):
                more = ", ".join(f"{n} more {kind}" for kind, n in (here - there).items())
                less = ", ".join(f"{n} fewer {kind}" for kind, n in (there - here).items())
                found.append(f"leak: {name}: {'; '.join(filter(None, [more, less]))}")
        return found


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(f"/proc/self/fd/{name}")


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _tasks() -> Iterator[str]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        yield from _below(trio.lowlevel.current_root_task())
    else:
        for task in asyncio.all_tasks():
            name = task.get_name()
            yield getattr(task.get_coro(), "__qualname__", name) if name.startswith("Task-") else name


def _below(task: Any) -> Iterator[str]:
    yield task.name.removeprefix("snakepit_trio.")
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _below(child)

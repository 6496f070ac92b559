"""What tests wait for: each wait ends as soon as it may, and is bounded; a test's own scope may be shorter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import psutil

import snakepit_trio as sp

#: Seconds. Nothing that is waited for takes longer, on the slowest machine.
_LONGEST = 60.0


async def until(condition: Callable[[], object], within: float = _LONGEST) -> None:
    """Wait until something holds that nobody tells of.

    Raises:
        TimeoutError: It did not within so many seconds.
    """
    with anyio.fail_after(within):
        while not condition():
            await anyio.sleep(0.002)


async def appears(path: Path) -> None:
    """Wait for a worker to make a file."""
    await until(path.exists)


async def running(pool: sp.Pool, calls: int = 1) -> None:
    """Wait until so many calls have gone to workers, and no longer."""
    with anyio.fail_after(_LONGEST):
        while pool.stats().in_flight < calls:
            await anyio.lowlevel.checkpoint()


async def settled(pool: sp.Pool) -> None:
    """Wait until nothing is under way."""
    await until(lambda: not pool.stats().in_flight and not pool.stats().queued)


async def gone(process: psutil.Process, within: float = _LONGEST) -> None:
    """Wait until a process has ended, whether or not anybody has reaped it."""
    await until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, within)

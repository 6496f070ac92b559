"""Tools for what happens between a worker's I/O and its tools; nothing async."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import snakepit_trio as sp


@sp.tool
def echo(value: Any) -> Any:
    return value


@sp.tool(inline=True)
def quick(value: Any) -> Any:
    return [value, threading.current_thread().name]


@sp.tool(inline=True)
def quick_fail() -> None:
    raise LookupError("as asked")


@sp.tool(inline=True)
def quick_ask(ctx: sp.ToolContext) -> Any:
    return ctx.call_host_sync("anything")


@sp.tool
def hold(marker: str, until: str) -> list[float]:
    """Touch the marker, then be busy until another file is there; gives the times of begin and end."""
    begun = time.monotonic()
    Path(marker).touch()
    while not os.path.exists(until):
        time.sleep(0.002)
    return [begun, time.monotonic()]


@sp.tool
def watched(ctx: sp.ToolContext) -> str:
    """Compute, never let the GIL go, until cancelled."""
    while not ctx.cancelled:
        pass
    ctx.raise_if_cancelled()
    return "never"


@sp.tool
def ask(ctx: sp.ToolContext, name: str, times: int = 1, pause: float = 0.0) -> list[Any]:
    answers = []
    for number in range(times):
        time.sleep(pause)
        answers.append(ctx.call_host_sync(name, {"number": number}))
    return answers


@sp.tool
def ask_from_threads(ctx: sp.ToolContext, name: str, count: int) -> list[Any]:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(ctx.call_host_sync(name, {"number": n})))
        for n in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(answers)


@sp.tool
def tell(ctx: sp.ToolContext, until: str) -> None:
    """Emit an event, then go on until a file is there."""
    ctx.emit("told", {"n": 1})
    while not os.path.exists(until):
        time.sleep(0.002)


@sp.tool
def count(n: int, until: str = "") -> Iterator[int]:
    """Count; after the first chunk wait for a file, if one is named."""
    for number in range(n):
        yield number
        while until and not os.path.exists(until):
            time.sleep(0.002)


@sp.tool
def own_loop() -> str:
    """A tool may run an event loop of its own."""

    async def main() -> str:
        await asyncio.sleep(0)
        return "ran"

    return asyncio.run(main())

"""Tools that call their host, sync and async, and tools that keep something in their worker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import anyio

import snakepit_trio as sp

STATE: dict[str, Any] = {}


@sp.tool
async def ask(ctx: sp.ToolContext, name: str, params: dict[str, Any], timeout: float | None = None) -> Any:
    """Call a host tool from an async tool."""
    return await ctx.call_host(name, params, timeout=timeout)


@sp.tool
def ask_sync(ctx: sp.ToolContext, name: str, params: dict[str, Any], timeout: float | None = None) -> Any:
    """Call a host tool from a sync tool."""
    return ctx.call_host_sync(name, params, timeout=timeout)


@sp.tool
async def ask_many(ctx: sp.ToolContext, name: str, n: int) -> list[Any]:
    """Call a host tool many times at once."""
    results: list[Any] = [None] * n

    async def one(index: int) -> None:
        results[index] = await ctx.call_host(name, {"value": index})

    async with anyio.create_task_group() as nursery:
        for index in range(n):
            nursery.start_soon(one, index)
    return results


@sp.tool
async def caught(ctx: sp.ToolContext, name: str, params: dict[str, Any]) -> str:
    """The name of what a host tool raises."""
    try:
        await ctx.call_host(name, params)
    except sp.remote(ValueError) as exc:
        return f"remote ValueError: {exc.remote_message}"
    except sp.SnakepitError as exc:
        return f"{type(exc).__name__}: {exc.details.get('path') or exc.details.get('tool')}"
    return "nothing"


@sp.tool
def asked_stream(ctx: sp.ToolContext, name: str, n: int) -> Iterator[Any]:
    for index in range(n):
        yield ctx.call_host_sync(name, {"value": index})


@sp.tool
def bad_calls(ctx: sp.ToolContext) -> list[str]:
    """What is refused before anything is sent."""
    found = []
    for arguments, options in [
        (("echo", {"value": object()}), {}),
        (("echo", 5), {}),
        ((5, {}), {}),
        (("echo", {}), {"timeout": -1}),
    ]:
        try:
            ctx.call_host_sync(*arguments, **options)  # type: ignore[arg-type]
        except sp.InvalidParameter as exc:
            found.append(exc.details["path"])
    return found


@sp.tool
async def nap(seconds: float, until: str = "") -> int:
    """Sleep, and then until the file is there."""
    await anyio.sleep(seconds)
    while until and not os.path.exists(until):
        await anyio.sleep(0.002)
    return os.getpid()


@sp.tool
def nap_sync(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@sp.tool
def who(ctx: sp.ToolContext) -> dict[str, Any]:
    return {"worker": ctx.worker_id, "session": ctx.session_id, "pid": os.getpid()}


@sp.tool
def keep(key: str, value: Any) -> str:
    STATE[key] = value
    return str(os.getpid())


@sp.tool
def kept(key: str) -> Any:
    return STATE.get(key)


@sp.tool
def fail(message: str) -> None:
    raise ValueError(message)


@sp.tool
def die() -> None:
    os.kill(os.getpid(), 9)
    time.sleep(60)


@sp.tool
async def numbers(n: int, pause: float = 0.0):  # type: ignore[no-untyped-def]
    for number in range(n):
        await anyio.sleep(pause)
        yield number

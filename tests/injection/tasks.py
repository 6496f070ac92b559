"""Async tools for the scenario, several at once in one worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio

import snakepit_trio as sp
import tests.injection.inside  # noqa: F401  It traces this process.


@sp.tool(idempotent=True)
async def add(a: int, b: int) -> int:
    return a + b


@sp.tool(idempotent=True)
async def rest(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "rested"


@sp.tool(idempotent=True)
async def slow_first(ctx: sp.ToolContext, seconds: float) -> int:
    """Slow unless it is run again."""
    await anyio.sleep(seconds)
    return ctx.attempt


@sp.tool(idempotent=True)
async def lose_connection() -> None:
    raise ConnectionError("as asked")


@sp.tool
async def count(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


@sp.tool
async def ask(ctx: sp.ToolContext, name: str, params: dict[str, Any], timeout: float | None = None) -> Any:
    return await ctx.call_host(name, params, timeout=timeout)


@sp.tool
def blocking(ctx: sp.ToolContext, value: int) -> Any:
    """A sync tool in a worker of async ones."""
    return ctx.call_host_sync("double", {"value": value})

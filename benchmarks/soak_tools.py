"""What the workers of the soak run do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import anyio

import snakepit_trio as sp


@sp.tool(idempotent=True)
def echo(value: Any) -> Any:
    return value


@sp.tool
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"


@sp.tool
async def rest(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "rested"


@sp.tool
def count(n: int) -> Iterator[int]:
    yield from range(n)


@sp.tool
def fail(message: str) -> None:
    raise ValueError(message)


@sp.tool
def die() -> None:
    os.abort()


@sp.tool
def ask_host(ctx: sp.ToolContext, value: int) -> int:
    return int(ctx.call_host_sync("double", {"value": value}))

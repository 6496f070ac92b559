"""Tools that need an event loop, written on anyio so that they run on both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import sniffio

import snakepit_trio as sp


@sp.tool
async def which() -> str:
    return sniffio.current_async_library()


@sp.tool
async def wait(marker: str) -> None:
    """Touch the marker, wait for ever, touch a second marker when cancelled."""
    Path(marker).touch()
    try:
        await anyio.sleep_forever()
    finally:
        Path(marker + ".cancelled").touch()


@sp.tool
def sync_add(a: int, b: int) -> int:
    return a + b


@sp.tool
async def count(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


@sp.tool
async def count_and_note(marker: str) -> AsyncIterator[int]:
    number = 0
    try:
        while True:
            yield number
            number += 1
    finally:
        await anyio.lowlevel.checkpoint()
        Path(marker).write_text(str(number))


@sp.tool
async def ask_host(ctx: sp.ToolContext, name: str, params: dict[str, Any]) -> Any:
    return await ctx.call_host(name, params)


@sp.tool
async def ask_and_catch(ctx: sp.ToolContext, name: str) -> str:
    try:
        await ctx.call_host(name, {})
    except sp.remote(KeyError) as error:
        return f"caught {error.remote_type}"
    return "nothing"


@sp.tool
async def naps() -> AsyncIterator[int]:
    """Two chunks, and for ever none."""
    yield 1
    yield 2
    await anyio.sleep_forever()


@sp.tool
async def early(ctx: sp.ToolContext) -> None:
    """Sees its deadline pass a moment before anybody else can."""
    assert ctx.deadline is not None
    await anyio.sleep(ctx.deadline - 0.008)
    raise sp.RequestTimeout("spent")


@sp.tool
async def ask_often(ctx: sp.ToolContext, name: str, size: int, count: int) -> list[str]:
    """Call a host tool so many times at once with so many bytes; returns what went wrong with each call."""
    found: list[str] = []

    async def ask() -> None:
        try:
            await ctx.call_host(name, {"data": bytes(size)})
        except sp.SnakepitError as exc:
            found.append(exc.message)
        else:
            found.append("")

    async with anyio.create_task_group() as nursery:
        for _ in range(count):
            nursery.start_soon(ask)
    return found

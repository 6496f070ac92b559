"""Async tools that wait when they are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel

import snakepit_trio as sp


@asynccontextmanager
async def _cleaned(marker: str, *, shield: bool) -> AsyncIterator[None]:
    """Touch a file at the block's begin and one at the end of a clean-up that takes a while."""
    try:
        Path(f"{marker}.begun").touch()
        yield
    finally:
        with anyio.CancelScope(shield=shield):
            for _ in range(3):
                await anyio.sleep(0.01)
            Path(f"{marker}.cleaned").touch()


@sp.tool
async def waits(marker: str, shield: bool = False) -> None:
    async with _cleaned(marker, shield=shield):
        await anyio.sleep_forever()


@sp.tool
async def counts(marker: str, shield: bool = False) -> AsyncIterator[int]:
    async with _cleaned(marker, shield=shield):
        yield 1
        await anyio.sleep_forever()


@sp.tool
async def has_children(marker: str, shield: bool = False) -> None:
    async with anyio.create_task_group() as nursery:
        for number in range(3):
            nursery.start_soon(waits, f"{marker}{number}", shield)
        async with _cleaned(marker, shield=shield):
            await anyio.sleep_forever()


@sp.tool
async def in_asyncios_own(marker: str, shield: bool = False) -> None:
    """asyncio's task group, in its timeout, around its wait_for."""

    async def child(number: int) -> None:
        async with _cleaned(f"{marker}{number}", shield=shield):
            await asyncio.wait_for(asyncio.sleep(3600), 1000)

    async with asyncio.timeout(1000), asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(child(number))
        async with _cleaned(marker, shield=shield):
            await asyncio.wait_for(asyncio.sleep(3600), 1000)


@sp.tool
async def is_shielded(marker: str, until: str) -> None:
    """Not to be disturbed until the file is there; then it is."""
    with anyio.CancelScope(shield=True):
        Path(f"{marker}.begun").touch()
        while not Path(until).exists():
            await anyio.sleep(0.002)
        Path(f"{marker}.undisturbed").touch()
    async with _cleaned(marker, shield=True):
        await anyio.sleep_forever()


@sp.tool
async def busy(ctx: sp.ToolContext, marker: str) -> None:
    """Is about to be resumed whenever it is cancelled."""
    async with _cleaned(marker, shield=True):
        while True:
            await anyio.lowlevel.checkpoint()

"""The tools of hostile.py on an event loop."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import anyio

import snakepit_trio as sp
from tests.adapters import hostile


@sp.tool
async def plain(kind: str) -> None:
    hostile.ran(kind)
    raise hostile.make(kind)


@sp.tool
async def in_a_nursery(kind: str) -> None:
    """Raised in a task of its own, so that it leaves in a group."""
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(plain, kind)


@sp.tool
async def chunks(kind: str) -> AsyncIterator[int]:
    hostile.ran(kind)
    yield 1
    raise hostile.make(kind)


@sp.tool
def runs() -> dict[str, int]:
    return hostile.runs()


@sp.tool
def ok() -> int:
    return os.getpid()

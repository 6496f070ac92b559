"""The tools of ``short``, in an adapter that needs an event loop."""

from __future__ import annotations

import os
from pathlib import Path

import anyio

import snakepit_trio as sp

from .short import *  # noqa: F403


@sp.tool
async def pause(seconds: float) -> None:
    await anyio.sleep(seconds)


@sp.tool
async def hold_async(ctx: sp.ToolContext, marker: str, until: str) -> int:
    """Touch the marker, with the attempt behind its name, then wait until another file is there; gives the attempt."""
    Path(f"{marker}-{ctx.attempt}").touch()
    while not os.path.exists(until):
        await anyio.sleep(0.002)
    return ctx.attempt

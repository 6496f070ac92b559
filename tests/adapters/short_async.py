"""The tools of ``short``, in an adapter that needs an event loop."""

from __future__ import annotations

import anyio

import snakepit_trio as sp

from .short import *  # noqa: F403


@sp.tool
async def pause(seconds: float) -> None:
    await anyio.sleep(seconds)

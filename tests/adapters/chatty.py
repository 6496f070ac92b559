"""Says something when it is imported, and when a worker ends; its health is asked in the tools' event loop."""

from __future__ import annotations

import atexit
import os
import sys

import anyio
import anyio.lowlevel

import snakepit_trio as sp

print("imported here")
print("and a warning", file=sys.stderr)
atexit.register(print, "the importer's end")

ill: list[str] = []


def setup() -> None:
    atexit.register(lambda: print("the worker's end", flush=True))


async def health() -> bool:
    await anyio.lowlevel.checkpoint()
    return not ill


@sp.tool
async def fall_ill() -> int:
    ill.append("fever")
    return os.getpid()


@sp.tool
async def pid() -> int:
    return os.getpid()

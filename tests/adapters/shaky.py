"""Tools that fail, or are slow, the first time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import snakepit_trio as sp


def first_time(marker: str) -> bool:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@sp.tool(idempotent=True)
def refuse_once(marker: str) -> str:
    if first_time(marker):
        raise ConnectionRefusedError("not yet")
    return "there"


@sp.tool(idempotent=True)
def slow_once(marker: str, ctx: sp.ToolContext) -> str:
    if not first_time(marker):
        return "quick"
    while not ctx.cancelled:
        time.sleep(0.002)
    with open(marker + ".cancelled", "w"):
        pass
    ctx.raise_if_cancelled()
    return "never"


@sp.tool
def wrong() -> None:
    raise ValueError("wrong")


@sp.tool
def wrong_stream() -> Iterator[int]:
    yield 1
    raise ValueError("wrong")


@sp.tool
def peak(directory: str) -> int:
    """How many of these run at once, itself included."""
    mine = os.path.join(directory, f"{os.getpid()}")
    with open(mine, "w"):
        pass
    found = len(os.listdir(directory))
    time.sleep(0.01)
    os.unlink(mine)
    return found

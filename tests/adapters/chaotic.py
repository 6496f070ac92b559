"""Tools for a pool that is being sabotaged."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import snakepit_trio as sp


@sp.tool(idempotent=True)
def echo(value: Any) -> Any:
    return value


@sp.tool
def nap(seconds: float) -> None:
    time.sleep(seconds)


@sp.tool
def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@sp.tool
def count(n: int) -> Iterator[int]:
    for number in range(n):
        time.sleep(0.001)
        yield number


@sp.tool
def ignore() -> None:
    """Neither a cancel nor SIGTERM ends it."""
    while True:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        time.sleep(0.01)


@sp.tool
def crash() -> None:
    ctypes.string_at(0)


@sp.tool
def exit() -> None:
    os._exit(3)

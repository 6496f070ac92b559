"""Tools that take and give large values."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np

import snakepit_trio as sp

kept: list[Any] = []


@sp.tool(idempotent=True)
def echo(value: Any) -> Any:
    return value


@sp.tool
def total(array: Any) -> float:
    return float(array.sum())


@sp.tool
def keep(array: Any) -> bool:
    """Holds on to a view beyond its call. Returns whether it could write to it."""
    kept.append(array[1:])
    return bool(array.flags.writeable)


@sp.tool
def keep_and_return(array: Any) -> Any:
    kept.append(array[1:])
    return array


@sp.tool
def part(array: Any, size: int) -> Any:
    return array[:size]


@sp.tool
def made(size: int, value: int) -> Any:
    return np.full(size, value, np.uint8)


@sp.tool
def kept_sums() -> list[float]:
    sums = [float(array.sum()) for array in kept]
    kept.clear()
    return sums


@sp.tool
def pieces(n: int, size: int) -> Iterator[Any]:
    for number in range(n):
        yield np.full(size, number, dtype=np.uint8)


@sp.tool
def die_with(array: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Odd:
    """Nothing that can be sent."""


@sp.tool
def odd() -> Any:
    return {"a": [1, Odd()]}

"""The tools that ``snakepit bench`` runs in the workers."""

from __future__ import annotations

from collections.abc import Iterator

from snakepit_trio.worker.adapter import tool


@tool(idempotent=True)
def echo(data: bytes) -> bytes:
    """What came."""
    return data


@tool
def count(n: int) -> Iterator[int]:
    """The numbers below n."""
    yield from range(n)

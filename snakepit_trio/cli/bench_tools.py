"""The tools that ``snakepit bench`` runs in the workers."""

from __future__ import annotations

from collections.abc import Iterator

from snakepit_trio.worker.adapter import tool


@tool(idempotent=True)
def echo(data: bytes) -> bytes:
    """Return the argument."""
    return data


@tool
def count(n: int) -> Iterator[int]:
    """Yield the numbers below n."""
    yield from range(n)

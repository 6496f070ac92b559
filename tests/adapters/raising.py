"""Tools that raise what nobody expects of them, in every way in which tools are run. The module's own tools are sync."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import anyio.lowlevel

import snakepit_trio as sp


class Base(BaseException):
    """Not an Exception."""


_KINDS = {kind.__name__: kind for kind in (Base, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)}


@sp.tool
def plain(kind: str) -> None:
    raise _KINDS[kind]("as asked")


@sp.tool
def chunks(kind: str) -> Iterator[int]:
    yield 1
    raise _KINDS[kind]("as asked")


@sp.tool
def fine() -> str:
    return "fine"


class Looping(sp.Adapter):
    """The same, and async."""

    @sp.tool
    def plain(self, kind: str) -> None:
        plain(kind)

    @sp.tool
    def fine(self) -> str:
        return "fine"

    @sp.tool
    async def later(self, kind: str) -> None:
        await anyio.lowlevel.checkpoint()
        plain(kind)

    @sp.tool
    async def chunks(self, kind: str) -> AsyncIterator[int]:
        yield 1
        plain(kind)

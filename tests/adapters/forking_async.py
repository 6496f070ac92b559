"""Async tools that fork."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio

import snakepit_trio as sp

from .forking import fork


@sp.tool
async def come_back(how: str) -> Any:
    await anyio.sleep(0.01)
    return fork(how) or "the child speaks"


@sp.tool
async def stream(how: str) -> AsyncIterator[Any]:
    yield "first"
    yield fork(how) or "the child speaks"
    yield "last"


class InHooks(sp.Adapter):
    async def setup(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.codes = [fork("return"), fork("raise")]

    async def health(self) -> bool:
        self.codes.append(fork("exit"))
        return True

    async def teardown(self) -> None:
        fork("raise")

    @sp.tool
    async def told(self) -> list[Any]:
        return self.codes

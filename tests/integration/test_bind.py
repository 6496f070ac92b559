"""A pool's tools as methods, by a Protocol or an Adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import anyio
import pytest

import snakepit_trio as sp
from tests.adapters.classy import Plane, Point

pytestmark = pytest.mark.anyio


@dataclasses.dataclass
class Me:
    pid: int
    worker_id: str
    request_id: str
    attempt: int
    metadata: dict[str, str]
    deadline: float | None
    session_id: str | None


class Basic(Protocol):
    async def add(self, a: int, b: int) -> int: ...
    async def echo(self, value: Any) -> Any: ...
    async def whoami(self) -> Me: ...
    def count(self, n: int) -> AbstractAsyncContextManager[AsyncIterator[int]]: ...


class Wrong(Protocol):
    async def no_such_tool(self) -> None: ...


async def test_a_protocol() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.basic", size=1) as pool:
            basic = pool.bind(Basic)
            assert await basic.add(1, b=2) == 3
            me = await basic.whoami()
            assert isinstance(me, Me)
            async with basic.count(3) as chunks:
                assert [chunk async for chunk in chunks] == [0, 1, 2]
            with pytest.raises(sp.InvalidParameter, match="missing a required argument: 'b'"):
                await basic.add(1)  # type: ignore[call-arg]
            with pytest.raises(sp.InvalidParameter, match="expected int, got str"):
                await basic.add(1, "2")  # type: ignore[arg-type]
            with pytest.raises(sp.ToolNotFound, match="no_such_tool"):
                pool.bind(Wrong)
            with pytest.raises(sp.InvalidParameter):
                pool.bind(Me)
            assert "Basic" in repr(basic)


async def test_an_adapter() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.classy:Plane", size=1) as pool:
            plane = pool.bind(Plane)
            assert await plane.move(Point(1, 2), by=3) == Point(4, 5)  # type: ignore[misc]
            assert await plane.move(Point(1)) == Point(2, 1)  # type: ignore[misc]
            assert await plane.readiness() == "True 1"  # type: ignore[call-arg]
            assert await plane.readiness(shout=True) == "TRUE 1"  # type: ignore[call-arg]
            assert await plane.extras(a=1, b=2) == {"a": 1, "b": 2}  # type: ignore[misc]
            async with plane.numbers(3) as chunks:  # type: ignore[attr-defined]
                assert [chunk async for chunk in chunks] == [0, 1, 2]
            async with plane.line(2) as chunks:  # type: ignore[attr-defined]
                assert [chunk async for chunk in chunks] == [Point(0), Point(1)]

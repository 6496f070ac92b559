"""A pool's tools as methods, by a Protocol or an Adapter."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import anyio
import pytest

import snakepit_trio as sp
from tests.adapters import basic, odd
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
            assert await plane.move(Point(1, 2), by=3) == Point(4, 5)
            assert await plane.move(Point(1)) == Point(2, 1)
            assert await plane.readiness() == "True 1"
            assert await plane.readiness(shout=True) == "TRUE 1"
            assert await plane.extras(a=1, b=2) == {"a": 1, "b": 2}
            # A static method has no `self`, and a class method's is the class.
            assert await plane.distance(Point(1, 2), Point(4, 6)) == 5.0
            assert await plane.origin(3) == Point(3, 0)
            async with plane.numbers(3) as chunks:
                assert [chunk async for chunk in chunks] == [0, 1, 2]
            async with plane.line(2) as chunks:
                assert [chunk async for chunk in chunks] == [Point(0), Point(1)]
            with pytest.raises(AttributeError, match="has no tool 'mov'; did you mean 'move'"):
                plane.mov  # noqa: B018
            assert not hasattr(plane, "setup")
            # What a method is declared to give, execute and map give too.
            assert await pool.execute(plane.move, {"point": Point(1, 2)}) == Point(2, 3)
            async with pool.map(plane.move, ({"point": Point(n)} for n in range(3))) as points:
                assert [point async for point in points] == [Point(1, 1), Point(2, 1), Point(3, 1)]
            found = await pool.execute_many(plane.move, [{"point": Point(1)}, {"point": 5}], return_errors=True)
            assert found[0] == Point(2, 1) and isinstance(found[1], sp.InvalidParameter)
            async with pool.session() as session:
                assert await session.execute(plane.move, {"point": Point(1, 2)}, timeout=20) == Point(2, 3)
                async with session.stream(plane.numbers, {"n": 2}) as chunks:
                    assert [chunk async for chunk in chunks] == [0, 1]
            async with pool.stream(plane.line, {"n": 2}) as chunks:
                assert [chunk async for chunk in chunks] == [{"x": 0, "y": 0}, {"x": 1, "y": 0}]


async def test_a_module() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.basic", size=1) as pool:
            bound = pool.bind(basic)
            assert await bound.add(1, b=2) == 3
            assert (await bound.whoami())["attempt"] == 1
            async with bound.count(2) as chunks:
                assert [chunk async for chunk in chunks] == [0, 1]
            with pytest.raises(sp.InvalidParameter, match="add: missing a required argument: 'b'"):
                await bound.add(1)
            assert list(inspect.signature(bound.add).parameters) == ["a", "b"]
            assert repr(bound).startswith("<basic of <Pool 'default'")
            # A marked function stands for its tool.
            assert await pool.execute(basic.add, {"a": 1, "b": 2}) == 3
            assert await pool.execute_many(basic.add, [{"a": n, "b": n} for n in range(3)]) == [0, 2, 4]


async def test_tools_that_are_not_plain_functions() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.odd", size=1) as pool:
            specs = {spec.name: spec for spec in pool.tools()}
            assert sorted(specs) == ["count", "hello", "later", "negative", "power", "sqrt", "square", "two_to"]
            assert (specs["hello"].description, specs["two_to"].description) == (
                "Greet somebody.",
                "Base to the exponent.",
            )
            assert specs["two_to"].idempotent and specs["count"].streaming
            assert await pool.execute("sqrt", {"x": 9}) == 3.0
            assert await pool.execute("square", {"base": 3}) == 9
            assert await pool.execute("two_to", {"exponent": 5}) == 32
            assert await pool.execute("power", {"base": 2, "exponent": 3}) == 8
            assert await pool.execute("later") == 3 and await pool.execute("negative", {"a": 4}) == -4
            with pytest.raises(sp.InvalidParameter, match="expected str, got int"):
                await pool.execute("hello", {"name": 4})
            bound = pool.bind(odd)
            assert await bound.hello("you") == "hello you" and await bound.root(16) == 4.0
            assert await bound.two_to(3) == 8 and await bound.square(base=4) == 16 and await bound.cached(2, 3) == 8
            async with bound.count(2) as chunks:
                assert [chunk async for chunk in chunks] == [0, 1]
        async with sp.open_pool("tests.adapters.odd:Sums", size=1) as pool:
            sums = pool.bind(odd.Sums)
            assert await sums.root(16) == 4.0 and await sums.square(3) == 9


async def test_what_can_not_be_bound() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.classy:Plane", size=1) as pool:
            for declaration, text in [
                (
                    "tests.adapters.classy",
                    "takes an adapter's module, its class, or a Protocol, not an object of type str",
                ),
                (Plane(), r"not an object of type Plane; give the class itself: pool.bind\(Plane\)"),
                (inspect, "inspect declares no tools"),
                (basic, "has no tool"),
            ]:
                with pytest.raises(sp.SnakepitError, match=text):
                    pool.bind(declaration)
            with pytest.raises(
                sp.InvalidParameter, match=r"a function is a tool when it is marked with @snakepit_trio.tool"
            ):
                await pool.execute(anyio.sleep, {"delay": 1.0})
            with pytest.raises(sp.InvalidParameter, match=r"the tool must be named by text, not int$"):
                await pool.execute(3)  # type: ignore[call-overload]

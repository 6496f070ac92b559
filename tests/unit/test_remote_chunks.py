"""A stream's chunks in a client: what waits for its reader is bounded, by number and by size, and the server waits meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

import snakepit_trio as sp
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.client import streams
from snakepit_trio.client.streams import RemoteChunks
from snakepit_trio.client.values import pack
from snakepit_trio.wire.generated.snakepit import v1

pytestmark = pytest.mark.anyio


class Rpc:
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.held = 0
        self.cancelled = 0
        self.trailers: Any = {}
        self.unprocessed = False
        self.pipe = SimpleNamespace(hold=lambda: self.hold(1), release=lambda: self.hold(-1))

    def hold(self, by: int) -> None:
        self.held += by
        assert self.held in (0, 1)

    def cancel(self) -> None:
        self.cancelled += 1


def chunk(value: Any) -> bytes:
    return bytes(v1.ToolChunk(payload=pack(value, what="chunk", limit=1 << 20)))


def opened(timeout: float | None = None) -> tuple[RemoteChunks, Rpc]:
    chunks, rpc = RemoteChunks(timeout, 1 << 20, InternalErrors()), Rpc()
    chunks.opened = cast("Any", SimpleNamespace(rpc=rpc))
    return chunks, rpc


async def test_values_in_their_order_and_then_the_end() -> None:
    chunks, rpc = opened()
    for n in range(3):
        chunks.on_message(chunk(n))
    assert repr(chunks) == "<RemoteChunks waiting=3>"
    chunks.on_end(0, "")
    assert [value async for value in chunks] == [0, 1, 2]
    # The end stays the end, also after the block.
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
        chunks.leave()
    assert not rpc.cancelled


async def test_by_number() -> None:
    chunks, rpc = opened()
    for n in range(63):
        chunks.on_message(chunk(n))
    assert not rpc.held
    chunks.on_message(chunk(63))
    assert rpc.held
    # What was under way already.
    for n in range(64, 70):
        chunks.on_message(chunk(n))
    for n in range(70 - 17):
        assert await anext(chunks) == n
    assert rpc.held
    assert await anext(chunks) == 70 - 17
    assert not rpc.held
    for n in range(48):
        assert rpc.held == 0
        chunks.on_message(chunk(n))
    assert rpc.held


async def test_what_arrives_before_the_call_is_open_holds_nothing() -> None:
    chunks = RemoteChunks(None, 1 << 20, InternalErrors())
    for n in range(70):
        chunks.on_message(chunk(n))
    rpc = Rpc()
    chunks.opened = cast("Any", SimpleNamespace(rpc=rpc))
    assert await anext(chunks) == 0 and not rpc.held
    # Once it is, what comes next does.
    chunks.on_message(chunk(70))
    assert rpc.held


async def test_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    one = chunk(bytes(100))
    monkeypatch.setattr(streams, "_MANY_BYTES", 10 * len(one))
    monkeypatch.setattr(streams, "_FEW_BYTES", 3 * len(one))
    chunks, rpc = opened()
    for _ in range(2):
        for _ in range(9 if not rpc.cancelled else 6):
            chunks.on_message(one)
            assert not rpc.held
        chunks.on_message(one)
        assert rpc.held
        for _ in range(6):
            await anext(chunks)
            assert rpc.held
        await anext(chunks)
        assert not rpc.held
        rpc.cancelled += 1


async def test_sixteen_mebibytes_are_many_and_four_are_few() -> None:
    chunks, rpc = opened()
    chunks._limit = 1 << 21
    one = bytes(v1.ToolChunk(payload=pack(bytes(1 << 20), what="chunk", limit=1 << 21)))
    for _ in range(15):
        chunks.on_message(one)
        assert not rpc.held
    chunks.on_message(one)
    assert rpc.held
    # Each has a few bytes more.
    for waiting in range(15, 3, -1):
        await anext(chunks)
        assert rpc.held, waiting
    await anext(chunks)
    assert not rpc.held


async def test_an_error_comes_after_what_was_before_it() -> None:
    chunks, _ = opened()
    chunks.on_message(chunk("a"))
    chunks.on_end(14, "the host has gone")
    assert await anext(chunks) == "a"
    for _ in range(2):
        with pytest.raises(sp.ConnectionLost, match="the host has gone"):
            await anext(chunks)


@pytest.mark.parametrize("opens", [True, False])
async def test_a_call_that_the_host_has_not_begun_is_made_again(opens: bool) -> None:
    chunks, rpc = opened()
    asked: list[bool] = []

    async def again() -> bool:
        asked.append(True)
        if opens:
            rpc.unprocessed = False
            chunks.on_message(chunk("new"))
        return opens

    chunks.opened = cast("Any", SimpleNamespace(rpc=rpc, again=again))
    rpc.unprocessed = True
    chunks.on_end(14, "the host goes away")
    if opens:
        assert await anext(chunks) == "new"
        chunks.on_end(0, "")
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
    else:
        with pytest.raises(sp.ConnectionLost, match="the host goes away"):
            await anext(chunks)
    assert asked == [True]


async def test_a_reader_waits_and_is_told_of_what_comes() -> None:
    chunks, _ = opened()
    got: list[Any] = []

    async def read() -> None:
        got.extend([value async for value in chunks])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(read)
            for n in range(3):
                await anyio.wait_all_tasks_blocked()
                assert got == []
                chunks.on_message(chunk(n))
                with pytest.raises(anyio.BusyResourceError):
                    await anext(chunks)
            await anyio.wait_all_tasks_blocked()
            chunks.on_end(0, "")
    assert got == [0, 1, 2]


async def test_a_cancelled_reader_loses_nothing() -> None:
    chunks, _ = opened()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anext(chunks)
    chunks.on_message(chunk(1))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anext(chunks)
    assert await anext(chunks) == 1


async def test_a_block_that_was_left_ends_its_reader() -> None:
    chunks, _ = opened()
    chunks.on_message(chunk(1))
    chunks.leave()
    with pytest.raises(anyio.ClosedResourceError):
        await anext(chunks)
    chunks, _ = opened()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as nursery:

            async def read() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await anext(chunks)

            nursery.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            chunks.leave()


async def test_the_time_is_that_of_the_whole_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LAST_WORD", 0.01)
    chunks, rpc = opened(0.05)
    begun = anyio.current_time()
    with pytest.raises(sp.RequestTimeout) as late:
        await anext(chunks)
    assert str(late.value) == "the stream had not ended when timeout=0.05 was spent"
    assert late.value.details == {"phase": "running", "option": "timeout", "limit": 0.05}
    assert rpc.cancelled == 1
    assert anyio.current_time() - begun >= 0.06 - 0.001
    # None: for ever.
    chunks, _ = opened(None)
    with anyio.move_on_after(0.1) as scope:
        await anext(chunks)
    assert scope.cancelled_caught

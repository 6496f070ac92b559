"""Calls that a server has surely not begun are sent again: refused streams, and those behind the last one of a GOAWAY.

RFC 9113, section 8.7.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from h2.errors import ErrorCodes

import snakepit_trio as sp
from snakepit_trio.wire import codec
from snakepit_trio.wire.tool_messages import payload_answer
from tests.integration.test_connect import bridged, joined
from tests.until import settled

pytestmark = pytest.mark.anyio

ANSWER = payload_answer(codec.encode("done"))


class Peer:
    """A bridge by h2 that does with each call what its script says next; the last word of it is for all that follow.

    Attributes:
        calls: How many of each kind of request it has seen.
        answered: How many calls it has run.
    """

    def __init__(self, address: str, *script: str, max_streams: int = 100) -> None:
        self.address = address
        self.script = list(script)
        self.max_streams = max_streams
        self.calls: Counter[str] = Counter()
        self.answered = 0
        self.connections = 0

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        engine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        engine.initiate_connection()
        engine.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self.max_streams})
        paths: dict[int, str] = {}
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with stream:
                while True:
                    await stream.send(engine.data_to_send())
                    for event in engine.receive_data(await stream.receive()):
                        if isinstance(event, h2.events.RequestReceived):
                            paths[event.stream_id] = dict(event.headers)[":path"].rpartition("/")[2]  # type: ignore[arg-type]
                        elif isinstance(event, h2.events.StreamEnded):
                            path = paths.pop(event.stream_id)
                            self.calls[path] += 1
                            if self.answer(engine, event.stream_id, path):
                                await stream.send(engine.data_to_send())
                                return

    def answer(self, engine: h2.connection.H2Connection, stream_id: int, path: str) -> bool:
        """Answer one request. Returns whether the connection is over then."""
        what = "answer" if path == "Ping" else self.script[0] if len(self.script) == 1 else self.script.pop(0)
        if what == "refuse":
            engine.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            return False
        if what == "leave":
            engine.close_connection(last_stream_id=stream_id - 2)
            return True
        if what == "leave after it":
            engine.close_connection(last_stream_id=stream_id)
            return True
        if what == "cancel":
            engine.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
            return False
        engine.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        if what == "begin and refuse":
            engine.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            return False
        message = b"" if path == "Ping" else ANSWER
        engine.send_data(stream_id, b"\0" + len(message).to_bytes(4, "big") + message)
        engine.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)
        self.answered += path != "Ping"
        return False


@pytest.fixture
def talk(tmp_path: Path) -> Callable[..., contextlib.AbstractAsyncContextManager[tuple[Peer, sp.Client]]]:
    @asynccontextmanager
    async def opened(*script: str, **options: float) -> AsyncIterator[tuple[Peer, sp.Client]]:
        path = str(tmp_path / "peer.sock")
        peer = Peer(f"unix:{path}", *script)
        with anyio.fail_after(60):
            async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as nursery:
                nursery.start_soon(listener.serve, peer.serve)
                async with sp.connect(peer.address, token="t", **options) as client:
                    yield peer, client
                nursery.cancel_scope.cancel()

    return opened


Talk = Callable[..., contextlib.AbstractAsyncContextManager[tuple[Peer, sp.Client]]]


@pytest.mark.parametrize("why", ["refuse", "leave"])
@pytest.mark.parametrize("timeout", [None, 30.0])
async def test_a_call_that_was_not_begun_is_sent_again(talk: Talk, why: str, timeout: float | None) -> None:
    async with talk(why, why, "answer") as (peer, client):
        assert await client.execute("t", timeout=timeout) == "done"
        assert peer.calls["ExecuteTool"] == 3
        assert peer.answered == 1
        assert peer.connections == (1 if why == "refuse" else 3)


@pytest.mark.parametrize("why", ["refuse", "leave"])
async def test_a_stream_that_was_not_begun_is_sent_again(talk: Talk, why: str) -> None:
    async with talk(why, why, "answer") as (peer, client):
        async with client.stream("t", timeout=30) as chunks:
            assert [chunk async for chunk in chunks] == ["done"]
        assert peer.calls["ExecuteStreamingTool"] == 3


@pytest.mark.parametrize("what", ["cancel", "begin and refuse", "leave after it"])
async def test_a_call_that_may_have_begun_is_not(talk: Talk, what: str) -> None:
    async with talk(what, "answer") as (peer, client):
        with pytest.raises(sp.ConnectionLost):
            await client.execute("t", timeout=30)
        assert peer.calls["ExecuteTool"] == 1
        assert await client.execute("t", timeout=30) == "done"


@pytest.mark.parametrize("why", ["refuse", "leave"])
async def test_a_peer_that_refuses_for_ever(talk: Talk, why: str) -> None:
    """It ends with the call's time, or else with that for a connection, and is not asked without a pause."""
    async with talk(why, connect_timeout=0.5) as (peer, client):
        with pytest.raises(sp.ConnectionLost):
            await client.execute("t", timeout=None)
        with pytest.raises(sp.ConnectionLost):
            async with client.stream("t", timeout=None) as chunks:
                await anext(chunks)
        assert peer.calls["ExecuteTool"] < 12
        assert peer.calls["ExecuteStreamingTool"] < 12
        assert peer.answered == 0


async def test_a_time_that_is_spent_on_refusals(talk: Talk) -> None:
    async with talk("refuse", connect_timeout=30) as (_, client):
        with pytest.raises(sp.RequestTimeout) as caught:
            await client.execute("t", timeout=0.2)
        assert caught.value.details["phase"] == "queued"
        async with client.stream("t", timeout=0.2) as chunks:
            for _ in range(2):
                with pytest.raises(sp.RequestTimeout) as caught:
                    await anext(chunks)
                assert caught.value.details["phase"] == "queued"


async def test_a_reader_that_gives_up_for_a_moment_loses_nothing(talk: Talk) -> None:
    async with talk("refuse", "refuse", "refuse", "answer") as (_, client), client.stream("t", timeout=30) as chunks:
        with anyio.move_on_after(0.02) as scope:
            await anext(chunks)
        assert scope.cancelled_caught
        assert [chunk async for chunk in chunks] == ["done"]


async def test_a_hundred_calls_beside_a_low_limit() -> None:
    """Those that leave early make room a moment before the server knows that they have."""
    ended: Counter[str] = Counter()
    with anyio.fail_after(100):
        async with bridged(size=2, max_streams=4) as runtime, joined(runtime) as client, client.session("s") as session:

            async def call(number: int) -> None:
                if number % 2:
                    with anyio.move_on_after(0.002):
                        await session.execute("sleep", {"seconds": 30})
                    ended["left"] += 1
                elif number % 4:
                    assert await session.execute("add", {"a": number, "b": 1}, timeout=60) == number + 1
                    ended["call"] += 1
                else:
                    async with client.stream("count", {"n": 3}, timeout=60) as chunks:
                        assert [chunk async for chunk in chunks] == [0, 1, 2]
                    ended["stream"] += 1

            async with anyio.create_task_group() as nursery:
                for number in range(100):
                    nursery.start_soon(call, number)
            assert ended == {"left": 50, "call": 25, "stream": 25}
            await settled(runtime.pool("basic"))

"""One contract over every way to move a connection's bytes: a real worker's server at the other end."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from snakepit_trio.launch.base import WorkerSpec
from snakepit_trio.launch.spawn import SpawnLauncher
from snakepit_trio.testing import no_leaks
from snakepit_trio.wire import codec, frame_reading, frame_writing, frames
from snakepit_trio.wire.addresses import parse_address
from snakepit_trio.wire.connection import Connection, RpcFailure
from snakepit_trio.wire.credentials import tls_context
from snakepit_trio.wire.generated.snakepit.v1 import (
    ExecuteRequest,
    ExecuteResponse,
    HandshakeRequest,
    HandshakeResponse,
)
from snakepit_trio.wire.generated.snakepit.v1 import Payload as PayloadMessage
from snakepit_trio.wire.transports import make_wire

pytestmark = pytest.mark.anyio
SERVICE = "/snakepit.v1.WorkerService/"


@asynccontextmanager
async def worker(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[str, Any]]:
    """A worker process, started and listening; gives its address and the process."""
    spec = WorkerSpec(
        worker_id="w", run_id="test", pool="p", token="right",
        socket_dir=str(tmp_path), **{"adapter": "tests.adapters.basic", **options},
    )  # fmt: skip
    process = await SpawnLauncher().start(spec)
    try:
        report = await process.report()
        assert report.address, report
        yield report.address, process
    finally:
        await process.aclose()


@asynccontextmanager
async def connected(backend: str, address: str, token: str = "right") -> AsyncIterator[Connection]:
    async with make_wire(backend) as wire:
        connection = await wire.connect(address, token=token, max_message=1 << 26)
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(connection.serve)
            try:
                yield connection
            finally:
                connection.close()


async def test_unary_calls(anyio_backend: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with worker(tmp_path) as (address, _), connected(anyio_backend, address) as connection:
            request = HandshakeRequest(protocol_version=1, protocol_version_min=1)
            answer = HandshakeResponse.parse(await connection.unary(SERVICE + "Handshake", bytes(request)))
            assert answer.protocol_version == 1
            assert "exchange" in answer.capabilities
            assert "add" in [tool.name for tool in answer.tools]
            assert await connection.unary("/grpc.health.v1.Health/Check", b"") == b"\x08\x01"
            with pytest.raises(RpcFailure) as caught:
                await connection.unary(SERVICE + "Nothing", b"")
            assert caught.value.status == 12
            params = codec.encode({"a": 1, "b": 2})
            execute = ExecuteRequest(tool="add", payload=PayloadMessage(encoding=2, data=params.data))
            reply = ExecuteResponse.parse(await connection.unary(SERVICE + "Execute", bytes(execute)))
            assert reply.payload is not None
            assert codec.decode(frames.Payload(2, reply.payload.data)) == 3
            bad = ExecuteRequest(tool="nothing")
            with pytest.raises(RpcFailure) as caught:
                await connection.unary(SERVICE + "Execute", bytes(bad))
            assert caught.value.status == 5


async def test_version_mismatch_and_wrong_token(anyio_backend: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with worker(tmp_path) as (address, _):
            async with connected(anyio_backend, address) as connection:
                request = HandshakeRequest(protocol_version=99, protocol_version_min=98)
                answer = HandshakeResponse.parse(await connection.unary(SERVICE + "Handshake", bytes(request)))
                assert answer.protocol_version == 1
            async with connected(anyio_backend, address, token="wrong") as connection:
                for path in (SERVICE + "Handshake", SERVICE + "Execute", "/grpc.health.v1.Health/Check"):
                    with pytest.raises(RpcFailure) as caught:
                        await connection.unary(path, b"")
                    assert caught.value.status == 16
                ended: list[int] = []
                over = anyio.Event()
                connection.rpc(
                    SERVICE + "Exchange",
                    on_message=lambda message: None,
                    on_end=lambda status, message: (ended.append(status), over.set()),
                )
                await over.wait()
                assert ended == [16]


class Exchange:
    """An exchange whose frames are kept."""

    def __init__(self, connection: Connection) -> None:
        self.frames: list[Any] = []
        self.ends: list[tuple[int, str]] = []
        self._news = anyio.Event()
        self.rpc = connection.rpc(SERVICE + "Exchange", on_message=self._message, on_end=self._end)

    def _message(self, message: bytes) -> None:
        self.frames.append(frame_reading.decode_worker_frame(message))
        self._news.set()

    def _end(self, status: int, message: str) -> None:
        self.ends.append((status, message))
        self._news.set()

    def send(self, frame: Any) -> None:
        self.rpc.send(frame_writing.encode(frame))

    async def until(self, condition: Any) -> Any:
        while not condition():
            self._news = anyio.Event()
            await self._news.wait()
        return self.frames[-1] if self.frames else None


async def test_the_exchange(anyio_backend: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with (
            worker(tmp_path, threads=4) as (address, _),
            connected(anyio_backend, address) as connection,
        ):
            exchange = Exchange(connection)
            # Many calls in one tick.
            for n in range(1, 501):
                exchange.send(frames.Call(n, tool="add", payload=codec.encode({"a": n, "b": 1})))
            await exchange.until(lambda: len(exchange.frames) == 500)
            assert {f.id: codec.decode(f.payload) for f in exchange.frames} == {n: n + 1 for n in range(1, 501)}
            # A message far larger than a frame and the flow-control window.
            big = os.urandom(40 << 20)
            exchange.send(frames.Call(501, tool="echo", payload=codec.encode({"value": big})))
            reply = await exchange.until(lambda: len(exchange.frames) == 501)
            assert codec.decode(reply.payload) == big
            # A heartbeat is answered while a tool blocks its thread.
            exchange.send(frames.Call(502, tool="sleep", payload=codec.encode({"seconds": 0.5})))
            exchange.send(frames.Ping(7))
            pong = await exchange.until(lambda: len(exchange.frames) == 502)
            assert isinstance(pong, frames.Pong)
            assert pong.sequence == 7
            assert list(pong.running) == [502]
            assert pong.rss > 0
            # A stream stops at its credits.
            exchange.send(frames.Call(503, tool="count", payload=codec.encode({"n": 100}), stream=True, credits=3))
            await exchange.until(lambda: sum(isinstance(f, frames.Chunk) for f in exchange.frames) == 3)
            exchange.send(frames.Credit(503, 2))
            await exchange.until(lambda: sum(isinstance(f, frames.Chunk) for f in exchange.frames) == 5)
            exchange.send(frames.Cancel(503))
            await exchange.until(lambda: any(isinstance(f, frames.Reply) and f.id == 503 for f in exchange.frames))
            (last,) = [f for f in exchange.frames if isinstance(f, frames.Reply) and f.id == 503]
            assert last.error.code == "request_cancelled"
            assert exchange.ends == []


async def test_garbage_and_death_end_an_exchange_once(anyio_backend: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with worker(tmp_path) as (address, _), connected(anyio_backend, address) as connection:
            exchange = Exchange(connection)
            exchange.rpc.send(b"\xff\xff\xff not a frame")
            await exchange.until(lambda: exchange.ends)
            assert len(exchange.ends) == 1
        async with worker(tmp_path) as (address, process), connected(anyio_backend, address) as connection:
            exchange = Exchange(connection)
            calls = [frames.Call(n, tool="sleep", payload=codec.encode({"seconds": 60})) for n in range(1, 201)]
            for call in calls:
                exchange.send(call)
            process.kill()
            await exchange.until(lambda: exchange.ends)
            assert len(exchange.ends) == 1
            with pytest.raises(RpcFailure):
                while True:
                    await connection.unary("/grpc.health.v1.Health/Check", b"")


async def test_a_peer_that_speaks_no_http2(anyio_backend: str, tmp_path: Path) -> None:
    path = str(tmp_path / "fake.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    try:
        with anyio.fail_after(30):
            async with connected(anyio_backend, f"unix:{path}") as connection:
                peer, _ = listener.accept()
                with peer:
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
                    with pytest.raises(RpcFailure) as caught:
                        await connection.unary(SERVICE + "Handshake", b"")
                    assert caught.value.status == 14
    finally:
        listener.close()


async def test_nobody_listens(anyio_backend: str, tmp_path: Path) -> None:
    async with make_wire(anyio_backend) as wire:
        for address in (f"unix:{tmp_path}/none.sock", "tcp:127.0.0.1:1"):
            with pytest.raises(OSError):
                await wire.connect(address, token="t", max_message=1000)


async def test_a_connection_that_can_not_be_secured_is_closed(anyio_backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        context = ssl.create_default_context()
        async with make_wire(anyio_backend) as wire:
            # What was raised keeps its frames, and with them whatever was left open.
            with no_leaks(), pytest.raises(ValueError, match="label empty") as raised:
                await wire.connect(address, token="t", max_message=1000, tls=context, name=".nobody")
            assert raised.tb is not None


@pytest.mark.parametrize("bad", ["", "unix:", "tcp:1", "tcp:host:", "tcp::1", "http:x", "tcp:h:-1"])
def test_addresses(bad: str) -> None:
    assert parse_address("unix:/x/y") == "/x/y"
    assert parse_address("tcp:127.0.0.1:80") == ("127.0.0.1", 80)
    assert parse_address("tcp:[::1]:80") == ("::1", 80)
    with pytest.raises(ValueError, match="not an address"):
        parse_address(bad)


async def test_a_secured_connection(anyio_backend: str) -> None:
    """Calls and long messages work; who shows nothing, or the certificate of another or for another use, does not get in."""
    authority = pytest.importorskip("snakepit_trio.launch.authority").Authority("r")
    stranger = type(authority)("r")
    spec = WorkerSpec(
        worker_id="w1", run_id="test", pool="p", token="right", adapter="tests.adapters.basic",
        bind="127.0.0.1", tls=authority.for_worker("w1"),
    )  # fmt: skip
    other = authority.for_worker("w2")
    pretending = tls_context(other.certificate, other.key, other.authority, server_side=False)
    nothing = ssl.create_default_context(cadata=other.authority)
    with anyio.fail_after(60):
        process = await SpawnLauncher().start(spec)
        try:
            address = (await process.report()).address
            assert address.startswith("tcp:127.0.0.1:")
            async with make_wire(anyio_backend) as wire:

                async def echo(context: ssl.SSLContext | None, name: str, size: int) -> bool:
                    connection = await wire.connect(address, token="right", max_message=1 << 26, tls=context, name=name)
                    try:
                        async with anyio.create_task_group() as nursery:
                            nursery.start_soon(connection.serve)
                            params = codec.encode({"value": "x" * size})
                            execute = ExecuteRequest(tool="echo", payload=PayloadMessage(encoding=2, data=params.data))
                            said = await connection.unary(SERVICE + "Execute", bytes(execute), timeout=30)
                            reply = ExecuteResponse.parse(said)
                            assert reply.payload is not None
                            nursery.cancel_scope.cancel()
                            return bool(codec.decode(frames.Payload(2, reply.payload.data)) == "x" * size)
                    finally:
                        connection.close()

                assert await echo(authority.for_host(), "w1", 10)
                assert await echo(authority.for_host(), "w1", 5_000_000)
                for context, name in [
                    (authority.for_host(), "w2"),
                    (stranger.for_host(), "w1"),
                    (pretending, "w1"),
                    (nothing, "w1"),
                    (None, "w1"),
                ]:
                    with pytest.raises((OSError, RpcFailure, ExceptionGroup)):
                        await echo(context, name, 10)
                assert await echo(authority.for_host(), "w1", 10)
        finally:
            await process.aclose()

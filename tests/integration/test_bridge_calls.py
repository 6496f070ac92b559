"""Calls through the bridge that no task waits for: each way in which one ends, and the bytes that go through as they are."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import h2.errors
import h2.events
import msgspec
import pytest

import snakepit_trio as sp
from snakepit_trio.bridge import server_call, service
from snakepit_trio.client.channel import failure
from snakepit_trio.wire import codec
from snakepit_trio.wire.codec.extensions import TUPLE
from snakepit_trio.wire.frames import JSON, MSGPACK, Payload
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.wire.sockets import SocketTransport
from tests.clients.raw import Raw
from tests.integration.test_bridge_abuse import at, plain, still_serves
from tests.until import appears, running, settled, until

pytestmark = pytest.mark.anyio

BASIC = "tests.adapters.basic"
ASYNC = "tests.adapters.asynchronous"
ENDS = {"request.completed", "request.failed", "request.cancelled", "request.expired", "request.rejected"}


@asynccontextmanager
async def door(place: Path, adapter: str = BASIC, **options: Any) -> AsyncIterator[sp.Runtime]:
    pools = [sp.PoolConfig(adapter=adapter, size=1, **options)]
    bridge = sp.BridgeConfig(address=f"unix:{place}/door", token="right")
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools, bridge=bridge)) as runtime:
        yield runtime


class Reader(Raw):
    """A client that gives the server its window back."""

    def read(self) -> bool:
        known = len(self.events)
        more = super().read()
        for event in self.events[known:]:
            if isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
        self.flush_quietly()
        return more


def message(tool: str, data: bytes, encoding: int, accept: int = 0, **fields: Any) -> bytes:
    payload = v1.Payload(encoding=v1.Encoding(encoding), data=data)
    return bytes(v1.ExecuteToolRequest(tool=tool, payload=payload, accept=v1.Encoding(accept), **fields))


def answer(raw: Raw, stream: int) -> tuple[str, bytes]:
    """The status of a call, and its message."""
    status = raw.trailers(stream)["grpc-status"]
    data = b"".join(e.data for e in raw.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream)
    return status, data[5:]


def value(data: bytes) -> tuple[int, Any]:
    """The encoding of an answer's payload, and what it holds."""
    payload = v1.ExecuteToolResponse.parse(data).payload
    assert payload is not None
    found = Payload(int(payload.encoding), payload.data, [b.inline or b"" for b in payload.buffers])
    return found.encoding, codec.decode(found)


def reset(raw: Raw, stream: int) -> None:
    raw.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
    raw.flush()


async def settings(raw: Raw) -> None:
    """Wait for the server's settings, which say how long a request may be."""
    while not any(isinstance(event, h2.events.RemoteSettingsChanged) for event in raw.events):
        assert await anyio.to_thread.run_sync(raw.read)


@pytest.mark.parametrize("place", ["queued", "running"])
@pytest.mark.parametrize("how", ["reset", "gone", "deadline"])
async def test_a_client_that_leaves_a_call(place: str, how: str, tmp_path: Path) -> None:
    """It ends once, at once, wherever it is: what waits is never run, what runs is stopped, and the worker goes on."""
    leave: dict[str, Callable[[Raw, int], None]] = {
        "reset": reset,
        "gone": lambda raw, stream: raw.socket.close(),
        "deadline": lambda raw, stream: None,
    }
    marker = tmp_path / "marker"
    options = {"grpc-timeout": "700m"} if how == "deadline" else {}
    async with door(tmp_path, ASYNC) as runtime, runtime.events.subscribe("request.") as events:
        pool = runtime.pool()
        (worker,) = pool.workers()
        with Raw(at(tmp_path)) as first, Raw(at(tmp_path)) as raw:
            if place == "queued":
                held = first.request(plain("wait", json.dumps({"marker": f"{tmp_path}/first"}).encode()))
                await running(pool)
            stream = raw.request(plain("wait", json.dumps({"marker": str(marker)}).encode()), **options)
            if place == "queued":
                await until(lambda: pool.stats().queued)
            else:
                await appears(marker)
            leave[how](raw, stream)
            if how == "deadline":
                assert (await anyio.to_thread.run_sync(answer, raw, stream))[0] == "4"
            await until(lambda: not pool.stats().queued)
            if place == "queued":
                reset(first, held)
            else:
                await appears(Path(f"{marker}.cancelled"))
            await settled(pool)
        await still_serves(tmp_path)
        assert marker.exists() == (place == "running")
        assert [info.pid for info in pool.workers()] == [worker.pid]
        seen: dict[str, list[str]] = {}
        with anyio.fail_after(30):
            async for event in events:
                if event.name in ENDS | {"request.dispatched"}:
                    seen.setdefault(event.metadata["request_id"], []).append(event.name)
                if event.name == "request.completed":
                    break
    ours = list(seen.values())[1 if place == "queued" else 0 :]
    end = "request.expired" if how == "deadline" else "request.cancelled"
    if place == "queued":
        assert sorted(itertools.chain(*seen.values())) == sorted(
            ["request.dispatched", "request.cancelled", end, "request.dispatched", "request.completed"]
        )
    else:
        assert ours == [["request.dispatched", end], ["request.dispatched", "request.completed"]]


async def test_a_call_that_is_left_before_it_is_whole(tmp_path: Path) -> None:
    async with door(tmp_path) as runtime:
        whole = plain("add", b'{"a":1,"b":2}')
        for leave in (reset, lambda raw, stream: raw.socket.close()):
            with Raw(at(tmp_path)) as raw:
                stream = raw.headers()
                raw.h2.send_data(stream, b"\0" + len(whole).to_bytes(4, "big") + whole[:-3])
                raw.flush()
                leave(raw, stream)
        assert runtime.bridge is not None
        await until(lambda: not runtime.bridge.connections)  # type: ignore[union-attr]
        assert runtime.pool().stats().accepted == 0
        with Raw(at(tmp_path)) as raw:
            assert (await anyio.to_thread.run_sync(answer, raw, raw.request(whole)))[0] == "0"


async def test_an_answer_that_is_read_slowly_is_not_cut_off(tmp_path: Path) -> None:
    """It is larger than the client's window: it stays until it is out, until it is left, or until its deadline."""
    text = json.dumps({"value": "x" * 200_000}).encode()

    async with door(tmp_path) as runtime:
        pool = runtime.pool()
        with Reader(at(tmp_path)) as raw, Raw(at(tmp_path)) as other, Raw(at(tmp_path)) as late:
            for one in (raw, other, late):
                await settings(one)
            streams = [one.request(plain("echo", text)) for one in (raw, other)]
            late_stream = late.request(plain("echo", text), **{"grpc-timeout": "1500m"})
            await until(lambda: pool.stats().completed == 3)
            reset(other, streams[1])
            status, data = await anyio.to_thread.run_sync(answer, raw, streams[0])
            assert (status, value(data)) == ("0", (JSON, "x" * 200_000))

            assert (await anyio.to_thread.run_sync(answer, late, late_stream))[0] == "4"
            bridge = runtime.bridge
            assert bridge is not None
            await until(lambda: not any(connection.calls for connection in bridge._connections))


async def test_a_client_that_has_not_read_all_of_its_answer_by_the_deadline_is_told_so(tmp_path: Path) -> None:
    """The answer is cut off in the middle of its message, and what ends it is not a lost connection."""
    text = json.dumps({"value": "x" * 3_000_000}).encode()
    told: list[tuple[int, str]] = []
    ended = anyio.Event()

    def on_end(status: int, reason: str) -> None:
        told.append((status, reason))
        ended.set()

    async with door(tmp_path) as runtime:
        assert runtime.bridge is not None
        async with sp.connect(runtime.bridge.address, token="right") as client:
            link = client._link
            request = message("echo", text, JSON)
            async with link.streaming(
                "ExecuteTool", request, on_message=lambda _: None, on_end=on_end, timeout=1.0
            ) as opened:
                rpc = opened.rpc
                rpc.pipe.hold()
                with anyio.fail_after(10):
                    await ended.wait()
                error = failure(*told[0], rpc.trailers)
            assert runtime.pool().stats().completed == 1
            assert isinstance(error, sp.RequestTimeout)
            assert error.details["phase"] == "running"
            assert await client.execute("add", {"a": 1, "b": 2}) == 3


async def test_streams_that_fill_the_socket_end_as_they_should(tmp_path: Path) -> None:
    """One whose chunks have all left, while the socket takes no more, still has its status to send."""
    read: list[int] = []

    async with door(tmp_path, max_queue=200) as runtime:
        assert runtime.bridge is not None
        async with sp.connect(runtime.bridge.address, token="right") as client:

            async def follow() -> None:
                params = {"n": 4, "marker": "/dev/null", "size": 100_000}
                async with client.stream("count_and_note", params) as chunks:
                    read.append(sum([len(chunk) async for chunk in chunks]))

            async with anyio.create_task_group() as nursery:
                for _ in range(60):
                    nursery.start_soon(follow)
    assert read == [400_000] * 60


@pytest.mark.parametrize("policies", [{}, {"retry": sp.RetryConfig()}], ids=["plain", "policies"])
@pytest.mark.parametrize("session", [False, True])
async def test_each_encoding_in_and_out(policies: dict[str, Any], session: bool, tmp_path: Path) -> None:
    async with door(tmp_path, **policies) as runtime:
        fields = {"session_id": "s"} if session else {}
        async with runtime.pool().session("s", detach=True):
            pass
        plain_value = {"n": 1 << 40, "t": "\u00e4", "l": [1.5, None, True]}
        exact_value = {"t": (1, 2), "b": b"\0\xff", "n": 1 << 70}
        as_json = json.dumps({"value": plain_value}).encode()
        as_msgpack = codec.encode({"value": plain_value}).data
        with Reader(at(tmp_path)) as raw:
            await settings(raw)

            async def ask(data: bytes, encoding: int, accept: int) -> tuple[str, bytes]:
                stream = raw.request(message("echo", data, encoding, accept, **fields))
                return await anyio.to_thread.run_sync(answer, raw, stream)

            for (encoding, data), accept in itertools.product(
                ((JSON, as_json), (MSGPACK, as_msgpack)), (0, JSON, MSGPACK)
            ):
                status, found = await ask(data, encoding, accept)
                assert (status, value(found)) == ("0", (accept or encoding, plain_value))
            exact = codec.encode({"value": exact_value}).data
            status, found = await ask(exact, MSGPACK, 0)
            assert (status, value(found)) == ("0", (MSGPACK, exact_value))
            assert (await ask(exact, MSGPACK, JSON))[0] == "3"
            # So long that it is looked at where it lies in its message.
            status, found = await ask(codec.encode({"value": ["x" * 100] * 1000}).data, MSGPACK, 0)
            assert (status, value(found)) == ("0", (MSGPACK, ["x" * 100] * 1000))
            # A tuple has a form in JSON, bytes have none.
            data = codec.encode({"value": (1, (2, 3))}).data
            assert value((await ask(data, MSGPACK, JSON))[1]) == (JSON, [1, [2, 3]])
        await still_adds(tmp_path)


async def still_adds(place: Path) -> None:
    async with sp.connect(f"unix:{place}/door", token="right") as client:
        assert await client.execute("add", {"a": 1, "b": 2}, timeout=30) == 3


async def test_what_does_not_decode_is_refused_and_costs_no_worker(tmp_path: Path) -> None:
    deep = b"\x81\xa5value" + b"\x91" * 100_000 + b"\xc0"
    bad: list[tuple[bytes, int]] = [
        (b"{", JSON),
        (b'{"value": \xff}', JSON),
        (b"[1]", JSON),
        (b"\xc1", MSGPACK),
        (b"\x81\xa5value", MSGPACK),
        (b"\x81\x01\x02", MSGPACK),
        (msgspec.msgpack.encode([1, 2]), MSGPACK),
        (b"\x81\xa5value" + msgspec.msgpack.encode(msgspec.msgpack.Ext(99, b"x")), MSGPACK),
        (b"\x81\xa5value" + msgspec.msgpack.encode(msgspec.msgpack.Ext(TUPLE, b"\xc1")), MSGPACK),
        (deep, MSGPACK),
        (b"{}", 7),
    ]
    async with door(tmp_path) as runtime:
        pool = runtime.pool()
        (worker,) = pool.workers()
        with Raw(at(tmp_path)) as raw:
            for data, encoding in bad:
                payload = v1.Payload(encoding=v1.Encoding(encoding), data=data)
                stream = raw.request(bytes(v1.ExecuteToolRequest(tool="echo", payload=payload)))
                assert (await anyio.to_thread.run_sync(answer, raw, stream))[0] == "3", data[:20]
        assert pool.stats().accepted == 0
        await still_adds(tmp_path)
        assert [info.pid for info in pool.workers()] == [worker.pid]


async def test_a_fault_of_ours_ends_one_call_and_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    """The answer is made where the worker's reply is read: what goes wrong there is not the worker's."""

    def fails(*args: Any, **options: Any) -> Payload:
        raise RuntimeError("secret")

    async with door(tmp_path) as runtime:
        (worker,) = runtime.pool().workers()
        with Raw(at(tmp_path)) as raw:
            with monkeypatch.context() as patched:
                patched.setattr(service, "in_encoding", fails)
                stream = raw.request(plain("add", b'{"a":1,"b":2}'))
                found = await anyio.to_thread.run_sync(raw.trailers, stream)
            assert found["grpc-status"] not in ("0", "3")
            assert "RuntimeError" in found["grpc-message"]
            assert "secret" not in str(found)
        assert [type(exc) for exc in internal_errors] == [RuntimeError]
        await still_adds(tmp_path)
        assert [info.pid for info in runtime.pool().workers()] == [worker.pid]


@pytest.mark.parametrize("name", ["uncork", "_send"])
async def test_an_answer_that_can_not_leave_ends_the_connection(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    def fail_once(*args: object) -> None:
        monkeypatch.setattr(SocketTransport, name, plain)
        raise RuntimeError(name)

    def succeed(call: server_call.ServerCall) -> None:
        monkeypatch.setattr(server_call.ServerCall, "_succeed", ended)
        ended(call)
        monkeypatch.setattr(SocketTransport, name, fail_once)

    plain, ended = getattr(SocketTransport, name), server_call.ServerCall._succeed
    address = f"unix:{tmp_path}/door"
    async with door(tmp_path) as runtime, sp.connect(address, token="right") as client:
        assert await client.execute("add", {"a": 1, "b": 1}) == 2
        monkeypatch.setattr(server_call.ServerCall, "_succeed", succeed)
        # What was written already may arrive before the end.
        with anyio.fail_after(5), suppress(sp.ConnectionLost):
            await client.execute("add", {"a": 1, "b": 1}, timeout=60, idempotent=False)
        async with sp.connect(address, token="right") as another:
            assert await another.execute("add", {"a": 1, "b": 1}) == 2
        assert runtime.pool().stats().in_flight == 0
    assert [str(error) for error in internal_errors] == [name]

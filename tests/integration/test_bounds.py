"""What piles up is bounded in bytes, whoever sends it and whoever doesn't read it."""

from __future__ import annotations

import gc
import json
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import h2.events
import h2.exceptions
import msgspec
import pytest

import snakepit_trio as sp
from snakepit_trio.bridge.server_call import ServerCall
from snakepit_trio.client.streams import _MANY_BYTES
from snakepit_trio.pool.calls.stream import STREAM_BYTES, STREAM_WINDOW
from snakepit_trio.tools.serving import HostToolServer
from snakepit_trio.wire import codec, frame_writing, frames
from snakepit_trio.wire.frames import JSON, MSGPACK, Payload
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.wire.http2.engine import _TURN
from snakepit_trio.wire.tool_messages import ExecuteToolRequest, PayloadAnswer
from tests.clients.raw import Raw
from tests.until import until

pytestmark = pytest.mark.anyio

EVIL, BASIC, ASYNC = "tests.adapters.evil", "tests.adapters.basic", "tests.adapters.asynchronous"
MIB = 1024 * 1024


@asynccontextmanager
async def bridged(adapter: str, **options: Any) -> AsyncIterator[tuple[sp.Runtime, str]]:
    """A runtime, and the address of its bridge."""
    pools = [sp.PoolConfig(adapter=adapter, size=1)]
    bridge = sp.BridgeConfig(token="right", **options)
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools, bridge=bridge)) as runtime:
        assert runtime.bridge is not None
        yield runtime, runtime.bridge.address


def request(tool: str, params: dict[str, Any]) -> bytes:
    payload = v1.Payload(encoding=v1.Encoding(frames.MSGPACK), data=msgspec.msgpack.encode(params))
    return bytes(v1.ExecuteToolRequest(tool=tool, payload=payload))


# ---- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(1000, 2 * STREAM_WINDOW), (4 * MIB, 16)], ids=["number", "bytes"])
async def test_a_chunk_beyond_its_credit_ends_that_worker(size: int, count: int) -> None:
    async with sp.open_pool(EVIL, size=1, restart_limit=1000) as pool:
        (before,) = pool.workers()
        with pytest.raises(sp.WorkerCrashed, match="a chunk beyond its credit") as caught:
            async with pool.stream("chunks_beyond_credit", {"size": size, "count": count}, timeout=60) as chunks:
                await until(lambda: chunks.request is not None and chunks.request.error is not None)
                # What it had credit for may still be read.
                async for _ in chunks:
                    pass
        assert caught.value.details["reason"] == "protocol"
        assert await pool.execute("fine", timeout=60) == "fine"
        (after,) = pool.workers()
        assert after.pid != before.pid


async def test_so_does_one_of_a_stream_that_nobody_reads_any_more() -> None:
    async with sp.open_pool(EVIL, size=1, restart_limit=1000, cancel_grace=60) as pool:
        async with pool.runtime.events.subscribe("worker.gone") as events:
            with anyio.CancelScope() as scope:
                async with pool.stream("chunks_beyond_credit", {"size": 1000, "count": 10**6}, timeout=60) as chunks:
                    await anext(chunks)
                    scope.cancel()
                    await anyio.sleep_forever()
            with anyio.fail_after(30):
                assert (await anext(events)).metadata["reason"] == "protocol"
        assert await pool.execute("fine", timeout=60) == "fine"


async def test_a_generator_of_large_chunks_waits_when_their_bytes_fill_the_window(tmp_path: Path) -> None:
    marker, size = tmp_path / "marker", 3 * MIB
    params = {"n": 10**9, "marker": str(marker), "size": size}
    async with sp.open_pool(BASIC, size=1) as pool:
        async with pool.stream("count_and_note", params) as chunks:
            assert await anext(chunks) == bytes(size)
            # The first has been taken, and its credit is not worth a frame yet.
            most = -(-STREAM_BYTES // size) - 1
            await until(lambda: len(chunks._chunks) == most)
            for _ in range(50):
                await anyio.sleep(0.001)
                assert len(chunks._chunks) == most
        assert int(marker.read_text()) == most


async def test_a_client_that_pauses_holds_large_chunks_back_on_all_sides(tmp_path: Path) -> None:
    marker, size = tmp_path / "marker", 3 * MIB
    async with bridged(BASIC) as (runtime, address), sp.connect(address, token="right") as client:
        params = {"n": 10**9, "marker": str(marker), "size": size}
        async with client.stream("count_and_note", params) as chunks:
            assert await anext(chunks) == bytes(size)
            (seats,) = runtime.pool()._scheduler.ledger.seats
            (request,) = seats.running.values()
            source: Any = request.stream  # type: ignore[union-attr]
            # The client holds the bridge back, and the worker has no credit left.
            await until(lambda: chunks._held and source._room + source._taken_bytes <= 0)
            assert chunks._waiting_bytes < _MANY_BYTES + size + 1000
            assert sum(chunk.size for chunk in source._chunks) < STREAM_BYTES + size
        await until(lambda: marker.exists() and marker.read_text())
        # What waits at the client and in the pool, and those that the bridge has in its hands.
        assert int(marker.read_text()) <= 1 + (_MANY_BYTES + STREAM_BYTES) // size + 4


# ---- turns -----------------------------------------------------------------------------------------


class Passes:
    """How often something is done between two passes of the event loop, at the most."""

    def __init__(self) -> None:
        self.count = self.most = 0

    def __call__(self, *args: object) -> None:
        self.count += 1

    async def watch(self) -> None:
        while True:
            before = self.count
            await anyio.lowlevel.checkpoint()
            self.most = max(self.most, self.count - before)


async def test_others_go_on_between_a_workers_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, messages = Passes(), 20_000
    monkeypatch.setattr(HostToolServer, "cancel", passes)
    async with sp.open_pool(EVIL, size=1) as pool, anyio.create_task_group() as nursery:
        nursery.start_soon(passes.watch)
        data = frame_writing.encode(frames.HostCancel(1))
        await pool.execute("send_messages", {"data": data, "count": messages}, timeout=60)
        assert passes.count == messages
        # Between two passes of one task each other one has its turn at most twice.
        assert passes.most <= 2 * _TURN
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_others_go_on_between_a_clients_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    passes, size = Passes(), 1500
    held = ServerCall._on_held

    def count(call: ServerCall, partial: int) -> bool:
        passes()
        return held(call, partial)

    monkeypatch.setattr(ServerCall, "_on_held", count)
    options: dict[str, Any] = {"address": f"unix:{tmp_path}/door"}
    context = None
    if secure:
        trustme = pytest.importorskip("trustme")
        authority = trustme.CA()
        made = authority.issue_cert("127.0.0.1")
        made.private_key_pem.write_to_path(tmp_path / "key")
        made.cert_chain_pems[0].write_to_path(tmp_path / "cert")
        tls = sp.TlsConfig(cert=str(tmp_path / "cert"), key=str(tmp_path / "key"))
        options = {"address": "tcp:127.0.0.1:0", "tls": tls}
        context = ssl.create_default_context()
        authority.configure_trust(context)
        context.set_alpn_protocols(["h2"])

    def send(address: str) -> dict[str, str]:
        with Raw(address, context) as raw:
            stream = raw.headers()
            message = bytes(v1.ExecuteToolRequest(tool="echo", pool="x" * size))
            whole = b"\0" + len(message).to_bytes(4, "big") + message
            for at in range(len(whole)):
                raw.h2.send_data(stream, whole[at : at + 1], end_stream=at == len(whole) - 1)
            raw.flush()
            return raw.trailers(stream)

    async with bridged(EVIL, **options) as (_, address), anyio.create_task_group() as nursery:
        nursery.start_soon(passes.watch)
        found = await anyio.to_thread.run_sync(send, address)
        assert found["grpc-status"] == "5"
        assert passes.count > size
        assert passes.most <= 2 * _TURN
        nursery.cancel_scope.cancel()


# ---- the budgets of bytes --------------------------------------------------------------------------


async def test_arguments_of_host_calls_are_bounded_of_each_worker_and_of_all() -> None:
    pools = [sp.PoolConfig(adapter=ASYNC, size=2, max_payload=2 * MIB)]
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools, max_host_call_bytes=12 * MIB)) as runtime:
        pool, release, waiting = runtime.pool(), anyio.Event(), 0

        async def wait(data: bytes) -> int:
            nonlocal waiting
            waiting += 1
            await release.wait()
            return len(data)

        runtime.tools.register("wait", wait)
        budget = pool._services.host_call_bytes
        ends: list[Any] = []

        async def flood() -> None:
            ends.append(await pool.execute("ask_often", {"name": "wait", "size": MIB, "count": 20}, timeout=60))

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(flood)
            # What is common are 9 MiB: one alone may have half of them, the next a half of the rest.
            await until(lambda: waiting == 4)
            nursery.start_soon(flood)
            await until(lambda: waiting == 6)
            for _ in range(50):
                await anyio.sleep(0.001)
                assert waiting == 6
                assert budget.used <= budget.limit
            release.set()
        refused = [error for end in ends for error in end if error]
        assert len(refused) == 34
        assert all("max_host_call_bytes" in error for error in refused)
        assert budget.used == 0


async def test_answers_that_a_client_does_not_read_are_bounded(tmp_path: Path) -> None:
    limit, size = 8 * MIB, MIB

    def ask_and_wait(address: str, go_on: threading.Event) -> list[str]:
        with Raw(address) as raw:
            streams = [raw.request(request("large", {"size": size})) for _ in range(20)]
            go_on.wait(60)
            raw.h2.increment_flow_control_window(64 * MIB)
            for stream in streams:
                if stream in raw.h2.streams:
                    raw.h2.increment_flow_control_window(2 * MIB, stream)
            raw.flush()
            return [raw.trailers(stream).get("grpc-message", "") for stream in streams]

    address = f"unix:{tmp_path}/door"
    async with bridged(EVIL, address=address, max_buffered=limit, max_message=MIB) as (runtime, _):
        assert runtime.bridge is not None
        budget, go_on = runtime.bridge._budget, threading.Event()
        async with sp.connect(address, token="right") as bystander, anyio.create_task_group() as nursery:
            found: list[str] = []

            async def flood() -> None:
                found.extend(await anyio.to_thread.run_sync(ask_and_wait, address, go_on))

            nursery.start_soon(flood)
            try:
                await until(lambda: runtime.pool().stats().completed == 20)
                alone = budget.own + budget.common // 2
                assert alone - size < budget.used <= alone
                # There is room for the answers of others.
                assert len(await bystander.execute("large", {"size": size}, timeout=60)) == size
            finally:
                go_on.set()
        assert 0 < sum("max_buffered" in text for text in found) < 20
        assert all(not text or "max_buffered" in text for text in found)
        await until(lambda: not budget.used)


async def test_chunks_that_a_client_does_not_read_are_bounded(tmp_path: Path) -> None:
    limit, size, each = 8 * MIB, 200 * 1024, 4

    def ask_and_wait(address: str, go_on: threading.Event) -> list[str]:
        with Raw(address) as raw:
            params = {"n": each, "size": size, "marker": str(tmp_path / "marker")}
            path = "/snakepit.v1.BridgeService/ExecuteStreamingTool"
            streams = [raw.request(request("count_and_note", params), path=path) for _ in range(20)]
            go_on.wait(60)
            raw.h2.increment_flow_control_window(64 * MIB)
            for stream in streams:
                if stream in raw.h2.streams:
                    raw.h2.increment_flow_control_window(2 * MIB, stream)
            raw.flush()
            return [raw.trailers(stream).get("grpc-message", "") for stream in streams]

    address = f"unix:{tmp_path}/door"
    async with bridged(BASIC, address=address, max_buffered=limit, max_message=MIB) as (runtime, _):
        assert runtime.bridge is not None
        budget, go_on, pool = runtime.bridge._budget, threading.Event(), runtime.pool()
        found: list[str] = []
        most = 0

        async def flood() -> None:
            found.extend(await anyio.to_thread.run_sync(ask_and_wait, address, go_on))

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(flood)
            try:
                await until(lambda: pool.stats().completed + pool.stats().failed + pool.stats().cancelled == 20)
                most = budget.used
            finally:
                go_on.set()
        # One chunk of each that was refused may have gone beyond before it was seen.
        alone = budget.own + budget.common // 2
        assert alone - each * size < most <= alone + size
        assert 0 < sum("max_buffered" in text for text in found) < 20
        assert all(not text or "max_buffered" in text for text in found)
        await until(lambda: not budget.used)


async def test_requests_count_until_they_are_answered() -> None:
    limit, size = 8 * MIB, 700_000
    async with bridged(EVIL, max_buffered=limit, max_message=MIB) as (runtime, address):
        assert runtime.bridge is not None
        pool, budget = runtime.pool(), runtime.bridge._budget
        refused: list[sp.SnakepitError] = []

        async def ask() -> None:
            try:
                assert len(await client.execute("echo", {"value": "x" * size}, timeout=60)) == size
            except sp.QuotaExceeded as exc:
                refused.append(exc)

        async with sp.connect(address, token="right") as client, anyio.create_task_group() as nursery:
            # Nobody is there to run them.
            (worker,) = pool.workers()
            pool.cordon(worker.id)
            for _ in range(8):
                nursery.start_soon(ask)
            await until(lambda: pool.stats().queued + len(refused) == 8)
            assert pool.stats().queued == (budget.own + budget.common // 2) // size == len(refused)
            assert all(exc.details["quota"] == "max_buffered" and exc.retryable for exc in refused)
            pool.cordon(worker.id, cordoned=False)
        await until(lambda: not budget.used)


async def test_calls_of_a_client_that_does_not_read_them_end_with_it() -> None:
    service = "/snakepit.v1.BridgeService/"

    def serve(address: str) -> Raw:
        raw = Raw(address)
        made = raw.request(
            bytes(v1.RegisterToolsRequest(tools=[v1.ToolSpec(name="deaf")])), path=f"{service}RegisterTools"
        )
        raw.trailers(made)
        data = b"".join(event.data for event in raw.events if isinstance(event, h2.events.DataReceived))
        first = bytes(v1.ClientToolFrame(registration_id=v1.RegisterToolsResponse.parse(data[5:]).registration_id))
        stream = raw.headers(f"{service}ServeTools")
        raw.h2.send_data(stream, b"\0" + len(first).to_bytes(4, "big") + first)
        raw.flush()
        return raw

    async with bridged(ASYNC) as (runtime, address):
        raw = await anyio.to_thread.run_sync(serve, address)
        assert runtime.bridge is not None
        made = runtime.bridge._service._client_tools._registrations
        await until(lambda: any(each.call is not None for each in made.values()))
        (registration,) = made.values()
        async with anyio.create_task_group() as nursery:
            ended: list[list[str]] = []

            async def ask() -> None:
                params = {"name": "deaf", "size": 200_000, "count": 5}
                ended.append(await runtime.pool().execute("ask_often", params, timeout=None))

            nursery.start_soon(ask)
            # The first fills what the client takes unread, the others wait for room.
            await until(lambda: len(registration._waiting) == 5)
            raw.socket.close()
            with anyio.fail_after(30):
                while not ended:
                    await anyio.sleep(0.002)
        assert all("deaf" in error for error in ended[0])
        await until(lambda: runtime.bridge is not None and not runtime.bridge._budget.used)
        assert runtime.pool()._services.host_call_bytes.used == 0


# ---- work ------------------------------------------------------------------------------------------


async def test_a_reply_of_more_blocks_than_a_payload_may_have_ends_that_worker() -> None:
    block = b"\x1a\x06\x12\x04\x0a\x02o1"
    payload = block * 300_000
    body = b"\x12" + frame_writing.varint(len(payload)) + payload
    message = b"\x0a" + frame_writing.varint(len(body)) + body
    async with sp.open_pool(EVIL, size=1, restart_limit=1000) as pool:
        with pytest.raises(sp.WorkerCrashed, match="more than"):
            await pool.execute("send_messages", {"data": message, "count": 1}, timeout=60)
        assert await pool.execute("fine", timeout=60) == "fine"


async def test_a_request_of_more_parts_than_any_has_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    service = "/snakepit.v1.BridgeService/"
    requests = {
        "RegisterTools": b"\x0a\x00" * 400_000,
        "PutValue": b"\x1a" + frame_writing.varint(600_000) + b"\x1a\x00" * 300_000,
        "ExecuteTool": b"\x2a\x00" * 400_000,
        "Ping": b"\x0a\x01x" * 300_000,
    }
    for kind in (v1.RegisterToolsRequest, v1.PutValueRequest, v1.PingRequest):
        monkeypatch.setattr(kind, "parse", lambda data: pytest.fail("it was read"))

    def ask(address: str) -> dict[str, str]:
        found = {}
        for name, message in requests.items():
            with Raw(address) as raw:
                stream = raw.headers(f"{service}{name}")
                raw.flush()
                while raw.h2.remote_settings.initial_window_size < 1 << 20:
                    assert raw.read()
                data = b"\0" + len(message).to_bytes(4, "big") + message
                try:
                    for at in range(0, len(data), 16_384):
                        raw.h2.send_data(stream, data[at : at + 16_384], end_stream=at + 16_384 >= len(data))
                    raw.flush()
                except h2.exceptions.ProtocolError:
                    pass
                found[name] = raw.trailers(stream)["grpc-status"]
        return found

    async with bridged(EVIL) as (_, address):
        found = await anyio.to_thread.run_sync(ask, address)
        assert found == {"RegisterTools": "3", "PutValue": "3", "ExecuteTool": "3", "Ping": "8"}


async def test_arguments_of_very_many_values_are_the_workers_work(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 400_000
    many = b"\xdd" + count.to_bytes(4, "big") + b"\x01" * count
    odd = {
        "a list": (many, "3", "expected object, got array"),
        "a name that is none": (b"\x81\x01" + many, "3", "expected str"),
        "a name that is not known": (b"\x82\xa5value\x01\xa4more" + many, "3", 'params["more"]'),
        "half a map": (b"\x82\xa5value" + many, "3", "does not decode"),
        "deeper than can be": (b"\x81\xa5value" + b"\x91" * count + b"\x01", "3", "does not decode"),
    }

    def ask(address: str) -> dict[str, dict[str, str]]:
        found = {}
        with Raw(address) as raw:
            while raw.h2.remote_settings.initial_window_size < 1 << 20:
                assert raw.read()
            for name, (data, _, _) in odd.items():
                payload = v1.Payload(encoding=v1.Encoding(frames.MSGPACK), data=data)
                message = bytes(v1.ExecuteToolRequest(tool="echo", payload=payload))
                stream = raw.headers()
                whole = b"\0" + len(message).to_bytes(4, "big") + message
                for at in range(0, len(whole), 16_384):
                    raw.h2.send_data(stream, whole[at : at + 16_384], end_stream=at + 16_384 >= len(whole))
                raw.flush()
                found[name] = raw.trailers(stream)
        return found

    async with bridged(EVIL) as (runtime, address), sp.connect(address, token="right") as client:
        (before,) = runtime.pool().workers()
        with monkeypatch.context() as patch:
            patch.setattr("snakepit_trio.bridge.payloads._decode", lambda *_, **__: pytest.fail("it was read here"))
            found = await anyio.to_thread.run_sync(ask, address)
            value = ["x", 1] * (count // 2)
            assert await client.execute("echo", {"value": value}) == value
        for name, (_, status, text) in odd.items():
            assert found[name]["grpc-status"] == status, found
            assert text in found[name].get("grpc-message", ""), found
        (after,) = runtime.pool().workers()
        assert after.pid == before.pid


#: Of one value more bytes than are read in the host.
MANY = 400_000


@pytest.mark.parametrize("policies", [False, True])
async def test_large_arguments_are_read_by_workers_only(policies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In JSON, in sessions, of streams, with policies, and binary ones."""
    value, binary = [1] * MANY, bytes(MANY)
    text = json.dumps({"value": value}).encode()
    options: dict[str, Any] = {"retry": sp.RetryConfig()} if policies else {}
    pools = [sp.PoolConfig(adapter=BASIC, size=1, **options)]
    config = sp.RuntimeConfig(pools=pools, bridge=sp.BridgeConfig(token="right"))
    with anyio.fail_after(60):
        async with sp.open_runtime(config) as runtime:
            assert runtime.bridge is not None
            async with sp.connect(runtime.bridge.address, token="right") as client, client.session("s") as session:
                monkeypatch.setattr(
                    "snakepit_trio.bridge.payloads._decode", lambda *_, **__: pytest.fail("it was read here")
                )
                assert await client.execute("echo", {"value": value}) == value
                assert await client.execute("echo", {"value": binary}) == binary
                assert await session.execute("echo", {"value": value}) == value
                with pytest.raises(sp.InvalidParameter):
                    await session.execute("echo", {"wrong": value})
                with pytest.raises(sp.InvalidParameter):
                    async with client.stream("count", {"n": 3, "more": value}) as chunks:
                        await anext(chunks)
                # As a client without our codec sends it.
                request = ExecuteToolRequest("echo", Payload(JSON, text))
                answer = await client._link.unary("ExecuteTool", request, PayloadAnswer, timeout=30)
                assert answer.payload is not None
                assert answer.payload.encoding == JSON
                assert json.loads(bytes(answer.payload.data)) == value
                broken = ExecuteToolRequest("echo", Payload(JSON, text[:-1]))
                with pytest.raises(sp.InvalidPayload):
                    await client._link.unary("ExecuteTool", broken, PayloadAnswer, timeout=30)


async def test_a_large_value_of_a_session_is_stored_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"many": [1] * MANY, "tuple": (1, 2)}
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=BASIC, size=1)], bridge=sp.BridgeConfig(token="right"))
    with anyio.fail_after(60):
        async with sp.open_runtime(config) as runtime:
            assert runtime.bridge is not None
            async with sp.connect(runtime.bridge.address, token="right") as client, client.session("s") as session:
                with monkeypatch.context() as patch:
                    patch.setattr(
                        "snakepit_trio.bridge.payloads._decode", lambda *_, **__: pytest.fail("it was read here")
                    )
                    assert await session.put("k", value) == 1
                    assert await session.put("k", value, expect=7) is None
                    assert await session.get("k") == value
                async with runtime.pool().session("s", detach=True) as here:
                    assert await here.get("k") == value
                cut = v1.Payload(encoding=v1.Encoding(MSGPACK), data=codec.encode(value).data[:-1])
                request = v1.PutValueRequest(session_id="s", key="k", payload=cut)
                with pytest.raises(sp.InvalidPayload, match="payload does not decode"):
                    await client._link.unary("PutValue", request, v1.PutValueResponse, timeout=30)
                with pytest.raises(sp.QuotaExceeded):
                    await session.put("k", [1] * (17 << 20))
                with pytest.raises(sp.InvalidParameter):
                    await session.put("\n", value)


def test_a_collection_does_not_look_at_what_is_decoded() -> None:
    collections: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        collections.append(phase)

    text = b"[" + b"[]," * 100_000 + b"[]]"
    gc.collect()
    gc.callbacks.append(note)
    try:
        found = codec.decode(Payload(JSON, text))
        during = len(collections)
        with pytest.raises(sp.InvalidPayload):
            codec.decode(Payload(JSON, text[:-1]))
    finally:
        gc.callbacks.remove(note)
    assert len(found) == 100_001
    assert during <= 1
    assert gc.isenabled()

"""What piles up is bounded in bytes, whoever sends it and whoever doesn't read it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import snakepit_trio as sp
from snakepit_trio.bridge.calls import ServerCall
from snakepit_trio.client.streams import _MANY_BYTES
from snakepit_trio.pool.submission import STREAM_BYTES, STREAM_WINDOW
from snakepit_trio.tools.serving import HostToolServer
from snakepit_trio.wire import frame_writing, frames
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.wire.http2.engine import _TURN
from tests.clients.raw import Raw
from tests.until import until

pytestmark = pytest.mark.anyio

EVIL, BASIC = "tests.adapters.evil", "tests.adapters.basic"
MIB = 1024 * 1024


@asynccontextmanager
async def bridged(adapter: str, **options: Any) -> AsyncIterator[tuple[sp.Runtime, str]]:
    """A runtime, and the address of its bridge."""
    pools = [sp.PoolConfig(adapter=adapter, size=1)]
    bridge = sp.BridgeConfig(token="right", **options)
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools, bridge=bridge)) as runtime:
        assert runtime.bridge is not None
        yield runtime, runtime.bridge.address


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
            (seats,) = runtime.pool()._ledger.seats
            (request,) = seats.running.values()
            source: Any = request.chunk.__self__  # type: ignore[union-attr]
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

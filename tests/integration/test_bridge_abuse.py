"""What no honest client does, by hand: the bridge goes on for the others, and its memory is bounded."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import h2.config
import h2.connection
import h2.errors
import h2.events
import psutil
import pytest

import snakepit_trio as sp
from snakepit_trio.wire.generated.snakepit import v1
from tests.clients.raw import PREFACE, SETTINGS, Raw, frame

pytestmark = pytest.mark.anyio


def at(place: Path) -> str:
    return f"unix:{place}/door"


@asynccontextmanager
async def door(place: Path, adapter: str = "tests.adapters.asynchronous", **options: Any) -> AsyncIterator[sp.Runtime]:
    pools = [sp.PoolConfig(adapter=adapter, size=1)]
    bridge = sp.BridgeConfig(address=f"unix:{place}/door", token="right", **options)
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools, bridge=bridge)) as runtime:
        yield runtime


async def still_serves(place: Path) -> None:
    async with sp.connect(f"unix:{place}/door", token="right") as client:
        assert await client.execute("sync_add", {"a": 1, "b": 2}, timeout=10) == 3


def plain(tool: str, params: bytes = b"{}") -> bytes:
    return bytes(v1.ExecuteToolRequest(tool=tool, payload=v1.Payload(encoding=v1.Encoding(1), data=params)))


def send(place: Path, data: bytes) -> None:
    """Send bytes and wait until the server ends the connection."""
    with Raw(at(place)) as raw:
        try:
            raw.socket.sendall(data)
            while raw.socket.recv(65536):
                pass
        except ConnectionError:
            pass


BAD: dict[str, bytes] = {
    "garbage": os.urandom(3) * 1000,
    "http/1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a wrong first frame": PREFACE + frame(0, b"x" * 10, stream=1),
    "a frame that is too long": PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\x01",
    "pings": PREFACE + SETTINGS + frame(6, b"12345678") * 4000,
    "settings": PREFACE + SETTINGS * 4000,
    "priorities": PREFACE + SETTINGS + frame(2, b"\0\0\0\0\x10", stream=1) * 4000,
    "unknown frames": PREFACE + SETTINGS + frame(0xEE, b"x") * 4000,
    "continuations": PREFACE + SETTINGS + frame(1, b"", stream=1) + frame(9, b"\x82" * 4096, stream=1) * 500,
    "empty continuations": PREFACE + SETTINGS + frame(1, b"", stream=1) + frame(9, b"", stream=1) * 5000,
    "a header bomb": PREFACE + SETTINGS
    + frame(1, b"\x40\x01a\x7f\x81\x1f" + b"x" * 4096 + b"\xbe" * 8000, flags=5, stream=1),
}  # fmt: skip


async def test_what_breaks_the_rules_ends_its_connection_and_no_other(tmp_path: Path) -> None:
    async with door(tmp_path) as runtime:
        async with sp.connect(f"unix:{tmp_path}/door", token="right") as other:
            before = psutil.Process().memory_info().rss
            for name, data in BAD.items():
                with anyio.fail_after(30):
                    await anyio.to_thread.run_sync(send, tmp_path, data)
                assert await other.execute("sync_add", {"a": 1, "b": 2}, timeout=10) == 3, name
            assert psutil.Process().memory_info().rss - before < 64 * 1024 * 1024
            assert runtime.bridge is not None
            with anyio.fail_after(30):
                while runtime.bridge.connections > 1:
                    await anyio.sleep(0.005)
        await still_serves(tmp_path)


async def test_rapid_resets(tmp_path: Path) -> None:
    def reset() -> int | None:
        with Raw(at(tmp_path)) as raw:
            try:
                for _ in range(2000):
                    stream = raw.headers()
                    raw.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
                    raw.flush()
            except ConnectionError:
                pass
            return raw.ended()

    async with door(tmp_path) as runtime:
        code = await anyio.to_thread.run_sync(reset)
        assert code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
        await still_serves(tmp_path)
        assert runtime.pool().stats().accepted == 1


async def test_a_request_in_crumbs(tmp_path: Path) -> None:
    def crumble() -> int | None:
        with Raw(at(tmp_path)) as raw:
            stream = raw.headers()
            raw.flush()
            try:
                raw.socket.sendall(frame(0, b"\0\0\x0f\0\0", stream=stream) + frame(0, b"x", stream=stream) * 5000)
            except ConnectionError:
                pass
            return raw.ended()

    async with door(tmp_path) as runtime:
        assert runtime.bridge is not None
        assert await anyio.to_thread.run_sync(crumble) == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
        await still_serves(tmp_path)
        assert runtime.bridge._budget.used == 0


@pytest.mark.parametrize("trailers", [False, True])
async def test_malformed_headers_end_the_connection(tmp_path: Path, trailers: bool) -> None:
    """Also after headers that were well-formed: what was looked at before does not vouch for what comes."""
    good = plain("sync_add", b'{"a":1,"b":2}')

    def ask() -> int | None:
        with Raw(at(tmp_path)) as raw:
            for _ in range(2):
                assert raw.trailers(raw.request(good))["grpc-status"] == "0"
            raw.h2.config.validate_outbound_headers = raw.h2.config.normalize_outbound_headers = False
            if trailers:
                stream = raw.headers()
                raw.h2.send_data(stream, b"\0" + len(good).to_bytes(4, "big") + good)
                raw.h2.send_headers(stream, [(":path", "/x")], end_stream=True)
            else:
                raw.headers(Connection="close")
            raw.flush()
            return raw.ended()

    async with door(tmp_path):
        assert await anyio.to_thread.run_sync(ask) == h2.errors.ErrorCodes.PROTOCOL_ERROR
        await still_serves(tmp_path)


async def test_white_space_around_a_value_costs_no_other_call(tmp_path: Path) -> None:
    good = plain("sync_add", b'{"a":1,"b":2}')

    def ask() -> list[str]:
        with Raw(at(tmp_path)) as raw:
            raw.h2.config.validate_outbound_headers = raw.h2.config.normalize_outbound_headers = False
            tokens = ["right", "right ", "right\t", "", "wrong ", "right"]
            return [raw.trailers(raw.request(good, token=token))["grpc-status"] for token in tokens]

    async with door(tmp_path):
        assert await anyio.to_thread.run_sync(ask) == ["0", "0", "0", "16", "16", "0"]


async def test_slowness_is_bounded(tmp_path: Path) -> None:
    async with door(tmp_path, handshake_timeout=0.5, receive_timeout=0.5, idle_timeout=1.0):
        began = time.monotonic()
        halves: list[Callable[[Raw], None]] = [
            lambda raw: None,
            lambda raw: raw.socket.sendall(PREFACE[:10]),
            lambda raw: raw.socket.sendall(PREFACE + SETTINGS),
            lambda raw: raw.socket.sendall(PREFACE + SETTINGS + b"\0\0\x20\x01\x04\0\0\0\x01\x82"),
        ]
        for half in halves:
            with Raw(at(tmp_path)) as raw:
                half(raw)
                await anyio.to_thread.run_sync(raw.ended)
        assert time.monotonic() - began < 30

        def slow_body() -> dict[str, str]:
            with Raw(at(tmp_path)) as raw:
                stream = raw.headers()
                raw.h2.send_data(stream, b"\0\0\0\0\x10abc")
                raw.flush()
                return raw.trailers(stream)

        assert (await anyio.to_thread.run_sync(slow_body))["grpc-status"] == "4"
        with Raw(at(tmp_path)) as raw:
            # Known, and then idle.
            stream = raw.request(plain("sync_add", b'{"a":1,"b":2}'))
            assert (await anyio.to_thread.run_sync(raw.trailers, stream))["grpc-status"] == "0"
            assert await anyio.to_thread.run_sync(raw.ended) == h2.errors.ErrorCodes.NO_ERROR
        await still_serves(tmp_path)


async def test_requests_that_are_refused(tmp_path: Path) -> None:
    async with door(tmp_path, max_message=2048, max_header_size=2048):

        def ask(message: bytes, **options: Any) -> dict[str, str]:
            with Raw(at(tmp_path)) as raw:
                return raw.trailers(raw.request(message, **options))

        good = plain("sync_add", b'{"a":1,"b":2}')
        for message, options, status, text in (
            (good, {}, "0", ""),
            (good, {"token": "wrong"}, "16", "token"),
            (b"x" * 4096, {}, "8", "limit"),
            (good, {"prefix": b"\1" + len(good).to_bytes(4, "big")}, "12", "compressed"),
            (good, {"prefix": b"\0\0\0\4\0"}, "3", "refused"),
            (good, {"grpc-encoding": "gzip"}, "12", "compressed"),
            (good, {"grpc-timeout": "soon"}, "3", "grpc-timeout"),
            (good, {"path": "/snakepit.v1.BridgeService/Nothing"}, "12", "Nothing"),
            (b"\xff\xff\xff", {}, "3", "ExecuteToolRequest"),
            (good, {"x-odd": "\u00fc"}, "0", ""),
        ):
            found = await anyio.to_thread.run_sync(lambda m=message, o=options: ask(m, **o))  # type: ignore[misc]
            assert found["grpc-status"] == status, (options, found)
            assert text in found.get("grpc-message", "")

        def too_long_headers() -> None:
            with Raw(at(tmp_path)) as raw:
                raw.headers(**{"x-long": "y" * 8000})
                raw.flush()
                raw.ended()

        await anyio.to_thread.run_sync(too_long_headers)
        await still_serves(tmp_path)


async def test_too_many_streams_and_connections(tmp_path: Path) -> None:
    async with door(tmp_path, max_streams=4, max_connections=8) as runtime:
        pool = runtime.pool()

        def many() -> None:
            with Raw(at(tmp_path)) as raw:
                for _ in range(5):
                    last = raw.request(plain("wait", b'{"marker":"/dev/null"}'))
                while not any(isinstance(event, h2.events.StreamReset) for event in raw.events):
                    assert raw.read()
                (reset,) = (event for event in raw.events if isinstance(event, h2.events.StreamReset))
                assert reset.stream_id == last
                assert reset.error_code == h2.errors.ErrorCodes.REFUSED_STREAM

        await anyio.to_thread.run_sync(many)
        with anyio.fail_after(30):
            while pool.stats().in_flight or pool.stats().queued:
                await anyio.sleep(0.005)
        strangers = [Raw(at(tmp_path)) for _ in range(12)]
        try:
            await still_serves(tmp_path)
            assert runtime.bridge is not None
            assert runtime.bridge.connections <= 8
        finally:
            for stranger in strangers:
                stranger.socket.close()


async def test_a_client_that_is_killed(tmp_path: Path) -> None:
    """Queued, running, streaming: what it had in the runtime ends, and the worker's state proves it."""
    code = (
        "import sys, anyio, snakepit_trio as sp\n"
        "async def main():\n"
        "    async with sp.connect(sys.argv[1], token='right') as client, anyio.create_task_group() as nursery:\n"
        "        if sys.argv[2] == 'stream':\n"
        "            async with client.stream('count_and_note', {'marker': sys.argv[3]}) as chunks:\n"
        "                print(await anext(chunks), flush=True)\n"
        "                await anyio.sleep_forever()\n"
        "        for n in range(3):\n"
        "            nursery.start_soon(client.execute, 'wait', {'marker': sys.argv[3]})\n"
        "anyio.run(main, backend='trio')\n"
    )
    async with door(tmp_path) as runtime:
        pool = runtime.pool()
        for kind in ("calls", "stream"):
            marker = tmp_path / kind
            arguments = [sys.executable, "-c", code, f"unix:{tmp_path}/door", kind, str(marker)]
            async with await anyio.open_process(arguments, stderr=None) as process:
                with anyio.fail_after(30):
                    if kind == "calls":
                        while not marker.exists() or pool.stats().queued != 2:
                            await anyio.sleep(0.005)
                    else:
                        assert process.stdout is not None
                        await process.stdout.receive()
                process.send_signal(signal.SIGKILL)
            ended = marker if kind == "stream" else tmp_path / "calls.cancelled"
            with anyio.fail_after(30):
                while not ended.exists() or pool.stats().in_flight or pool.stats().queued:
                    await anyio.sleep(0.005)
        stats = pool.stats()
        assert stats.cancelled == 4
        assert stats.restarts == 0
        await still_serves(tmp_path)

"""What the abusers of benchmarks/abuse.py do, those in the application's own pool and those at the bridge.

python benchmarks/abuse_attacks.py NAME ADDRESS SECONDS BACKEND runs one of the second kind in a process of its own, as a client
that has the token has it; prints what has become of each of its requests and connections.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import h2.events
import h2.exceptions
import msgspec

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)

import snakepit_trio as sp  # noqa: E402
from snakepit_trio.wire import frame_writing  # noqa: E402
from snakepit_trio.wire.generated.snakepit import v1  # noqa: E402
from tests.clients.raw import Raw  # noqa: E402

__all__ = ["BY_CLIENTS", "IN_HOST", "MIB", "Ended", "told"]

MIB = 1024 * 1024
SERVICE = "/snakepit.v1.BridgeService/"
#: JSON and MessagePack, as the bridge numbers them.
JSON, MSGPACK = 1, 2
DEPTH, BLOCKS = 100_000, 300_000
STATUS = {"0": "OK", "3": "INVALID_ARGUMENT", "4": "DEADLINE_EXCEEDED", "8": "RESOURCE_EXHAUSTED", "13": "INTERNAL"}
GOAWAY = {0: "NO_ERROR", 1: "PROTOCOL_ERROR", 11: "ENHANCE_YOUR_CALM"}

Ended = Counter[str]


def told(exc: sp.SnakepitError) -> str:
    """What an abuser was told, in short: the code, and what decided."""
    decided = exc.details.get("quota") or exc.details.get("reason")
    return f"request: {exc.code}" + (f", {decided}" if decided else "")


# ---- in the application's pool: the abuser is the worker -------------------------------------------------


async def chunk_beyond_credit(runtime: sp.Runtime, size: int, ended: Ended) -> None:
    """Chunks of 1 MiB without regard to credits, from one worker after another."""
    while True:
        try:
            params = {"size": min(size, MIB), "count": 10**6}
            async with runtime.pool().stream("chunks_beyond_credit", params, timeout=60) as chunks:
                while chunks.request is None or chunks.request.error is None:
                    await anyio.sleep(0.01)
                async for _ in chunks:
                    pass
        except sp.SnakepitError as exc:
            ended[told(exc)] += 1


async def host_call_arguments(runtime: sp.Runtime, size: int, ended: Ended) -> None:
    """A hundred calls at once to a host tool that takes its time, with 8 MiB each."""

    async def slow(data: bytes) -> None:
        await anyio.sleep(0.3)

    runtime.tools.register("slow", slow)
    while True:
        params = {"name": "slow", "size": min(size, 8 * MIB), "count": 100}
        for error in await runtime.pool().execute("ask_often", params):
            quota = "quota_exceeded, max_host_call_bytes" if "max_host_call_bytes" in error else error
            ended[f"host call: {quota}" if error else "host call: answered"] += 1


async def hard_schema(runtime: sp.Runtime, size: int, ended: Ended) -> None:
    """Calls of a tool whose schema has 8 parts in each of 8 in each of 8, seven deep."""
    while True:
        value: Any = {}
        for _ in range(4):
            value = {f"p{i}": value for i in range(8)}
        try:
            await runtime.pool().execute("hard", {"value": value})
            ended["request: taken"] += 1
        except sp.SnakepitError as exc:
            ended[told(exc)] += 1


async def nested_result(runtime: sp.Runtime, size: int, ended: Ended) -> None:
    """A result of 100 000 arrays, one in the other."""
    while True:
        try:
            await runtime.pool().execute("nested", {"depth": DEPTH})
        except sp.SnakepitError as exc:
            ended[told(exc)] += 1


async def many_blocks(runtime: sp.Runtime, size: int, ended: Ended) -> None:
    """Replies with 300 000 blocks of shared memory each."""
    payload = b"\x1a\x06\x12\x04\x0a\x02o1" * min(size, BLOCKS)
    body = b"\x12" + frame_writing.varint(len(payload)) + payload
    message = b"\x0a" + frame_writing.varint(len(body)) + body
    while True:
        try:
            await runtime.pool().execute("send_messages", {"data": message, "count": 1}, timeout=60)
        except sp.SnakepitError as exc:
            ended[told(exc)] += 1


IN_HOST: dict[str, Callable[[sp.Runtime, int, Ended], Awaitable[None]]] = {
    function.__name__: function
    for function in (chunk_beyond_credit, host_call_arguments, hard_schema, nested_result, many_blocks)
}


# ---- at the bridge: the abuser is a client ---------------------------------------------------------------


def payload(encoding: int, data: bytes) -> v1.Payload:
    return v1.Payload(encoding=v1.Encoding(encoding), data=data)


def call(tool: str, params: v1.Payload, pool: str = "") -> bytes:
    return bytes(v1.ExecuteToolRequest(tool=tool, payload=params, pool=pool))


def send(raw: Raw, stream: int, data: bytes) -> None:
    """Send one message, as fast as the other side makes room for it."""
    data = b"\0" + len(data).to_bytes(4, "big") + data
    at = 0
    while at < len(data):
        room = min(raw.h2.local_flow_control_window(stream), raw.h2.max_outbound_frame_size)
        if not room:
            if not raw.read():
                raise ConnectionError
            continue
        raw.h2.send_data(stream, data[at : at + room], end_stream=at + room >= len(data))
        at += room
        raw.flush()


def status(raw: Raw, stream: int) -> str:
    found = raw.trailers(stream)["grpc-status"]
    return f"request: {STATUS.get(found, found)}"


def ask(address: str, until: float, ended: Ended, *messages: bytes, path: str = "") -> None:
    """Ask for these, one after the other, again and again; anew when the connection was ended."""
    while time.monotonic() < until:
        with Raw(address) as raw:
            try:
                for message in itertools.cycle(messages):
                    stream = raw.headers(SERVICE + (path or "ExecuteTool"))
                    try:
                        send(raw, stream, message)
                    except h2.exceptions.StreamClosedError:
                        pass  # It was refused before it had arrived.
                    ended[status(raw, stream)] += 1
                    raw.events.clear()
                    if time.monotonic() > until:
                        return
            except (ConnectionError, AssertionError, h2.exceptions.ProtocolError):
                code = next((e.error_code for e in raw.events if isinstance(e, h2.events.ConnectionTerminated)), -1)
                ended[f"connection: {GOAWAY.get(int(code or 0), 'closed')}"] += 1


def unread_stream(address: str, until: float, size: int, ended: Ended) -> None:
    """One chunk of 20 MB is read, and no other of that stream."""

    async def leave_unread() -> None:
        params = {"n": 10**9, "marker": os.devnull, "size": size}
        async with sp.connect(address) as client, client.stream("count_and_note", params) as chunks:
            await anext(chunks)
            await anyio.sleep(max(0.0, until - time.monotonic()))
            ended["stream: held back"] += 1

    anyio.run(leave_unread, backend=sys.argv[4])


def unread_answers(address: str, until: float, size: int, ended: Ended) -> None:
    """Four connections ask for a hundred answers of 4 MiB each, and read none of them."""
    raws = [Raw(address) for _ in range(4)]
    message = call("large", payload(MSGPACK, msgspec.msgpack.encode({"size": size})), "default")
    streams = [[raw.request(message) for _ in range(100)] for raw in raws]
    time.sleep(max(0.0, until - time.monotonic()))
    for raw, its in zip(raws, streams, strict=True):
        with raw, suppress(OSError):
            # What was refused is told without being in the way of what waits.
            raw.socket.settimeout(0.5)
            while raw.read():
                pass
        refused = {e.stream_id for e in raw.events if isinstance(e, h2.events.ResponseReceived | h2.events.TrailersReceived)
                   and dict(e.headers).get("grpc-status") == "8"}  # fmt: skip
        ended["request: RESOURCE_EXHAUSTED"] += len(refused)
        ended["request: not read"] += len(its) - len(refused)


def large_requests(address: str, until: float, size: int, ended: Ended) -> None:
    """A hundred requests of 16 MiB at once, for a worker that takes its time."""

    async def flood() -> None:
        data = bytes(size)

        async def ask() -> None:
            while time.monotonic() < until:
                try:
                    await client.execute("echo", {"value": data}, timeout=5)
                    ended["request: answered"] += 1
                except sp.SnakepitError as exc:
                    ended[told(exc)] += 1
                    await anyio.sleep(0.2)

        async with sp.connect(address, pool="default") as client, anyio.create_task_group() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)

    anyio.run(flood, backend=sys.argv[4])


def nested_arguments(address: str, until: float, size: int, ended: Ended) -> None:
    """Arguments of 100 000 arrays, one in the other, in both encodings."""
    json_text = b'{"value": ' + b"[" * DEPTH + b"]" * DEPTH + b"}"
    packed = b"\x81\xa5value" + b"\x91" * DEPTH + b"\xc0"
    ask(address, until, ended, call("echo", payload(JSON, json_text)), call("echo", payload(MSGPACK, packed)))


def tiny_values(address: str, until: float, size: int, ended: Ended) -> None:
    """One argument that is a list of 60 million small numbers, a byte each."""
    packed = b"\x81\xa5value\xdd" + size.to_bytes(4, "big") + b"\x01" * size
    ask(address, until, ended, call("large", payload(MSGPACK, packed), "default"))


def one_byte_frames(address: str, until: float, size: int, ended: Ended) -> None:
    """Twenty connections send a message in DATA frames of one byte."""

    def drip() -> None:
        while time.monotonic() < until:
            with Raw(address) as raw:
                stream = raw.headers()
                body = b"\0" + (60_000).to_bytes(4, "big") + b"x" * 60_000
                frames = [b"\0\0\x01\0\0" + stream.to_bytes(4, "big") + body[at : at + 1] for at in range(len(body))]
                try:
                    raw.flush()
                    raw.socket.sendall(b"".join(frames))
                except ConnectionError:
                    pass
                with suppress(OSError):
                    ended[f"connection: {GOAWAY.get(raw.ended() or 0, 'closed')}"] += 1

    together(drip, 20)


def registrations(address: str, until: float, size: int, ended: Ended) -> None:
    """Forty connections register tools until they are refused, and serve none."""
    numbers = itertools.count()

    def register() -> None:
        with Raw(address) as raw:
            while time.monotonic() < until:
                tools = [v1.ToolSpec(name=f"t{next(numbers)}") for _ in range(8)]
                stream = raw.headers(f"{SERVICE}RegisterTools")
                try:
                    send(raw, stream, bytes(v1.RegisterToolsRequest(tools=tools)))
                    found = status(raw, stream)
                except (OSError, AssertionError, h2.exceptions.ProtocolError):
                    ended["connection: closed"] += 1
                    return
                ended[found] += 1
                raw.events.clear()
                if not found.endswith("OK"):
                    time.sleep(0.02)

    together(register, 40)


def half_requests(address: str, until: float, size: int, ended: Ended) -> None:
    """Two hundred clients of the metrics endpoint that send half of a request; one among them that wants an answer."""
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    held = []
    while time.monotonic() < until:
        if len(held) < 200:
            sock = socket.create_connection((host, int(port)), timeout=5)
            sock.sendall(b"GET /metrics HT")
            held.append(sock)
        if len(held) % 10 == 0:
            with socket.create_connection((host, int(port)), timeout=5) as honest:
                honest.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                try:
                    found = honest.recv(1000)
                except OSError:
                    found = b""
                ended["request of another: " + ("answered" if b" 200 " in found else "lost")] += 1
            time.sleep(0.01)
    for sock in held:
        with sock, suppress(OSError):
            sock.setblocking(False)
            ended["connection: closed" if not sock.recv(10) else "connection: answered"] += 1


def together(function: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


BY_CLIENTS: dict[str, Callable[[str, float, int, Ended], None]] = {
    function.__name__: function
    for function in (
        unread_stream, unread_answers, large_requests, nested_arguments, tiny_values, one_byte_frames, registrations, half_requests,
    )
}  # fmt: skip


def main() -> None:
    _, name, address, seconds, backend, size = sys.argv
    # Imports are no part of the time.
    anyio.run(anyio.lowlevel.checkpoint, backend=backend)
    assert sp.connect
    Raw.headers = functools.partialmethod(Raw.headers, token=os.environ["SNAKEPIT_TOKEN"])  # type: ignore[assignment]
    ended: Ended = Counter()
    BY_CLIENTS[name](address, time.monotonic() + float(seconds), int(size), ended)
    print(json.dumps(ended))


if __name__ == "__main__":
    main()

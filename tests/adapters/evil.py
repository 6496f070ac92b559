"""A worker that means harm, as far as user code in it can."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec

import snakepit_trio as sp
from snakepit_trio.wire import frame_writing, frames
from snakepit_trio.worker.exchange import Exchange


def _connections() -> list[socket.socket]:
    """The sockets over which this worker speaks to its host."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and str(sock.getsockname()).endswith(".sock"):
            found.append(sock)
        else:
            sock.close()
    return found


@sp.tool
def say_on_the_wire(data: bytes) -> int:
    """Write into the middle of the conversation with the host."""
    connections = _connections()
    for sock in connections:
        sock.setblocking(False)
        try:
            sock.send(data)
        finally:
            sock.close()
    return len(connections)


@sp.tool
def print_lines(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@sp.tool
def raise_text(text: str) -> None:
    raise RuntimeError(text)


@sp.tool
def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@sp.tool
def large(size: int) -> bytes:
    return bytes(size)


@sp.tool
def what_i_was_started_with() -> dict[str, list[str]]:
    with open("/proc/self/cmdline", "rb") as command, open("/proc/self/environ", "rb") as environment:
        return {
            "command": command.read().decode().split("\0"),
            "environment": environment.read().decode().split("\0"),
            "environ": [f"{name}={value}" for name, value in os.environ.items()],
        }


@sp.tool
def echo(value: Any) -> Any:
    return value


@sp.tool
def cut_memory_short() -> list[str]:
    """Try to change the size of every file in memory that this worker shares with its host. Returns what came of it."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            place = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if not place.startswith("/memfd:snakepit"):
            continue
        for size in (0, 1, 1 << 20, 1 << 50):
            try:
                os.ftruncate(int(name), size)
            except OSError as exc:
                found.append(type(exc).__name__)
            else:
                found.append("cut")
    return found


@sp.tool
def empty_memory() -> None:
    """Free all that is in the memory that this worker shares with its host, whoever looks at it."""
    import ctypes

    libc = ctypes.CDLL(None)
    for name in os.listdir("/proc/self/fd"):
        try:
            place = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if place.startswith("/memfd:snakepit"):
            libc.fallocate(int(name), 3, ctypes.c_int64(0), ctypes.c_int64(os.fstat(int(name)).st_size))


@sp.tool
def fine() -> str:
    return "fine"


def _send_frames(frames: Iterator[Any], seconds: float = 10.0) -> None:
    """Send frames to the host as they are, as fast as it takes them, in the thread that drives this worker's loop."""
    exchange = next(found for found in gc.get_objects() if type(found) is Exchange)
    pipe, until = exchange._pipe, time.monotonic() + seconds
    assert pipe is not None
    over = False

    def step() -> bool:
        nonlocal over
        while not over and pipe.unsent < 1_000_000:
            frame = next(frames, None)
            if frame is None:
                over = True
            else:
                pipe.send(frame if isinstance(frame, bytes) else frame_writing.encode(frame))
        return (over and not pipe.unsent) or time.monotonic() > until

    while not step():
        exchange.wait(step, time.monotonic() + 0.01)


def _call_id(context: sp.ToolContext) -> int:
    return int(context.request_id.rsplit("-", 1)[1])


@sp.tool
def chunks_beyond_credit(context: sp.ToolContext, size: int, count: int) -> Iterator[int]:
    """Stream so many chunks without regard to credits."""
    payload = frames.Payload(frames.MSGPACK, msgspec.msgpack.encode(bytes(size)))
    _send_frames(frames.Chunk(_call_id(context), payload) for _ in range(count))
    yield 1


@sp.tool
def send_messages(data: bytes, count: int) -> None:
    """Send the host one message so many times, as fast as it takes them."""
    _send_frames(itertools.repeat(data, count), 50)

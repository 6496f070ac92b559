"""A worker that means harm, as far as user code in it can."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import snakepit_trio as sp


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

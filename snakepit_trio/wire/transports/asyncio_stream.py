"""Connections over asyncio's own transports: the event loop feeds grpclib's engine."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast

from sniffio import current_async_library_cvar

from snakepit_trio.wire.addresses import parse_address
from snakepit_trio.wire.connection import Connection, Wire
from snakepit_trio.wire.http2.client_engine import client_protocol
from snakepit_trio.wire.http2.engine import LoopProtocol

__all__ = ["AsyncioWire"]


class _Transport:
    """A connected asyncio transport, and its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, lost: asyncio.Event) -> None:
        self._loop = loop
        self._transport = transport
        self._lost = lost

    def call_soon(self, callback: Callable[[], None]) -> object:
        return self._loop.call_soon(callback)

    def abort(self) -> None:
        self._transport.abort()

    async def serve(self) -> None:
        try:
            await self._lost.wait()
        finally:
            self._transport.abort()


class _Protocol(LoopProtocol):
    """The engine, which also reports the end of its connection.

    The event loop's callbacks here belong to no task, by which anyio would know the loop. Below ``anyio.run`` they
    inherit that; elsewhere (``asyncio.run``, a web server) anyio has to be told.
    """

    lost: asyncio.Event

    def data_received(self, data: bytes) -> None:
        _tell_the_library()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        _tell_the_library()
        super().connection_lost(exc)
        self.lost.set()


def _tell_the_library() -> None:
    if current_async_library_cvar.get() is None:
        current_async_library_cvar.set("asyncio")


class AsyncioWire(Wire):
    """Connections of a running asyncio event loop (including uvloop's)."""

    async def connect(
        self, address: str, *, token: str, max_message: int, tls: ssl.SSLContext | None = None, name: str = ""
    ) -> Connection:
        loop = asyncio.get_running_loop()
        lost = asyncio.Event()

        protocol = client_protocol(_Protocol, errors=self.errors)
        protocol.lost = lost
        # asyncio leaves the socket open if the factory raises, so it is a function that can't.
        factory = iter([protocol]).__next__
        place = parse_address(address)
        made: Any
        if isinstance(place, str):
            made, _ = await loop.create_unix_connection(factory, place)
        else:
            if tls is not None:
                # If asyncio failed at this, the socket would already be open, and stay open.
                tls.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
            made, _ = await loop.create_connection(
                factory, *place, ssl=tls, server_hostname=name if tls is not None else None
            )
        transport = _Transport(loop, cast("asyncio.Transport", made), lost)
        return Connection(protocol, transport, token=token, max_message=max_message, secure=tls is not None)

"""asyncio's transports inside Trio, by way of trio-asyncio's loop.

Kept beside the Trio socket for comparison and for applications that already live in a trio-asyncio loop. trio-asyncio
does not import on Python 3.14 and later.
"""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack

import trio_asyncio

from snakepit_trio.wire.connection import Connection, Wire
from snakepit_trio.wire.transports.asyncio_stream import AsyncioTransport, open_protocol

__all__ = ["TrioAsyncioWire"]


class _Transport:
    """An asyncio transport whose end a Trio task can wait for."""

    def __init__(self, inner: AsyncioTransport) -> None:
        self._inner = inner
        self.call_soon = inner.call_soon
        self.abort = inner.abort

    async def serve(self) -> None:
        # The border is crossed once per connection, here, and not once per call.
        await trio_asyncio.aio_as_trio(self._inner.serve)()


class TrioAsyncioWire(Wire):
    """Connections in trio-asyncio's loop: the application's, when it has one open, else one of our own."""

    name = "trio-asyncio"

    def __init__(self) -> None:
        super().__init__()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Wire:
        if trio_asyncio.current_loop.get() is None:
            await self._stack.enter_async_context(trio_asyncio.open_loop())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def connect(
        self, address: str, *, token: str, max_message: int, tls: ssl.SSLContext | None = None, name: str = ""
    ) -> Connection:
        protocol, transport = await trio_asyncio.aio_as_trio(open_protocol)(address, tls, name, self.errors)
        return Connection(protocol, _Transport(transport), token=token, max_message=max_message, secure=tls is not None)

"""The transports of a connection's bytes, behind the interface ``snakepit_trio.wire.connection.Wire``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakepit_trio.wire.connection import Wire

__all__ = ["make_wire"]


def make_wire(backend: str) -> Wire:
    """Return the wire for the running event loop, ``"trio"`` or ``"asyncio"``."""
    if backend == "trio":
        from .trio_socket import TrioWire

        return TrioWire()
    from .asyncio_stream import AsyncioWire

    return AsyncioWire()

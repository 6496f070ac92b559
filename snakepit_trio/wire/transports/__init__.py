"""The ways to move a connection's bytes, behind one interface: ``snakepit_trio.wire.connection.Wire``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snakepit_trio.errors import ConfigError

if TYPE_CHECKING:
    from snakepit_trio.wire.connection import Wire

__all__ = ["make_wire"]


def make_wire(kind: str, backend: str) -> Wire:
    """The wire of this kind for the event loop that is running.

    Args:
        kind: ``"auto"``, ``"trio"`` (a Trio socket), ``"trio-asyncio"`` (asyncio's transports in trio-asyncio's loop) or
            ``"asyncio"``.
        backend: The event loop that is running: ``"trio"`` or ``"asyncio"``.

    Raises:
        ConfigError: The kind does not fit the event loop.
    """
    if kind == "auto":
        kind = backend
    if (kind == "asyncio") != (backend == "asyncio"):
        raise ConfigError(
            f"wire={kind!r} does not run on {backend}", details={"key": "wire", "expected": f"a wire for {backend}"}
        )
    if kind == "trio":
        from .trio_socket import TrioWire

        return TrioWire()
    if kind == "trio-asyncio":
        from .over_trio_asyncio import TrioAsyncioWire

        return TrioAsyncioWire()
    from .asyncio_stream import AsyncioWire

    return AsyncioWire()

"""The protocol engine for the client's side of a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler
from h2.config import H2Configuration

from snakepit_trio._bulkhead import InternalErrors

from .engine import PipeProtocol

__all__ = ["client_protocol"]

_P = TypeVar("_P", bound=PipeProtocol)

#: The bytes that one side may have in flight.
_WINDOW = 16 * 1024 * 1024


class _Handler(AbstractHandler):
    """The engine's callbacks on the client's side, which need no handling beside the streams' pipes."""

    def accept(self, stream: Any, headers: Any, release_stream: Callable[[], None]) -> NoReturn:
        raise NotImplementedError("a client takes no requests")

    def cancel(self, stream: Any) -> None:
        pass

    def close(self) -> None:
        pass


def client_protocol(
    kind: type[_P], *, errors: InternalErrors | None = None, window: int = _WINDOW, stream_window: int = _WINDOW
) -> _P:
    """Create the engine for the client's side of a connection."""
    protocol = kind(
        _Handler(),
        Configuration(http2_connection_window_size=window, http2_stream_window_size=stream_window).__for_client__(),
        H2Configuration(
            client_side=True,
            header_encoding="ascii",
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        ),
    )
    if errors is not None:
        protocol.errors = errors
    return protocol

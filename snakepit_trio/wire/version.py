"""The version of the protocol, and the capabilities of this implementation."""

from __future__ import annotations

__all__ = ["CAPABILITIES", "PROTOCOL_VERSION", "PROTOCOL_VERSION_MIN"]

#: The current version.
PROTOCOL_VERSION = 1
#: The oldest accepted version.
PROTOCOL_VERSION_MIN = 1
#: See ``HandshakeResponse.capabilities`` in protos/snakepit/v1/worker.proto.
CAPABILITIES = ("exchange", "cancel", "credits", "host_calls", "health", "prefetch", "msgpack", "json", "settle")

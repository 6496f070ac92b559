"""The handshake between a host and a worker: protocol version, tools, capabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from snakepit_trio.errors import ProtocolMismatch, WorkerStartupError
from snakepit_trio.wire.handshake_messages import HandshakeRequest, HandshakeResponse, ToolSpec
from snakepit_trio.wire.rpc_paths import WORKER
from snakepit_trio.wire.version import CAPABILITIES, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN
from snakepit_trio.worker.adapter import TOOL_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snakepit_trio.launch.base import WorkerSpec
    from snakepit_trio.wire.connection import Connection
    from snakepit_trio.wire.memory_handoff import Offer

__all__ = ["Introduction", "shake_hands"]

#: The largest handshake, in bytes; most of it is schemas.
_LONGEST = 4 * 1024 * 1024
#: Checks the type of a schema, and only that its parts are JSON: it may be deep, or contain many objects in few bytes.
_check_schema = msgspec.json.Decoder(dict[str, msgspec.Raw] | bool).decode
#: The capabilities that only an exchange can support.
_FRAMES_ONLY = frozenset({"prefetch", "host_calls", "credits"})


class Introduction(NamedTuple):
    """A worker's handshake.

    Attributes:
        tools: The tools that it offers, in the order of ``Call.tool_index``, which counts from 1.
        capabilities: Its capabilities.
        threads: The number of calls that it runs at once.
    """

    tools: list[ToolSpec]
    capabilities: frozenset[str]
    threads: int


async def shake_hands(
    connection: Connection, spec: WorkerSpec, prefix: str, offer: Offer | None = None
) -> Introduction:
    """Perform the handshake with a worker.

    Args:
        connection: The connection to the worker.
        spec: The spec with which the worker was started.
        prefix: The prefix of its requests' ids.
        offer: A file for shared memory, for a worker that may be on another machine; None: it has inherited the host's
            file.

    Raises:
        ProtocolMismatch: It has no protocol version in common.
        WorkerStartupError: Its answer is invalid.
        RpcFailure: It refuses to answer.
    """
    request = HandshakeRequest(
        protocol_version=PROTOCOL_VERSION,
        protocol_version_min=PROTOCOL_VERSION_MIN,
        worker_id=spec.worker_id,
        pool=spec.pool,
        request_prefix=prefix,
        capabilities=list(CAPABILITIES),
    )
    if offer is not None:
        request.shared_memory_pid, request.shared_memory_fd = offer.pid, offer.fd
        request.shared_memory_proof = offer.proof
    said = await connection.unary(WORKER + "Handshake", bytes(request))
    if len(said) > _LONGEST:
        raise WorkerStartupError(f"its handshake has {len(said)} bytes; the limit is {_LONGEST}")
    try:
        answer = HandshakeResponse.parse(said)
    except Exception as exc:
        raise WorkerStartupError(f"its handshake can't be read: {exc}") from exc
    if not PROTOCOL_VERSION_MIN <= answer.protocol_version <= PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"the worker speaks protocol {answer.protocol_version}, this host "
            f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}",
            details={"ours": PROTOCOL_VERSION, "theirs": answer.protocol_version},
        )
    _check_tools(answer.tools)
    capabilities = frozenset(answer.capabilities)
    return Introduction(
        tools=answer.tools,
        capabilities=capabilities if "exchange" in capabilities else capabilities - _FRAMES_ONLY,
        threads=max(1, min(answer.threads or 1, spec.threads)),
    )


def _check_tools(tools: Sequence[ToolSpec]) -> None:
    """Check the tools of a worker, because workers in other languages do not use this package, which would have checked
    them.
    """
    seen: set[str] = set()
    for tool in tools:
        if not TOOL_NAME.fullmatch(tool.name) or tool.name in seen:
            raise WorkerStartupError(
                f"its handshake names a tool {tool.name[:100]!r} {'twice' if tool.name in seen else 'that can not be one'}"
            )
        seen.add(tool.name)
        for schema in (tool.parameters_schema, tool.result_schema):
            try:
                _check_schema(schema or "{}")
            except (msgspec.MsgspecError, ValueError, RecursionError):
                raise WorkerStartupError(
                    f"its handshake has a schema of {tool.name!r} that is no JSON Schema"
                ) from None

"""The first words between a host and a worker: which protocol, which tools, what it can do."""

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

#: Bytes of a handshake, nearly all of which are the schemas of its tools.
_LONGEST = 4 * 1024 * 1024
#: Looks at what a schema is, and only whether its parts are JSON: it may be deep, or hold much in few bytes.
_check_schema = msgspec.json.Decoder(dict[str, msgspec.Raw] | bool).decode
#: What only the frames of an exchange can carry.
_FRAMES_ONLY = frozenset({"prefetch", "host_calls", "credits"})


class Introduction(NamedTuple):
    """What a worker says of itself.

    Attributes:
        tools: What it offers, in the order of ``Call.tool_index``, which counts from 1.
        capabilities: What may be asked of it.
        threads: How many calls it runs at once.
    """

    tools: list[ToolSpec]
    capabilities: frozenset[str]
    threads: int


async def shake_hands(
    connection: Connection, spec: WorkerSpec, prefix: str, offer: Offer | None = None
) -> Introduction:
    """Ask a worker what it is and has.

    Args:
        connection: To the worker.
        spec: What it was asked to be.
        prefix: What the ids of its requests begin with.
        offer: A file to share, for a worker that may be on another machine; None: it has inherited the host's.

    Raises:
        ProtocolMismatch: It speaks another protocol.
        WorkerStartupError: What it says can't be right.
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
    """Workers in other languages are not made by our own code, which would have checked this."""
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

"""The gRPC services of a worker. Everything here runs in the I/O thread's event loop."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from snakepit_trio._exceptions import bare_name
from snakepit_trio.wire.handshake_messages import HandshakeRequest, HandshakeResponse, ToolSpec
from snakepit_trio.wire.http2.grpc_server import (
    RPC_ENDED,
    GRPCError,
    Handler,
    RawMessage,
    Status,
    duplex,
    server_stream,
    unary,
)
from snakepit_trio.wire.rpc_paths import WORKER
from snakepit_trio.wire.version import CAPABILITIES, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN

from . import failure

if TYPE_CHECKING:
    from snakepit_trio.wire.startup import Boot

    from .exchange import Exchange
    from .plain_rpcs import PlainCalls
    from .runners import Runner
    from .toolbox import Tool

__all__ = ["WorkerService"]


class WorkerService:
    """WorkerService and Health: authentication, the handshake, and the dispatch of RPCs.

    Args:
        boot: The worker's boot message.
        tools: The tools that it offers.
        runner: Runs the calls.
        exchange: Holds the calls.
        backend: The name of the event loop in the handshake.
        health: Asks the adapter for its health; may be awaited.
    """

    def __init__(
        self,
        boot: Boot,
        tools: list[Tool],
        runner: Runner,
        exchange: Exchange,
        *,
        backend: str,
        health: Callable[[], Any] | None,
    ) -> None:
        self._boot = boot
        self._tools = tools
        self._exchange = exchange
        self._runner = runner
        self._plain: PlainCalls | None = None
        self._backend = backend
        self._health = health
        self._expected = f"Bearer {boot.token}".encode()

    def __mapping__(self) -> dict[str, Handler]:
        behind = self._behind
        return {
            WORKER + "Handshake": unary(behind(self._handshake)),
            WORKER + "Exchange": duplex(behind(self._open_exchange)),
            WORKER + "Execute": unary(behind(self._execute)),
            WORKER + "ExecuteStream": server_stream(behind(self._execute_stream)),
            WORKER + "Settle": unary(behind(self._settle)),
            "/grpc.health.v1.Health/Check": unary(behind(self._check_health)),
        }

    @staticmethod
    def _behind(handler: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        """Wrap a handler so that unexpected exceptions are printed, because grpclib would only answer with a status."""

        async def rpc(stream: Any) -> None:
            try:
                await handler(stream)
            except RPC_ENDED:
                raise
            except Exception as exc:
                failure.tell(exc, "RPC")
                raise GRPCError(Status.INTERNAL, f"an internal error of snakepit_trio ({bare_name(exc)})") from exc

        return rpc

    def _authenticate(self, stream: Any) -> None:
        given = (stream.metadata or {}).get("authorization", "")
        if not hmac.compare_digest(str(given).encode(), self._expected):
            raise GRPCError(Status.UNAUTHENTICATED, "the token is missing or wrong")
        self._exchange.met = True

    async def _handshake(self, stream: Any) -> None:
        self._authenticate(stream)
        request = HandshakeRequest.parse((await stream.recv_message()).data)
        fits = request.protocol_version_min <= PROTOCOL_VERSION and request.protocol_version >= PROTOCOL_VERSION_MIN
        self._exchange.name_requests(request.request_prefix)
        capabilities = list(CAPABILITIES)
        offer = request.shared_memory_pid, request.shared_memory_fd, request.shared_memory_proof
        if request.shared_memory_proof and self._exchange.share_memory(*offer):
            capabilities.append("shared_memory")
        answer = HandshakeResponse(
            protocol_version=min(request.protocol_version, PROTOCOL_VERSION) if fits else PROTOCOL_VERSION,
            pid=os.getpid(),
            tools=[_spec(tool) for tool in self._tools],
            capabilities=capabilities,
            backend=self._backend,
            implementation="snakepit_trio",
            threads=self._boot.threads,
        )
        await stream.send_message(RawMessage(bytes(answer)))

    async def _check_health(self, stream: Any) -> None:
        """grpc.health.v1: https://github.com/grpc/grpc/blob/master/doc/health-checking.md"""
        self._authenticate(stream)
        await stream.recv_message()
        well = not self._exchange.stopping
        if well and self._health is not None:
            well = bool(await self._health())
        await stream.send_message(RawMessage(b"\x08\x01" if well else b"\x08\x02"))

    async def _open_exchange(self, stream: Any) -> None:
        self._authenticate(stream)
        try:
            await self._exchange.serve(stream)
        except RPC_ENDED:
            raise
        except Exception as exc:
            # Without its exchange the worker would wait for ever.
            failure.fatal(exc)

    async def _execute(self, stream: Any) -> None:
        self._authenticate(stream)
        await self._plain_calls().answer(stream, chunks=False)

    async def _execute_stream(self, stream: Any) -> None:
        self._authenticate(stream)
        await self._plain_calls().answer(stream, chunks=True)

    async def _settle(self, stream: Any) -> None:
        self._authenticate(stream)
        await self._plain_calls().settle(stream)

    def _plain_calls(self) -> PlainCalls:
        if self._plain is None:
            # Imported only now, because hosts of this package need neither this nor its message library.
            from .plain_rpcs import PlainCalls as Imported

            self._plain = Imported(self._boot, self._runner, self._exchange)
        return self._plain


def _spec(tool: Tool) -> ToolSpec:
    options = tool.options
    return ToolSpec(
        name=tool.name,
        description=options.description,
        parameters_schema=tool.parameters_schema,
        result_schema=tool.result_schema,
        streaming=tool.kind.streaming,
        critical=options.critical,
        idempotent=options.idempotent,
        metadata=dict(options.metadata),
    )

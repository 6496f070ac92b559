"""The gRPC services of a worker. Everything here runs in the I/O thread's event loop."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from snakepit_trio._exceptions import bare_name
from snakepit_trio.wire.generated.snakepit.v1 import (
    ExecuteRequest,
    ExecuteResponse,
    HandshakeRequest,
    HandshakeResponse,
    SettleRequest,
    SettleResponse,
    ToolSpec,
)
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
from snakepit_trio.wire.version import CAPABILITIES, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN

from . import failure
from .plain_rpcs import PlainCalls

if TYPE_CHECKING:
    from snakepit_trio.wire.startup import Boot

    from .exchange import Exchange
    from .runners import Runner
    from .toolbox import Tool

__all__ = ["WorkerService", "warm_up"]


class WorkerService:
    """WorkerService and Health: who may call, what is said in the handshake, and which RPC goes where.

    Args:
        boot: What this worker is to be.
        tools: What it offers.
        runner: Where calls run.
        exchange: Holds the calls.
        backend: What the handshake calls the event loop.
        health: Asks the adapter whether it is well; may be awaited.
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
        self._plain = PlainCalls(boot, runner, exchange)
        self._backend = backend
        self._health = health
        self._expected = f"Bearer {boot.token}".encode()

    def __mapping__(self) -> dict[str, Handler]:
        service = "/snakepit.v1.WorkerService/"
        behind = self._behind
        return {
            service + "Handshake": unary(behind(self._handshake), HandshakeRequest, HandshakeResponse),
            service + "Exchange": duplex(behind(self._open_exchange), RawMessage, RawMessage),
            service + "Execute": unary(behind(self._execute), ExecuteRequest, ExecuteResponse),
            service + "ExecuteStream": server_stream(behind(self._execute_stream), ExecuteRequest, ExecuteResponse),
            service + "Settle": unary(behind(self._settle), SettleRequest, SettleResponse),
            "/grpc.health.v1.Health/Check": unary(behind(self._check_health), RawMessage, RawMessage),
        }

    @staticmethod
    def _behind(handler: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        """A handler whose unexpected exceptions are told: grpclib would answer with a status, and say nothing here."""

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
        request = await stream.recv_message()
        fits = request.protocol_version_min <= PROTOCOL_VERSION and request.protocol_version >= PROTOCOL_VERSION_MIN
        self._exchange.name_requests(request.request_prefix)
        capabilities = list(CAPABILITIES)
        offer = request.shared_memory_pid, request.shared_memory_fd, request.shared_memory_proof
        if request.shared_memory_proof and self._exchange.share_memory(*offer):
            capabilities.append("shared_memory")
        await stream.send_message(
            HandshakeResponse(
                protocol_version=min(request.protocol_version, PROTOCOL_VERSION) if fits else PROTOCOL_VERSION,
                pid=os.getpid(),
                tools=[_spec(tool) for tool in self._tools],
                capabilities=capabilities,
                backend=self._backend,
                implementation="snakepit_trio",
                threads=self._boot.threads,
            )
        )

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
            # Without its exchange it would wait for nothing.
            failure.fatal(exc)

    async def _execute(self, stream: Any) -> None:
        self._authenticate(stream)
        await self._plain.answer(stream, chunks=False)

    async def _execute_stream(self, stream: Any) -> None:
        self._authenticate(stream)
        await self._plain.answer(stream, chunks=True)

    async def _settle(self, stream: Any) -> None:
        self._authenticate(stream)
        await self._plain.settle(stream)


def warm_up() -> None:
    """Use the messages of a handshake once: their library imports and builds most of itself on first use."""
    HandshakeRequest.parse(bytes(HandshakeRequest(worker_id="w", capabilities=["c"])))
    spec = ToolSpec(name="t", metadata={"k": "v"})
    HandshakeResponse.parse(bytes(HandshakeResponse(protocol_version=1, tools=[spec], capabilities=["c"])))


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

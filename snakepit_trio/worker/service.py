"""The gRPC services of a worker. Everything here runs in the I/O thread's event loop."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpclib.server
from grpclib.const import Cardinality, Status
from grpclib.const import Handler as RpcHandler
from grpclib.exceptions import GRPCError

from snakepit_trio.errors import RequestCancelled, SnakepitError, StreamingUnsupported, ToolNotFound
from snakepit_trio.launch.memory import resident
from snakepit_trio.wire import failures, frames
from snakepit_trio.wire.events import EVENTS_WAITING
from snakepit_trio.wire.generated.snakepit.v1 import (
    ExecuteRequest,
    ExecuteResponse,
    HandshakeRequest,
    HandshakeResponse,
    SettleRequest,
    SettleResponse,
    ToolSpec,
)
from snakepit_trio.wire.generated.snakepit.v1 import Payload as PayloadMessage
from snakepit_trio.wire.pipe import FramePipe, PipeProtocol
from snakepit_trio.wire.shared import Arena, Borrower, Budget
from snakepit_trio.wire.version import CAPABILITIES, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN

from .calls import Call, Channel, late
from .host_calls import HostCalls
from .runners import run_sync

if TYPE_CHECKING:
    from snakepit_trio.launch.marks import Marks
    from snakepit_trio.launch.messages import Boot

    from .runners import Runner
    from .shared_loop import SharedLoop
    from .toolbox import Tool

__all__ = ["PipeServer", "WorkerService", "warm_up"]

#: Room for the frame around a payload, in bytes.
_FRAME_OVERHEAD = 64 * 1024
#: Characters of an error's message in trailers.
_TEXT = 1000
#: While the host reads so slowly that more bytes than this wait for it, events are dropped.
_EVENTS_UNSENT = 1024 * 1024
#: So many chunks or events leave together, or what there is when so many seconds have passed.
_TOGETHER, _APART = 32, 0.0005


class PipeServer(grpclib.server.Server):
    """grpclib's server on connections that a FramePipe can take over."""

    def _protocol_factory(self) -> PipeProtocol:
        made = super()._protocol_factory()
        return PipeProtocol(made.handler, made.config, made.h2_config)


class _Failed(Exception):
    """A plain call has failed."""

    def __init__(self, info: frames.ErrorInfo) -> None:
        super().__init__(info.code)
        self.info = info


class _Bytes:
    """Raw messages for grpclib's codec, which asks its messages for these two methods."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def SerializeToString(self) -> bytes:
        return self.data

    @classmethod
    def FromString(cls, data: bytes) -> _Bytes:
        return cls(data)


class _PlainCall(Call):
    """A call of a plain RPC, which names its request itself."""

    __slots__ = ("given_id",)
    given_id: str

    @property
    def request_id(self) -> str:
        return self.given_id


class WorkerService:
    """WorkerService and Health, over one runner.

    Args:
        boot: What this worker is to be.
        tools: What it offers.
        runner: Where calls run.
        backend: What the handshake calls the event loop.
        health: Asks the adapter whether it is well; may be awaited.
        on_stop: Called once, when the host has asked for the end or is gone.
        on_drained: Called once, when after that no call is left.
        marks: Where the calls of the exchange that begin are written down.
        shared: The loop, when the thread that runs the tools drives it as well.

    Attributes:
        host_lost: The exchange has ended without a word from the host.
    """

    def __init__(
        self,
        boot: Boot,
        tools: list[Tool],
        runner: Runner,
        *,
        backend: str,
        health: Callable[[], Any] | None,
        on_stop: Callable[[], None],
        on_drained: Callable[[], None],
        marks: Marks,
        shared: SharedLoop | None,
    ) -> None:
        self._boot = boot
        self._tools = tools
        self._by_name = {tool.name: tool for tool in tools}
        self._runner = runner
        self._backend = backend
        self._health = health
        self._on_stop = on_stop
        self._on_drained: Callable[[], None] | None = on_drained
        self._loop = asyncio.get_running_loop()
        self._expected = f"Bearer {boot.token}".encode()
        self._pipe: FramePipe | None = None
        self._calls: dict[int, Call] = {}
        self._plain_ids = itertools.count(1 << 62)
        #: Calls of the plain RPCs that run, by request id, cancelled ones too.
        self._plain: dict[str, asyncio.Event] = {}
        self._shared = shared
        self._host_calls = HostCalls(runner.portal, self._wait)
        self._outbox: deque[frames.Frame] = deque()
        self._waking = False
        self._flushing = False
        self._flushed_at = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self._stopping = False
        shm = f"sp-{boot.run_id}-{boot.worker_id}-"
        self._arena = Arena(f"{shm}o", Budget(boot.shm_limit))
        self._borrower = Borrower(f"{shm}i")
        self._channel = Channel(
            send=self._send,
            wait=self._wait,
            begin=marks.begin,
            lend=self._arena.lend,
            host_calls=self._host_calls,
            prefix="",
            worker_id=boot.worker_id,
            limit=boot.max_payload,
            unserializable=boot.unserializable,
        )
        self.host_lost = False

    def __mapping__(self) -> dict[str, RpcHandler]:
        service = "/snakepit.v1.WorkerService/"
        unary, server_stream, both = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM
        return {
            service + "Handshake": RpcHandler(self._handshake, unary, HandshakeRequest, HandshakeResponse),
            service + "Exchange": RpcHandler(self._exchange, both, _Bytes, _Bytes),
            service + "Execute": RpcHandler(self._execute, unary, ExecuteRequest, ExecuteResponse),
            service + "ExecuteStream": RpcHandler(self._execute_stream, server_stream, ExecuteRequest, ExecuteResponse),
            service + "Settle": RpcHandler(self._settle, unary, SettleRequest, SettleResponse),
            "/grpc.health.v1.Health/Check": RpcHandler(self._check, unary, _Bytes, _Bytes),
        }

    # ---- RPCs --------------------------------------------------------------------------------------

    def _authenticate(self, stream: Any) -> None:
        given = (stream.metadata or {}).get("authorization", "")
        if not hmac.compare_digest(str(given).encode(), self._expected):
            raise GRPCError(Status.UNAUTHENTICATED, "the token is missing or wrong")

    async def _handshake(self, stream: Any) -> None:
        self._authenticate(stream)
        request = await stream.recv_message()
        fits = request.protocol_version_min <= PROTOCOL_VERSION and request.protocol_version >= PROTOCOL_VERSION_MIN
        if self._pipe is None:
            self._channel.prefix = request.request_prefix
        await stream.send_message(
            HandshakeResponse(
                protocol_version=min(request.protocol_version, PROTOCOL_VERSION) if fits else PROTOCOL_VERSION,
                pid=os.getpid(),
                tools=[_spec(tool) for tool in self._tools],
                capabilities=list(CAPABILITIES),
                backend=self._backend,
                implementation="snakepit_trio",
                threads=self._boot.threads,
            )
        )

    async def _check(self, stream: Any) -> None:
        """grpc.health.v1: https://github.com/grpc/grpc/blob/master/doc/health-checking.md"""
        self._authenticate(stream)
        await stream.recv_message()
        well = not self._stopping
        if well and self._health is not None:
            well = bool(await self._health())
        await stream.send_message(_Bytes(b"\x08\x01" if well else b"\x08\x02"))

    async def _exchange(self, stream: Any) -> None:
        self._authenticate(stream)
        if self._pipe is not None or self._stopping:
            raise GRPCError(Status.FAILED_PRECONDITION, "this worker has its host already")
        closed = asyncio.Event()
        self._pipe = FramePipe(
            stream._stream,
            on_message=self._on_message,
            on_close=lambda reason: closed.set(),
            max_message=self._boot.max_payload + _FRAME_OVERHEAD,
            call_soon=self._call_soon,
        )
        await stream.send_initial_metadata()
        self._pipe.start()
        try:
            await closed.wait()
        finally:
            self._lose()

    async def _execute(self, stream: Any) -> None:
        self._authenticate(stream)
        await self._answer_plainly(stream, chunks=False)

    async def _execute_stream(self, stream: Any) -> None:
        self._authenticate(stream)
        await self._answer_plainly(stream, chunks=True)

    async def _settle(self, stream: Any) -> None:
        self._authenticate(stream)
        request = await stream.recv_message()
        ended = self._plain.get(request.request_id)
        if ended is not None:
            await ended.wait()
        await stream.send_message(SettleResponse())

    async def _answer_plainly(self, stream: Any, *, chunks: bool) -> None:
        request = await stream.recv_message()
        try:
            async for payload in self._plain_call(stream, request, chunks=chunks):
                await stream.send_message(ExecuteResponse(payload=payload))
        except _Failed as exc:
            status, message, trailers = _grpc_error(exc.info)
            await stream.send_trailing_metadata(status=status, status_message=message, metadata=trailers)

    async def _plain_call(self, stream: Any, request: ExecuteRequest, *, chunks: bool) -> Any:
        """Run a call for one of the plain RPCs; a cancelled RPC cancels it."""
        arrived: asyncio.Queue[frames.Frame] = asyncio.Queue()
        given = request.payload or PayloadMessage()
        payload = frames.Payload(int(given.encoding), given.data, [b.inline or b"" for b in given.buffers])
        deadline = stream.deadline
        frame = frames.Call(
            next(self._plain_ids), 0, request.tool, payload, 0, request.attempt or 1, chunks, 16,
            request.session_id, dict(request.metadata),
        )  # fmt: skip
        ended = asyncio.Event()

        def arrive(frame: frames.Frame) -> None:
            arrived.put_nowait(frame)
            if isinstance(frame, frames.Reply):
                ended.set()
                if self._plain.get(request.request_id) is ended:
                    del self._plain[request.request_id]

        try:
            tool = self._tool_for(frame)
        except SnakepitError as exc:
            raise _Failed(failures.to_info(exc)) from None
        channel = Channel(
            send=lambda f: self._loop.call_soon_threadsafe(arrive, f),
            wait=self._wait,
            begin=lambda call_id: None,
            lend=lambda payload: payload,
            host_calls=self._host_calls,
            prefix="",
            worker_id=self._boot.worker_id,
            limit=self._boot.max_payload,
            unserializable=self._boot.unserializable,
            encoding=payload.encoding,
        )
        call = _PlainCall(frame, tool, channel, None if deadline is None else deadline.time_remaining())
        call.given_id = request.request_id
        self._calls[call.id] = call
        self._plain[request.request_id] = ended
        self._runner.submit(call)
        try:
            while True:
                item = await arrived.get()
                if isinstance(item, frames.Chunk):
                    call.credit(1)
                    yield _message(item.payload)
                elif isinstance(item, frames.HostCall):
                    error = ToolNotFound("a plain call has no way to its host", details={"tool": item.name})
                    self._host_calls.resolve(frames.HostReply(item.id, None, failures.to_info(error)))
                elif isinstance(item, frames.Reply):
                    del self._calls[call.id]
                    if item.error is not None:
                        raise _Failed(item.error)
                    if item.payload is not None:
                        yield _message(item.payload)
                    return
        finally:
            if self._calls.pop(call.id, None) is not None:
                call.cancel()
            self._note_drained()

    # ---- the exchange --------------------------------------------------------------------------------

    def _on_message(self, message: bytes) -> None:
        frame: Any = frames.decode_host_frame(message)
        if isinstance(frame, frames.Call | frames.HostReply) and frame.payload is not None and frame.payload.buffers:
            frame.payload = self._borrower.borrow(frame.payload)
        kind = type(frame)
        if kind is frames.Call:
            self._on_call(frame)
        elif kind is frames.Credit:
            call = self._calls.get(frame.id)
            if call is not None:
                call.credit(frame.chunks)
        elif kind is frames.Cancel:
            self._on_cancel(frame)
        elif kind is frames.Ping:
            self._reply_to_ping(frame)
        elif kind is frames.HostReply:
            self._host_calls.resolve(frame)
        elif kind is frames.Stop:
            self.stop(frame.grace_us / 1e6)

    def _on_call(self, frame: frames.Call) -> None:
        try:
            if frame.id in self._calls:
                raise ValueError(f"call {frame.id} is under way already")
            tool = self._tool_for(frame)
        except SnakepitError as exc:
            self._write(frames.Reply(frame.id, None, failures.to_info(exc)))
            return
        call = self._calls[frame.id] = Call(frame, tool, self._channel, frame.timeout_us / 1e6 or None)
        if tool.options.inline and self._shared is None and len(self._calls) <= self._boot.threads:
            self._run_inline(call)
            return
        self._runner.submit(call)
        if self._stopping:
            self._cancel(call)
        elif (
            call.deadline is not None
            and len(self._calls) > self._boot.threads
            and (self._sweeper is None or self._sweeper.when() > call.deadline)
            and (self._shared is None or self._shared.in_user_code)
        ):
            self.sweep()

    def _on_cancel(self, frame: frames.Cancel) -> None:
        call = self._calls.get(frame.id)
        if call is None:
            return
        if not frame.recall:
            self._cancel(call)
        elif call.claim():
            call.payload = frames.NO_PAYLOAD
            self._write(frames.Reply(call.id, None, frames.ErrorInfo(frames.RECALLED)))

    def _cancel(self, call: Call) -> None:
        """The caller is gone: a call that has not begun is answered at once, so that its place does not wait for others."""
        if call.claim():
            call.cancelled = True
            call.fail(RequestCancelled("cancelled before it began"))
        else:
            call.cancel()

    def sweep(self) -> None:
        """Answer the calls that have waited until their deadline, now and when the next one's has passed."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        waiting = [
            (call, call.deadline) for call in self._calls.values() if call.deadline is not None and call.unclaimed
        ]
        now = time.monotonic()
        for call, deadline in waiting:
            if deadline <= now and call.claim():
                call.fail(late())
        following = min((deadline for _, deadline in waiting if deadline > now), default=None)
        if following is not None:
            self._sweeper = self._loop.call_at(following, self.sweep)

    def _run_inline(self, call: Call) -> None:
        """Run a tool that is promised to be short here and now; its reply needs nobody to be woken."""
        waking, self._waking = self._waking, True
        try:
            run_sync(call)
        finally:
            self._waking = waking
            self._drain()

    def _tool_for(self, frame: frames.Call) -> Tool:
        if frame.tool_index:
            tool = self._tools[frame.tool_index - 1] if frame.tool_index <= len(self._tools) else None
        else:
            tool = self._by_name.get(frame.tool)
        if tool is None:
            name = frame.tool or f"number {frame.tool_index}"
            raise ToolNotFound(f"there is no tool {name!r}", details={"tool": name})
        if tool.kind.streaming != frame.stream:
            how = "use a streaming call" if tool.kind.streaming else "make it a generator to stream from it"
            raise StreamingUnsupported(
                f"{tool.name!r} gives {'a stream' if tool.kind.streaming else 'one result'}: {how}",
                details={"tool": tool.name, "streaming": tool.kind.streaming},
            )
        return tool

    def _reply_to_ping(self, ping: frames.Ping) -> None:
        self._write(frames.Pong(ping.sequence, list(self._calls), resident(), int(self._runner.lag() * 1e6)))

    def _send(self, frame: frames.Frame) -> None:
        """Send a frame from any thread. Many frames cost one wake-up of the I/O thread."""
        if len(self._outbox) >= EVENTS_WAITING and isinstance(frame, frames.Emit):
            return
        self._outbox.append(frame)
        if not self._waking:
            self._waking = True
            try:
                if self._shared is None:
                    self._loop.call_soon_threadsafe(self._drain)
                else:
                    self._shared.poke(self._drain)
            except RuntimeError:
                # The loop is closed: the host is gone, and with it whoever wanted this.
                self._outbox.clear()
        if (
            isinstance(frame, frames.Chunk | frames.Emit)
            and self._shared is not None
            and (len(self._outbox) >= _TOGETHER or time.monotonic() - self._flushed_at > _APART)
            and self._shared.is_owner()
        ):
            # The first at once, those that follow each other quickly together.
            self._shared.turn()

    def _wait(self, condition: Callable[[], bool], until: float | None) -> bool:
        """In a tool: drive the loop until the condition holds or the time has come, if this thread may. Whether it may."""
        if self._shared is None or not self._shared.is_owner():
            return False
        self._shared.wait(condition, until)
        return True

    def _call_soon(self, callback: Callable[[], None]) -> None:
        # What is sent in the course of a flush leaves with it.
        if not self._flushing:
            self._loop.call_soon(callback)

    def _drain(self) -> None:
        # Cleared first: a frame that is appended from now on either is seen below or wakes this thread again.
        self._waking = False
        outbox = self._outbox
        while outbox:
            self._write(outbox.popleft())

    def _write(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Reply):
            self._calls.pop(frame.id, None)
        elif isinstance(frame, frames.Emit) and self._pipe is not None and self._pipe.unsent > _EVENTS_UNSENT:
            return
        if self._pipe is not None:
            self._pipe.send(frames.encode(frame))
        if self._stopping:
            self._note_drained()

    # ---- the end ---------------------------------------------------------------------------------------

    @property
    def abandoned(self) -> bool:
        """Whether no host is connected."""
        return self._pipe is None

    def stop(self, grace: float) -> None:
        """Take no more calls; let those that run end within the grace, then cancel them."""
        if self._stopping:
            return
        self._stopping = True
        self._on_stop()
        if grace > 0:
            self._loop.call_later(grace, self._cancel_all)
        else:
            self._cancel_all()
        self._note_drained()

    def stop_unopened(self) -> None:
        """No host has come in all this time."""
        if self._pipe is None:
            self.stop(0.0)

    def _lose(self) -> None:
        self._pipe = None
        self.host_lost = not self._stopping
        self.stop(0.0)
        self._cancel_all()

    def _cancel_all(self) -> None:
        for call in list(self._calls.values()):
            self._cancel(call)

    def _note_drained(self) -> None:
        if self._stopping and not self._calls and self._on_drained is not None:
            on_drained, self._on_drained = self._on_drained, None
            on_drained()

    def flush(self) -> None:
        """Write what the tools have left to be sent."""
        if self._outbox:
            self._flushing = True
            try:
                self._drain()
                if self._pipe is not None:
                    self._pipe.flush()
            finally:
                self._flushing = False
                self._flushed_at = time.monotonic()


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


def _message(payload: frames.Payload) -> PayloadMessage:
    from snakepit_trio.wire.generated.snakepit.v1 import Buffer, Encoding

    return PayloadMessage(
        encoding=Encoding(payload.encoding),
        data=payload.data,
        buffers=[Buffer(inline=bytes(buffer)) for buffer in payload.buffers],  # type: ignore[arg-type]
    )


def _grpc_error(info: frames.ErrorInfo) -> tuple[Status, str, dict[str, bytes]]:
    """Status, message and trailers for a failure; trailers have to be short."""
    text = info.message
    if info.remote_types:
        text = f"{info.remote_types[0].removeprefix('builtins.')}: {info.remote_message}"
    info.remote_traceback = ""
    info.message, info.remote_message = info.message[:_TEXT], info.remote_message[:_TEXT]
    info.remote_types = list(info.remote_types)[:8]
    trailers = {"snakepit-error-bin": frames.encode_error(info)}
    return Status(failures.grpc_status(info.code)), text[:_TEXT], trailers

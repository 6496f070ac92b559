"""Calls that arrive one per RPC, for hosts with a stock gRPC library."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from snakepit_trio.errors import SnakepitError, ToolNotFound, WorkerCrashed
from snakepit_trio.wire import failures, frame_writing, frames
from snakepit_trio.wire.generated.snakepit.v1 import (
    ExecuteRequest,
    ExecuteResponse,
    SettleRequest,
    SettleResponse,
)
from snakepit_trio.wire.http2.grpc_server import RawMessage, Status
from snakepit_trio.wire.payload_messages import message_of, payload_of

from .call import Call, Channel

if TYPE_CHECKING:
    from snakepit_trio.wire.startup import Boot

    from .exchange import Exchange
    from .runners import Runner

__all__ = ["PlainCalls"]

#: The number of chunks of one call, and of their bytes, that may wait for the client to read earlier ones.
_CREDITS, _CREDIT_BYTES = 16, 4 * 1024 * 1024
#: The characters of an error's message in trailers, and the bytes of the whole error.
_TEXT, _ROOM = 1000, 4096


class _Failed(Exception):
    """A plain call has failed."""

    def __init__(self, info: frames.ErrorInfo) -> None:
        super().__init__(info.code)
        self.info = info


class _PlainCall(Call):
    """A call of a plain RPC, which carries its own request id."""

    __slots__ = ("given_id",)
    given_id: str

    @property
    def request_id(self) -> str:
        return self.given_id


class PlainCalls:
    """The plain RPCs, over the calls that the exchange holds.

    Args:
        boot: The worker's boot message.
        runner: Runs the calls.
        exchange: Holds all calls of this worker.
    """

    def __init__(self, boot: Boot, runner: Runner, exchange: Exchange) -> None:
        self._boot = boot
        self._runner = runner
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1 << 62)
        #: The running calls by request id, including cancelled ones.
        self._running: dict[str, asyncio.Event] = {}

    async def settle(self, stream: Any) -> None:
        """Serve ``Settle``: answer when the call with that id has ended, whatever happened to its RPC."""
        request = SettleRequest.parse((await stream.recv_message()).data)
        ended = self._running.get(request.request_id)
        if ended is not None:
            await ended.wait()
        await stream.send_message(RawMessage(bytes(SettleResponse())))

    async def answer(self, stream: Any, *, chunks: bool) -> None:
        """Serve ``Execute``, or ``ExecuteStream`` with ``chunks``."""
        request = ExecuteRequest.parse((await stream.recv_message()).data)
        try:
            async for payload in self._run(stream, request, chunks=chunks):
                await stream.send_message(RawMessage(bytes(ExecuteResponse(payload=payload))))
        except _Failed as exc:
            status, message, trailers = _grpc_error(exc.info)
            await stream.send_trailing_metadata(status=status, status_message=message, metadata=trailers)

    async def _run(self, stream: Any, request: ExecuteRequest, *, chunks: bool) -> Any:
        """Run a call of a plain RPC; cancelling the RPC cancels the call."""
        arrived: asyncio.Queue[frames.Frame] = asyncio.Queue()
        payload = payload_of(request.payload)
        deadline = stream.deadline
        frame = frames.Call(
            next(self._ids), 0, request.tool, payload, 0, request.attempt or 1, chunks, _CREDITS,
            request.session_id, dict(request.metadata), _CREDIT_BYTES,
        )  # fmt: skip
        ended = asyncio.Event()

        def arrive(frame: frames.Frame) -> None:
            arrived.put_nowait(frame)
            if isinstance(frame, frames.Reply):
                ended.set()
                if self._running.get(request.request_id) is ended:
                    del self._running[request.request_id]

        try:
            if self._exchange.stopping:
                raise _undone(frames.NOT_BEGUN)
            tool = self._exchange.tool_for(frame)
        except SnakepitError as exc:
            raise _Failed(failures.to_info(exc)) from None
        channel = Channel(
            send=lambda f: self._loop.call_soon_threadsafe(arrive, f),
            wait=self._exchange.wait,
            begin=lambda call_id: None,
            lend=lambda payload: payload,
            host_calls=self._exchange.host_calls,
            prefix="",
            worker_id=self._boot.worker_id,
            limit=self._boot.max_payload,
            unserializable=self._boot.unserializable,
            encoding=payload.encoding,
        )
        call = _PlainCall(frame, tool, channel, None if deadline is None else deadline.time_remaining())
        call.given_id = request.request_id
        self._exchange.calls[call.id] = call
        self._running[request.request_id] = ended
        self._runner.submit(call)
        try:
            while True:
                item = await arrived.get()
                if isinstance(item, frames.Chunk):
                    call.credit(1, item.payload.size)
                    yield message_of(item.payload)
                elif isinstance(item, frames.HostCall):
                    error = ToolNotFound("a plain call has no way to its host", details={"tool": item.name})
                    self._exchange.host_calls.resolve(frames.HostReply(item.id, None, failures.to_info(error)))
                elif isinstance(item, frames.Reply):
                    del self._exchange.calls[call.id]
                    if item.error is not None:
                        raise _Failed(item.error)
                    if item.undone:
                        raise _Failed(failures.to_info(_undone(item.undone)))
                    if item.payload is not None:
                        yield message_of(item.payload)
                    return
        finally:
            if self._exchange.calls.pop(call.id, None) is not None:
                call.cancel()
            self._exchange.note_drained()


def _undone(why: int) -> WorkerCrashed:
    """Return the error for an outcome for which the plain RPCs have no form of their own."""
    what = "has not begun the call" if why == frames.NOT_BEGUN else "has stopped the call"
    return WorkerCrashed(f"the worker ends, and {what}")


def _grpc_error(info: frames.ErrorInfo) -> tuple[Status, str, dict[str, bytes]]:
    """Return status, message and trailers of an error; trailers have to be short."""
    from snakepit_trio.wire.status import encode_shortened

    text = failures.message_of(info)[:_TEXT]
    info.remote_traceback = ""
    told = encode_shortened(info, _ROOM) or frame_writing.encode_error(
        frames.ErrorInfo(info.code, text, info.retryable, list(info.remote_types)[:1])
    )
    return Status(failures.status_of(info)), text, {"snakepit-error-bin": told}

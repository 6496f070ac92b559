"""The link to a worker that serves plain RPCs, as any stock gRPC library can: one Execute or ExecuteStream per call.

A cancellation resets the call's RPC. No server confirms that, while the seat may be given to the next call only when
the tool has stopped. So a worker may also serve Settle, which answers when the call of a request id has ended
(capability "settle"). Without it the pool's ``on_cancel`` decides: with ``"kill"`` the worker is replaced after
``cancel_grace``; with ``"abandon"`` the RPC is left running and its end awaited.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import deque
from typing import TYPE_CHECKING

import anyio

from snakepit_trio._interrupts import protected
from snakepit_trio._platform import resident_memory
from snakepit_trio.errors import InvalidPayload, RequestCancelled, SnakepitError
from snakepit_trio.observe.printable import one_line
from snakepit_trio.wire import codec, failures
from snakepit_trio.wire.connection import RpcFailure
from snakepit_trio.wire.frames import JSON, MSGPACK, Call, Chunk, HostReply, Payload, Reply
from snakepit_trio.wire.generated.snakepit.v1 import ExecuteRequest, SettleRequest
from snakepit_trio.wire.payload_messages import message_of
from snakepit_trio.wire.rpc_paths import WORKER

from .answers import DEADLINE_EXCEEDED, error_info, read_response
from .health import HEALTH
from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from snakepit_trio.config import PoolConfig
    from snakepit_trio.launch.base import WorkerProcess
    from snakepit_trio.wire.connection import Connection, Rpc
    from snakepit_trio.wire.handshake_messages import ToolSpec

    from .link import LinkOwner

__all__ = ["PlainCalls"]

_log = logging.getLogger(__name__)

_OK = 0
#: Seconds. A server that ends a call this shortly before its deadline does so because of the deadline.
_CLOSE = 0.05


class _Run:
    """One running call."""

    def __init__(self, call: Call, deadline: float) -> None:
        self.id = call.id
        self.stream = call.stream
        self.credits = call.credits
        #: The bytes that the consumer has room for; the last chunk may exceed them.
        self.room = call.credit_bytes
        self.deadline = deadline
        self.rpc: Rpc | None = None
        self.result: Payload | None = None
        #: The chunks that the consumer has no room for yet.
        self.waiting: deque[Payload] = deque()
        #: The end of the RPC, until it is reported.
        self.ended: tuple[int, str] | None = None
        self.cancelled = False

    @property
    def has_credit(self) -> bool:
        """Return whether the consumer has room for another chunk."""
        return self.credits > 0 and self.room > 0


class PlainCalls:
    """See :class:`~snakepit_trio.supervision.link.Link`.

    Args:
        connection: The connection, owned by the caller.
        owner: The worker.
        process: The worker's process.
        settings: The pool's settings.
        tools: The worker's tools, in the order of ``Call.tool_index``.
        capabilities: The capabilities of its handshake.
        request_prefix: The prefix of a request's id.
        redact: Removes secrets from exceptions of tools.
    """

    def __init__(
        self,
        connection: Connection,
        owner: LinkOwner,
        process: WorkerProcess,
        settings: PoolConfig,
        *,
        tools: Sequence[ToolSpec],
        capabilities: frozenset[str],
        request_prefix: str,
        redact: Callable[[str], str],
    ) -> None:
        self._connection = connection
        self._owner = owner
        self._process = process
        self._settings = settings
        self._tools = [tool.name for tool in tools]
        self._encodings = {
            encoding for encoding, name in ((JSON, "json"), (MSGPACK, "msgpack")) if name in capabilities
        }
        self._settles = "settle" in capabilities
        #: Only the end of an RPC shows that its call has stopped, so the library must not end it early.
        self._awaits = not self._settles and settings.on_cancel == "abandon"
        self._beats = "health" in capabilities
        self._prefix = request_prefix
        self._redact = redact
        self._runs: dict[int, _Run] = {}
        self._stopping = False

    # ---- the interface Link --------------------------------------------------------------------------

    def call(self, call: Call) -> None:
        timeout = call.timeout_us / 1e6 if call.timeout_us else math.inf
        if self._awaits:
            timeout = math.inf
        run = self._runs[call.id] = _Run(call, anyio.current_time() + timeout)
        try:
            request = bytes(self._request(call))
            run.rpc = self._connection.rpc(
                WORKER + ("ExecuteStream" if call.stream else "Execute"),
                on_message=functools.partial(self._on_message, run),
                on_end=functools.partial(self._on_end, run),
                timeout=timeout,
            )
        except SnakepitError as exc:
            self._soon(run, Reply(run.id, None, failures.to_info(exc)))
        except RpcFailure as exc:
            self._soon(run, Reply(run.id, None, error_info(exc.status, exc.message, {}, self._redact)))
        else:
            run.rpc.send(request)
            run.rpc.end()

    def cancel(self, call_id: int) -> None:
        run = self._runs.get(call_id)
        if run is None or run.cancelled:
            return
        run.cancelled = True
        unread = bool(run.waiting)
        run.waiting.clear()
        reply = Reply(run.id, None, failures.to_info(RequestCancelled("cancelled")))
        if run.rpc is None:
            return  # Its answer has been received.
        if run.ended is not None:
            if unread:
                self._soon(run, reply)
            # Otherwise it is answered once it is settled, or its grace ends it.
        elif self._settles:
            run.rpc.cancel()
            self._settle(run, reply)
        elif self._awaits:
            run.rpc.pipe.release()
        else:
            run.rpc.cancel()

    def withdraw(self, call_id: int, *, recall: bool) -> None:
        """Do nothing: calls are not prefetched to such a worker."""

    def credit(self, call_id: int, chunks: int, size: int) -> None:
        run = self._runs.get(call_id)
        if run is None:
            return
        run.credits += chunks
        run.room += size
        while run.waiting and run.has_credit:
            self._deliver(run, run.waiting.popleft())
        if not run.waiting and run.rpc is not None:
            run.rpc.pipe.release()
            if run.ended is not None:
                self._finish(run, *run.ended)

    @property
    def unread(self) -> int:
        return 0

    def host_reply(self, reply: HostReply) -> None:
        """Do nothing: such a worker can't call the host."""

    def stop(self) -> None:
        self._stopping = True
        self._process.terminate()

    @protected
    async def watch(self) -> None:
        interval, while_busy = self._settings.heartbeat_interval, self._settings.heartbeat_while_busy
        limit = interval * self._settings.heartbeat_misses
        # At least two checks of its progress before the limit.
        step = min(interval, limit / 2)
        progress = Progress(self._process, step / 2)
        while True:
            await anyio.sleep(interval)
            heard = anyio.current_time()
            while self._beats and not await self._beat(step):
                if while_busy and self._owner.in_flight:
                    heard = max(heard, await progress.look())
                silence = anyio.current_time() - heard
                if silence < limit - step / 2:
                    self._owner.link_missed(silence)
                elif while_busy or not self._owner.in_flight:
                    self._owner.link_silent(silence)
                    return
            # A worker without health checks is alive while its process is.
            self._owner.link_alive(resident_memory(self._process.pid), 0.0)

    def lost(self) -> None:
        """Do nothing: each RPC reports its own end."""
        if not self._stopping:
            self._owner.link_lost("the worker closed it")

    def close(self) -> None:
        """Do nothing: the link holds no resources."""

    # ---- inside ----------------------------------------------------------------------------------------

    async def _beat(self, timeout: float) -> bool:
        """Return whether the worker answers at all; its health is checked elsewhere."""
        with anyio.move_on_after(timeout):
            try:
                await self._connection.unary(HEALTH, b"", timeout=timeout)
            except RpcFailure as exc:
                return exc.status != DEADLINE_EXCEEDED
            return True
        return False

    def _request(self, call: Call) -> ExecuteRequest:
        payload = call.payload
        if payload.encoding not in self._encodings:
            # Encoded before this worker was chosen, in an encoding that it does not read.
            value = codec.decode(payload, what="params", limit=self._settings.max_payload)
            payload = codec.encode(value, limit=self._settings.max_payload, encoding=JSON)
        return ExecuteRequest(
            request_id=f"{self._prefix}{call.id}",
            tool=call.tool or self._tools[call.tool_index - 1],
            payload=message_of(payload),
            session_id=call.session_id,
            attempt=call.attempt,
            metadata=dict(call.metadata),
        )

    def _on_message(self, run: _Run, message: bytes) -> None:
        if run.cancelled:
            return
        payload = read_response(message)
        if not run.stream:
            if run.result is not None:
                raise ValueError("the worker gave two answers to one call")
            run.result = payload
        elif run.has_credit and not run.waiting:
            self._deliver(run, payload)
        else:
            assert run.rpc is not None
            run.waiting.append(payload)
            run.rpc.pipe.hold()

    def _deliver(self, run: _Run, payload: Payload) -> None:
        run.credits -= 1
        run.room -= payload.size
        self._owner.link_chunk(Chunk(run.id, payload))

    def _on_end(self, run: _Run, status: int, message: str) -> None:
        if self._connection.lost:
            return  # The worker has ended, and its calls with it.
        run.ended = status, message
        if not run.waiting:
            self._finish(run, status, message)

    def _finish(self, run: _Run, status: int, message: str) -> None:
        assert run.rpc is not None
        trailers = run.rpc.trailers
        if status == _OK and (run.stream or run.result is not None):
            self._reply(run, Reply(run.id, run.result))
            return
        if status == _OK:
            empty = InvalidPayload("the worker ended the call without an answer")
            self._reply(run, Reply(run.id, None, failures.to_info(empty)))
            return
        late = anyio.current_time() >= run.deadline - _CLOSE
        if trailers:
            reply = Reply(run.id, None, error_info(status, message, trailers, self._redact))
        elif run.rpc.pipe.refused:
            reply = Reply(run.id, None, failures.to_info(InvalidPayload(message)))
        else:
            # Reset by the server's library: at the deadline, or for an unknown reason.
            status = DEADLINE_EXCEEDED if late else status
            reply = Reply(run.id, None, error_info(status, message, {}, self._redact))
        # A library that enforces a deadline does not stop the tool by that.
        if trailers and not (status == DEADLINE_EXCEEDED and late):
            self._reply(run, reply)
        elif self._settles:
            self._settle(run, reply)
        elif not late:
            self._reply(run, reply)
        # Otherwise the pool's deadline task cancels the call, and its grace begins.

    def _settle(self, run: _Run, reply: Reply) -> None:
        """Reply when the worker reports that the call has ended. If it never does, the grace of the cancellation ends the
        worker.
        """
        try:
            rpc = self._connection.rpc(
                WORKER + "Settle",
                on_message=lambda message: None,
                on_end=functools.partial(self._on_settled, run, reply),
            )
        except RpcFailure as exc:
            _log.debug("call %d can't be settled: %s", run.id, exc)
            return
        rpc.send(bytes(SettleRequest(request_id=f"{self._prefix}{run.id}")))
        rpc.end()

    def _on_settled(self, run: _Run, reply: Reply, status: int, message: str) -> None:
        if status == _OK:
            self._reply(run, reply)
        elif not self._connection.lost:
            _log.warning(
                "a worker does not say whether it has stopped a call: status %d: %s", status, one_line(message)
            )

    def _soon(self, run: _Run, reply: Reply) -> None:
        self._connection.transport.call_soon(lambda: self._reply(run, reply))

    def _reply(self, run: _Run, reply: Reply) -> None:
        if self._runs.pop(run.id, None) is not None and not self._connection.lost:
            self._owner.link_reply(reply)

"""The link to a worker that serves the Exchange stream: every message is a frame on one RPC."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from snakepit_trio._interrupts import protected
from snakepit_trio._waiting import event_loop
from snakepit_trio.wire.frame_reading import decode_worker_frame
from snakepit_trio.wire.frame_writing import encode, encode_pieces
from snakepit_trio.wire.frames import (
    Call,
    Cancel,
    Chunk,
    Credit,
    Emit,
    HostCall,
    HostCancel,
    HostReply,
    Leaving,
    Ping,
    Pong,
    Reply,
    Stop,
)
from snakepit_trio.wire.memory import SharedMemory
from snakepit_trio.wire.rpc_paths import WORKER

from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from snakepit_trio.config import PoolConfig
    from snakepit_trio.launch.base import WorkerProcess, WorkerSpec
    from snakepit_trio.wire.connection import Connection
    from snakepit_trio.wire.memory import Budget

    from .link import LinkOwner

__all__ = ["Exchange"]


class Exchange:
    """See :class:`~snakepit_trio.supervision.link.Link`.

    Args:
        connection: The connection, owned by the caller.
        owner: The worker.
        spec: The spec with which the worker was started.
        settings: The pool's settings.
        shm: The shared memory for sent values.
        share: Returns a descriptor of the file that the worker has too, or None.
        process: The worker's process.

    Raises:
        RpcFailure: The connection has ended.
    """

    def __init__(
        self,
        connection: Connection,
        owner: LinkOwner,
        spec: WorkerSpec,
        settings: PoolConfig,
        shm: Budget,
        share: Callable[[], int | None] | None,
        process: WorkerProcess,
    ) -> None:
        self._owner = owner
        self._settings = settings
        self._process = process
        self._memory = SharedMemory("i", share, shm, settings.max_payload)
        self._now = event_loop(spec.host_backend).now
        self._heard = self._now()
        self._failed = False
        self._pings = 0
        self._answered = 0
        self._rpc = connection.rpc(WORKER + "Exchange", on_message=self._on_message, on_end=self._on_end)

    # ---- the interface Link --------------------------------------------------------------------------

    def call(self, call: Call) -> None:
        if call.payload.buffers:
            call.payload = self._memory.lend(call.payload)
        self._rpc.send(*encode_pieces(call))

    def cancel(self, call_id: int) -> None:
        self._rpc.send(encode(Cancel(call_id)))

    def withdraw(self, call_id: int, *, recall: bool) -> None:
        self._rpc.send(encode(Cancel(call_id, recall)))

    def credit(self, call_id: int, chunks: int, size: int) -> None:
        self._rpc.send(encode(Credit(call_id, chunks, size)))

    @property
    def unread(self) -> int:
        return self._rpc.unsent

    def host_reply(self, reply: HostReply) -> None:
        if reply.payload is not None:
            reply.payload = self._memory.lend(reply.payload)
        self._rpc.send(*encode_pieces(reply))

    def stop(self) -> None:
        self._rpc.send(encode(Stop(0)))

    @protected
    async def watch(self) -> None:
        interval, while_busy = self._settings.heartbeat_interval, self._settings.heartbeat_while_busy
        # When the next heartbeat is sent, the last answered one is an interval old, and the answer takes time.
        limit = interval * max(1.5, self._settings.heartbeat_misses)
        # At least two checks of its progress between that and the limit.
        step = min(interval, (limit - interval) / 2)
        progress = Progress(self._process, step / 2)
        self._heard = next_ping = anyio.current_time()
        while True:
            now = anyio.current_time()
            unanswered = self._answered < self._pings and now - self._heard >= step / 2
            if unanswered and while_busy and self._owner.in_flight:
                at_work = await progress.look()
                self._heard = max(self._heard, at_work)
                now = anyio.current_time()
            if now >= self._heard + limit:  # As it is added up below: a difference may round to just below.
                if while_busy or not self._owner.in_flight:
                    self._owner.link_silent(now - self._heard)
                    return
                self._heard = now
            if now >= next_ping:
                if self._answered < self._pings and now - self._heard >= interval / 2:
                    self._owner.link_missed(now - self._heard)
                self._pings += 1
                self._rpc.send(encode(Ping(self._pings)))
                next_ping = now + interval
            due = min(next_ping, self._heard + limit, now + step)
            await anyio.sleep_until(due)
            if anyio.current_time() - due > interval / 2:
                # The host itself was delayed, and answers may be waiting to be read, so the count starts again.
                self._heard = anyio.current_time()

    def lost(self) -> None:
        """Do nothing: the RPC's own end reports it."""

    def close(self) -> None:
        self._memory.close()

    # ---- what arrives --------------------------------------------------------------------------------

    def _on_message(self, message: bytes) -> None:
        if self._failed:
            # A message was lost, so further messages are not valid answers.
            return
        owner = self._owner
        try:
            frame = decode_worker_frame(message)
            self._heard = self._now()
            if type(frame) is Reply:
                # By far the most frequent frame.
                if frame.payload is not None and frame.payload.buffers:
                    frame.payload = self._memory.borrow(frame.payload)
                owner.link_reply(frame)
                return
            # Mapped at once, so that a value that is never read is released when it is dropped.
            if (type(frame) is Chunk or type(frame) is HostCall or type(frame) is Emit) and frame.payload.buffers:
                frame.payload = self._memory.borrow(frame.payload)
            match frame:
                case Chunk():
                    owner.link_chunk(frame)
                case Pong():
                    self._answered = frame.sequence
                    owner.link_alive(frame.rss, frame.lag_us / 1e6)
                case HostCall() | HostCancel():
                    owner.link_host_call(frame)
                case Emit():
                    owner.link_emit(frame)
                case Leaving():
                    owner.link_leaving()
        except ValueError as exc:
            owner.link_broken(str(exc))
            raise
        except Exception as exc:
            self._failed = True
            owner.link_failed(exc)

    def _on_end(self, status: int, message: str) -> None:
        self._owner.link_lost(message)

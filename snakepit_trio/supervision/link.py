"""The interface between a worker and the transport of its calls.

A link is created after the handshake, and closed with the worker. One kind is for workers that serve the Exchange
stream, another for workers that serve plain RPCs; the handshake tells which. The table of held calls, the grace for
cancelled calls and the stop are common to both, and belong to the worker.
"""

from __future__ import annotations

from typing import Protocol

from snakepit_trio._interrupts import protected
from snakepit_trio.wire.frames import Call, Chunk, Emit, HostCall, HostCancel, HostReply, Reply

__all__ = ["Link", "LinkOwner"]


class LinkOwner(Protocol):
    """The worker, as its link sees it. None of these methods waits; a method that receives a frame raises ValueError for
    an invalid one.
    """

    @property
    def in_flight(self) -> int:
        """The number of calls that the worker holds."""

    def link_reply(self, reply: Reply) -> None:
        """A call has ended, and the worker runs no part of it any more."""

    def link_chunk(self, chunk: Chunk) -> None:
        """A stream has yielded a chunk."""

    def link_host_call(self, call: HostCall | HostCancel) -> None:
        """A tool calls the host, or cancels such a call."""

    def link_emit(self, emit: Emit) -> None:
        """A tool has emitted an event."""

    def link_leaving(self) -> None:
        """The worker ends on its own, and gives back the calls that it has not begun."""

    def link_alive(self, rss: int, lag: float) -> None:
        """A heartbeat was answered, with the resident bytes and the delay of the worker's event loop in seconds."""

    def link_missed(self, silence: float) -> None:
        """A heartbeat was not answered before the next was due; the last sign of life was ``silence`` seconds ago."""

    def link_silent(self, silence: float) -> None:
        """The worker has given no sign of life for too long."""

    def link_broken(self, message: str) -> None:
        """The worker has violated the protocol. ``link_lost`` may follow."""

    def link_failed(self, exc: Exception) -> None:
        """Handling a received message has raised an unexpected exception, which ends the worker."""

    def link_lost(self, message: str) -> None:
        """The connection has ended."""


class Link(Protocol):
    """One way to communicate with a worker. Only :meth:`watch` waits."""

    def call(self, call: Call) -> None:
        """Send a call. Exactly one ``link_reply`` follows, in a later step, unless the worker ends."""

    def cancel(self, call_id: int) -> None:
        """Cancel a call whose caller has left; the reply follows when the worker has stopped it."""

    def withdraw(self, call_id: int, *, recall: bool) -> None:
        """Take back a call that the worker has probably not begun; with ``recall`` the call will run on another worker.
        Used only for workers with the capability "prefetch".
        """

    def credit(self, call_id: int, chunks: int, size: int) -> None:
        """Grant a stream credit for further chunks and bytes."""

    @property
    def unread(self) -> int:
        """The number of sent bytes that the worker has not read, as far as the host knows."""

    def host_reply(self, reply: HostReply) -> None:
        """Answer a tool's call to the host."""

    def stop(self) -> None:
        """Ask the worker to end in order. It holds no calls with waiting callers."""

    @protected
    async def watch(self) -> None:
        """Report a worker that gives no sign of life. Runs while the worker is ready."""

    def lost(self) -> None:
        """Handle the end of the connection; running calls may notice it before or after."""

    def close(self) -> None:
        """Release the link's resources; the connection is closed, and the process has ended."""

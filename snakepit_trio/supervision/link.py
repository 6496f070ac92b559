"""How the calls of one worker travel: the interface between a worker's life and the way in which it is spoken to.

A link is made when the handshake is done, and closed with the worker. There is one kind for workers that serve the
Exchange stream, and one for those that serve plain RPCs; a worker's handshake says which it is. What is common to all,
the books of what a worker holds, its grace for cancelled calls, its stop, is the worker's own.
"""

from __future__ import annotations

from typing import Protocol

from snakepit_trio._interrupts import protected
from snakepit_trio.wire.frames import Call, Chunk, Emit, HostCall, HostCancel, HostReply, Reply

__all__ = ["Link", "LinkOwner"]


class LinkOwner(Protocol):
    """The worker, as its link sees it. None of these methods waits; those that get a frame raise ValueError for one that
    makes no sense."""

    @property
    def in_flight(self) -> int:
        """Calls that the worker holds."""

    def link_reply(self, reply: Reply) -> None:
        """A call has ended, and the worker runs nothing of it any more."""

    def link_chunk(self, chunk: Chunk) -> None:
        """A stream has given a chunk."""

    def link_host_call(self, call: HostCall | HostCancel) -> None:
        """A tool calls the host, or no longer does."""

    def link_emit(self, emit: Emit) -> None:
        """A tool has emitted an event."""

    def link_leaving(self) -> None:
        """The worker ends on its own account, and gives back what it has not begun."""

    def link_alive(self, rss: int, lag: float) -> None:
        """A heartbeat was answered: resident bytes, and how late the worker's event loop was, in seconds."""

    def link_missed(self, silence: float) -> None:
        """A heartbeat was not answered before the next was due; the worker was heard last ``silence`` seconds ago."""

    def link_silent(self, silence: float) -> None:
        """The worker has given no sign of life for too long."""

    def link_broken(self, message: str) -> None:
        """The worker has sent what breaks the protocol. ``link_lost`` may follow."""

    def link_failed(self, exc: Exception) -> None:
        """What was made of something that arrived has raised an exception that nobody expected; the worker ends by it."""

    def link_lost(self, message: str) -> None:
        """The connection is over."""


class Link(Protocol):
    """One way to speak to a worker. Only :meth:`watch` waits."""

    def call(self, call: Call) -> None:
        """Send a call. Exactly one ``link_reply`` follows, in a later step, unless the worker ends."""

    def cancel(self, call_id: int) -> None:
        """The call's caller is gone; the reply is still to come, when the worker has stopped."""

    def withdraw(self, call_id: int, *, recall: bool) -> None:
        """A call that the worker has not begun, as far as is known, is not wanted any more; with ``recall`` not from it.
        Only asked of workers with the capability "prefetch"."""

    def credit(self, call_id: int, chunks: int, size: int) -> None:
        """A stream's consumer has room for so many chunks and bytes more."""

    @property
    def unread(self) -> int:
        """Bytes that were sent and that the worker has not read, as far as this side knows."""

    def host_reply(self, reply: HostReply) -> None:
        """Answer a tool's call to the host."""

    def stop(self) -> None:
        """Ask the worker to end in good order. It holds no calls that anybody waits for."""

    @protected
    async def watch(self) -> None:
        """See to it that a worker which gives no sign of life is told of. Runs while the worker is ready."""

    def lost(self) -> None:
        """The connection is over; every call under way may hear of it before or after."""

    def close(self) -> None:
        """Give back what the link holds; the connection is closed already, the process has ended."""

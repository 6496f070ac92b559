"""Who a worker works for: what a worker tells of itself and of its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from snakepit_trio.wire.frames import Chunk, Emit, HostCall, HostCancel, Reply

from .exits import Exit
from .states import WorkerState

if TYPE_CHECKING:
    from .worker import Worker

__all__ = ["WorkerHost"]


class WorkerHost(Protocol):
    """Who a worker works for. None of these methods waits."""

    def worker_introduced(self, worker: Worker) -> None:
        """It has said what it offers, and takes calls next.

        Raises:
            WorkerStartupError: It must not serve beside the others.
        """

    def worker_state(self, worker: Worker, old: WorkerState, new: WorkerState) -> None:
        """Its state has changed, and not between READY and BUSY only. After STARTING it is ready; at an end it takes no calls."""

    def worker_tainted(self, worker: Worker, reason: str) -> None:
        """It has shown a fault and must not get new calls; it may still finish those that it has."""

    def worker_stuck(self, worker: Worker, call_id: int) -> None:
        """A cancelled call has not stopped in time. The worker ends for it, as soon as nobody waits for what runs beside it."""

    def worker_due(self, worker: Worker, reason: str) -> None:
        """It is well, and is to be replaced: ``reason`` names the limit that it has reached."""

    def worker_missed(self, worker: Worker, silence: float) -> None:
        """It has not answered a heartbeat before the next was due; it was heard last ``silence`` seconds ago."""

    def worker_reply(self, worker: Worker, reply: Reply) -> None:
        """A call has ended. Raises ValueError when there was no such call."""

    def worker_returned(self, worker: Worker, call_id: int) -> None:
        """A call is given back that had not begun. Raises ValueError when there was no such call."""

    def worker_stopped_call(self, worker: Worker, call_id: int) -> None:
        """A call that had begun was stopped because the worker ends. Raises ValueError when there was no such call."""

    def worker_chunk(self, worker: Worker, chunk: Chunk) -> None:
        """A stream has given a chunk."""

    def worker_host_call(self, worker: Worker, call: HostCall | HostCancel) -> None:
        """A tool calls the host, or no longer does."""

    def worker_emit(self, worker: Worker, emit: Emit) -> None:
        """A tool has emitted an event."""

    def worker_gone(self, worker: Worker, exit: Exit) -> None:
        """It is over; how is known. Its process has ended."""

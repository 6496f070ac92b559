"""The interface through which a worker reports about itself and its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from snakepit_trio.wire.frames import Chunk, Emit, HostCall, HostCancel, Reply

from .exits import Exit
from .states import WorkerState

if TYPE_CHECKING:
    from .worker import Worker

__all__ = ["WorkerHost"]


class WorkerHost(Protocol):
    """The owner of a worker. None of these methods waits."""

    def worker_introduced(self, worker: Worker) -> None:
        """The handshake is complete, and the worker accepts calls next.

        Raises:
            WorkerStartupError: The worker must not serve beside the others.
        """

    def worker_state(self, worker: Worker, old: WorkerState, new: WorkerState) -> None:
        """The state has changed, except between READY and BUSY. After STARTING the worker is ready; at an end it accepts
        no calls.
        """

    def worker_tainted(self, worker: Worker, reason: str) -> None:
        """The worker has shown a fault and must not get new calls; it may finish its calls."""

    def worker_stuck(self, worker: Worker, call_id: int) -> None:
        """A cancelled call has not stopped in time. The worker ends because of it, once no caller waits for its other
        calls.
        """

    def worker_due(self, worker: Worker, reason: str) -> None:
        """The healthy worker must be replaced; ``reason`` names the limit that it has reached."""

    def worker_missed(self, worker: Worker, silence: float) -> None:
        """A heartbeat was not answered before the next was due; the last sign of life was ``silence`` seconds ago."""

    def worker_reply(self, worker: Worker, reply: Reply) -> None:
        """A call has ended. Raises ValueError if there was no such call."""

    def worker_returned(self, worker: Worker, call_id: int) -> None:
        """The worker gives back a call that had not begun. Raises ValueError if there was no such call."""

    def worker_stopped_call(self, worker: Worker, call_id: int) -> None:
        """A begun call was stopped because the worker ends. Raises ValueError if there was no such call."""

    def worker_chunk(self, worker: Worker, chunk: Chunk) -> None:
        """A stream has yielded a chunk."""

    def worker_host_call(self, worker: Worker, call: HostCall | HostCancel) -> None:
        """A tool calls the host, or cancels such a call."""

    def worker_emit(self, worker: Worker, emit: Emit) -> None:
        """A tool has emitted an event."""

    def worker_gone(self, worker: Worker, exit: Exit) -> None:
        """The worker has ended, and its process too."""

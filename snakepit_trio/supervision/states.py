"""The life of a worker incarnation as a table.

::

    STARTING --> READY <--> BUSY --> DRAINING --> STOPPED
        |          |         |          |
        +----------+----+----+----------+---> CRASHED
        +----------------------------------> STOPPED

STARTING lasts from the order to start until the handshake is done and the exchange is open. READY and BUSY take calls;
they differ in whether any call is held. DRAINING takes none and finishes those it has. STOPPED is an end that somebody
asked for, CRASHED any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

__all__ = ["TRANSITIONS", "WorkerState"]


class WorkerState(Enum):
    """The state of a worker incarnation."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPED = "stopped"
    CRASHED = "crashed"

    @property
    def over(self) -> bool:
        """Whether this is a final state."""
        return self in (WorkerState.STOPPED, WorkerState.CRASHED)


_S = WorkerState
#: The states that may follow each state.
TRANSITIONS: Mapping[WorkerState, frozenset[WorkerState]] = {
    _S.STARTING: frozenset({_S.READY, _S.STOPPED, _S.CRASHED}),
    _S.READY: frozenset({_S.BUSY, _S.DRAINING, _S.STOPPED, _S.CRASHED}),
    _S.BUSY: frozenset({_S.READY, _S.DRAINING, _S.STOPPED, _S.CRASHED}),
    _S.DRAINING: frozenset({_S.STOPPED, _S.CRASHED}),
    _S.STOPPED: frozenset(),
    _S.CRASHED: frozenset(),
}

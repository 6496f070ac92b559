"""The requests of a pool that others wait for, and the end of those whose wait can't end."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

import anyio

from snakepit_trio.errors import WouldDeadlock

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.tools.waits import Waits

    from ..fleet.supervisor import Supervisor
    from .request import Request
    from .scheduler import Scheduler

__all__ = ["NestedRequests"]


class NestedRequests:
    """Tells :class:`~snakepit_trio.tools.waits.Waits` of a pool's nested requests, and of those that hold permits.

    Args:
        config: The pool's configuration.
        waits: All that wait for each other, in all pools.
        scheduler: Decides about the pool's requests.
        crew: The pool's workers.
    """

    def __init__(self, config: PoolConfig, waits: Waits, scheduler: Scheduler, supervisor: Supervisor) -> None:
        self._config = config
        self._waits = waits
        self._scheduler = scheduler
        self._supervisor = supervisor

    def follow(self, event: str, request: Request) -> None:
        """A tool waits for this request, or for a permit that it holds: see whether its own wait can end."""
        waits = self._waits
        if event == "queued":
            waits.add(
                request,
                (*request.chain, *request.permits),
                lambda blocked: self._scheduler.hopeless(request, blocked) and not self._expecting(request, blocked),
                lambda: self._scheduler.end(request, self._would_deadlock(request), anyio.current_time()),
            )
        else:
            waits.remove(request)

    def _expecting(self, request: Request, blocked: Container[object]) -> bool:
        """Whether a worker is to come that may run a request, though none of these ends before."""
        if request.pin is not None:
            return False
        return self._supervisor.expects(blocked) or self._supervisor.size < (self._config.max_size or 0)

    def _would_deadlock(self, request: Request) -> WouldDeadlock:
        return WouldDeadlock(
            f"{request.tool!r} would wait for a worker of pool {self._config.name!r}, and none has room before a call ends that "
            "waits for it",
            details={"tool": request.tool, "pool": self._config.name},
        )

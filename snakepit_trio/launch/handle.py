"""The end of a process handle, for all launchers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import anyio

from .base import ExitStatus

__all__ = ["Handle"]

#: Seconds. The longest time for ending a process; a killed process that stays longer hangs in the kernel.
_GIVE_BACK = 5.0


class Handle(ABC):
    """The part of a :class:`snakepit_trio.launch.base.WorkerProcess` that all kinds share: its end."""

    #: Whether it has been closed, or is being closed.
    _closed = False

    @abstractmethod
    def kill(self) -> None: ...

    @abstractmethod
    async def wait(self) -> ExitStatus: ...

    async def cpu_time(self) -> float | None:
        return None

    @abstractmethod
    def _release(self) -> None:
        """Release the remaining resources of the handle. Called after its end, and again if it raises."""

    async def aclose(self) -> None:
        """Kill the process, wait for its end, release all resources. Runs to its end even when cancelled. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            try:
                self.kill()
                with anyio.move_on_after(_GIVE_BACK):
                    await self.wait()
            finally:
                try:
                    self._release()
                except Exception:
                    # The remaining resources; the exception goes to the caller.
                    self._release()
                    raise

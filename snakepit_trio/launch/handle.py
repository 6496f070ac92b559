"""How a process is given back to the system, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import anyio

from .base import ExitStatus

__all__ = ["Handle"]

#: How long giving a process back may take, in seconds; a killed process that stays longer hangs in the kernel.
_GIVE_BACK = 5.0


class Handle(ABC):
    """The part of a :class:`snakepit_trio.launch.base.WorkerProcess` that all kinds of them share: their end."""

    #: It has been given back, or is being so.
    _closed = False

    @abstractmethod
    def kill(self) -> None: ...

    @abstractmethod
    async def wait(self) -> ExitStatus: ...

    async def cpu_time(self) -> float | None:
        return None

    @abstractmethod
    def _release(self) -> None:
        """Give back what the handle still has of it. Called after its end, and once more if it raises."""

    async def aclose(self) -> None:
        """Kill it, wait for its end, give everything back. Runs to its end even when cancelled. Idempotent."""
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
                    # What it has not come to; the exception is for whoever asked.
                    self._release()
                    raise

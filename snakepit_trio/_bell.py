"""An event that can happen repeatedly, for any number of waiters."""

from __future__ import annotations

import anyio

__all__ = ["Bell"]


class Bell:
    """Wakes all current waiters when it is rung; later waiters wait for the next ring.

    Check the awaited condition and then wait, without an ``await`` in between: then no ring is missed.
    """

    def __init__(self) -> None:
        #: Somebody waits, or has waited since it was rung.
        self.awaited: bool = False
        self._next: anyio.Event | None = None

    def ring(self) -> None:
        """Wake all waiters. Without waiters this costs nothing."""
        rung, self._next = self._next, None
        self.awaited = False
        if rung is not None:
            rung.set()

    async def wait(self) -> None:
        """Wait for the next ring. A cancellation leaves nothing behind."""
        if self._next is None:
            self._next = anyio.Event()
            self.awaited = True
        await self._next.wait()

"""An event that happens again and again, for any number of waiters."""

from __future__ import annotations

import anyio

__all__ = ["Bell"]


class Bell:
    """Wakes everybody who waits when it is rung; who comes later waits for the next time.

    An event that each waiter makes anew would be lost for the waiter before it. Look at what is waited for, and then
    wait, without an ``await`` in between: nothing is missed.
    """

    def __init__(self) -> None:
        self._next: anyio.Event | None = None

    def ring(self) -> None:
        """Wake who waits; costs nothing when nobody does."""
        rung, self._next = self._next, None
        if rung is not None:
            rung.set()

    async def wait(self) -> None:
        """Wait until it is rung. A cancellation leaves nothing behind."""
        if self._next is None:
            self._next = anyio.Event()
        await self._next.wait()

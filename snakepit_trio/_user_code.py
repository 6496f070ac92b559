"""Functions of the application, whatever they raise.

Event loops ask an exception what it is, in their scopes and in their callbacks. An exception whose own code raises then breaks
the scope, or ends the loop; so no exception of a function gets there, but for those that may be cancellations.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import anyio
import anyio.to_thread

from ._exceptions import is_a

__all__ = ["Raised", "run_in_thread"]


class Raised:
    """Holds what its block raises, unless that is, or may hold, a cancellation. To stand inside of a cancel scope.

    Attributes:
        exc: What it holds.
    """

    __slots__ = ("exc",)

    def __init__(self, exc: BaseException | None = None) -> None:
        self.exc = exc

    def __enter__(self) -> Raised:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if exc is None or is_a(exc, (anyio.get_cancelled_exc_class(), BaseExceptionGroup)):
            return False
        self.exc = exc
        return True

    def again(self) -> None:
        """Raise what it holds, if anything."""
        exc, self.exc = self.exc, None
        if exc is not None:
            try:
                raise exc
            finally:
                del exc  # Its traceback has this frame.


async def run_in_thread(function: Callable[[], Any], *, limiter: anyio.CapacityLimiter | None = None) -> Any:
    """Call a function in a thread, and raise whatever it raises. A cancellation waits for a function that has begun.

    Args:
        function: Is called without arguments.
        limiter: Says how many threads there may be; None: anyio's own.
    """

    def call() -> Any:
        try:
            return function()
        except BaseException as exc:
            return Raised(exc)

    result = await anyio.to_thread.run_sync(call, limiter=limiter)
    if type(result) is Raised:
        result.again()
    return result

"""Safe calls of the application's functions, whatever they raise.

Event loops inspect exceptions in their scopes and callbacks. An exception whose own code raises would break the scope or
end the loop. So no exception of a function gets there, except possible cancellations.
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
    """Holds the exception of its block, unless it is or contains a cancellation. Use it inside a cancel scope.

    Attributes:
        exc: The held exception.
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
        """Raise the held exception, if there is one."""
        exc, self.exc = self.exc, None
        if exc is not None:
            try:
                raise exc
            finally:
                del exc  # The traceback contains this frame.


async def run_in_thread(function: Callable[[], Any], *, limiter: anyio.CapacityLimiter | None = None) -> Any:
    """Call a function in a thread, and raise its exception. A cancellation waits for a function that has begun.

    Args:
        function: The function, called without arguments.
        limiter: Limits the number of threads; None: anyio's default.
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

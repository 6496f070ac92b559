"""A second call beside a slow one; the first answer counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from snakepit_trio._interrupts import Unwrapped, protected

__all__ = ["Allowance", "hedged"]

#: The largest number of unused hedges that can accumulate.
_SAVED = 10.0


class Allowance:
    """Limits hedges to a share of the calls.

    Args:
        share: Hedges per call, on average.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = 1.0

    def earn(self) -> None:
        """Count a call."""
        self._saved = min(_SAVED, self._saved + self._share)

    @property
    def there(self) -> bool:
        """Return whether one more hedge is allowed."""
        return self._saved >= 1.0

    def spend(self) -> None:
        """Count a hedge."""
        self._saved -= 1.0


async def hedged(
    first: Callable[[], Awaitable[Any]], delay: float, second: Callable[[], Callable[[], Awaitable[Any]] | None]
) -> Any:
    """Await ``first()`` and, if it has not answered within ``delay`` seconds, also the function that ``second()`` returns.

    The first result counts, and the other call is cancelled. If one fails the other is awaited; if both fail, the first
    error is raised. A cancellation cancels both.
    """
    results: list[Any] = []
    errors: list[Exception] = []
    running = 0
    over = anyio.Event()

    with Unwrapped():
        async with anyio.create_task_group() as nursery:

            @protected
            async def run(call: Callable[[], Awaitable[Any]]) -> None:
                nonlocal running
                running += 1
                try:
                    results.append(await call())
                except Exception as exc:
                    errors.append(exc)
                finally:
                    running -= 1
                if results:
                    nursery.cancel_scope.cancel()
                if not running:
                    over.set()

            nursery.start_soon(run, first)
            with anyio.move_on_after(delay):
                await over.wait()
            if not over.is_set() and (beside := second()) is not None:
                nursery.start_soon(run, beside)
    if results:
        return results[0]
    raise errors[0]

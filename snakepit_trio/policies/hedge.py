"""A second call beside a slow one; the first answer counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from snakepit_trio._interrupts import Unwrapped, protected

__all__ = ["Allowance", "hedged"]

#: As many hedges as this may be saved up.
_SAVED = 10.0


class Allowance:
    """Keeps the hedges to a part of the calls.

    Args:
        share: Hedges per call, on average.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = 1.0

    def earn(self) -> None:
        """A call was made."""
        self._saved = min(_SAVED, self._saved + self._share)

    @property
    def there(self) -> bool:
        """Whether one more hedge may be made."""
        return self._saved >= 1.0

    def spend(self) -> None:
        """One is made."""
        self._saved -= 1.0


async def hedged(
    first: Callable[[], Awaitable[Any]], delay: float, second: Callable[[], Callable[[], Awaitable[Any]] | None]
) -> Any:
    """Await ``first()``, and beside it what ``second()`` gives when the first has not answered within ``delay`` seconds.

    The first result counts, and the other call is cancelled. When one fails the other is waited for; when both do, the
    failure of the first to fail is raised. A cancellation cancels both.
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

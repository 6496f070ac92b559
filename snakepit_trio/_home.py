"""Where a runtime or a client was opened: its event loop, and the task whose block it is.

Neither can be exchanged. A wake-up from another event loop is lost or strikes another thread's tasks, and a nursery that is left
in another task than it was entered in breaks the cancellation of both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

import anyio
import anyio.abc
import sniffio
import trio

from .errors import WrongContext

__all__ = ["Home", "HomeNursery"]

#: How long what a block holds may take to end where the block was left in another task, in seconds.
_END = 10.0


class Home:
    """The event loop in which it is made.

    Attributes:
        is_here: Tells whether the caller runs in it.
    """

    __slots__ = ("is_here",)

    def __init__(self) -> None:
        self.is_here: Callable[[], bool] = _in_trio() if sniffio.current_async_library() == "trio" else _in_asyncio()

    def check(self) -> None:
        """Refuse what comes from anywhere else.

        Raises:
            WrongContext: The caller runs in another event loop, or in none.
        """
        if not self.is_here():
            raise WrongContext(
                f"this was called from {_place()}, and works only in the event loop in which its pool, runtime or client was "
                "opened: call it there (from a thread with anyio.from_thread.run), or open another one here"
            )


def _in_asyncio() -> Callable[[], bool]:
    loop = asyncio.get_running_loop()

    def is_here() -> bool:
        try:
            return asyncio.get_running_loop() is loop
        except RuntimeError:
            return False

    return is_here


def _in_trio() -> Callable[[], bool]:
    token, current = trio.lowlevel.current_trio_token(), trio.lowlevel.current_trio_token

    def is_here() -> bool:
        try:
            return current() is token
        except RuntimeError:
            return False

    return is_here


def _place() -> str:
    try:
        return f"another event loop ({sniffio.current_async_library()})"
    except sniffio.AsyncLibraryNotFoundError:
        return "outside of any event loop"


def _task() -> object:
    """The task that runs. The object itself: its id may be another task's once it has ended."""
    return trio.lowlevel.current_task() if sniffio.current_async_library() == "trio" else asyncio.current_task()


class HomeNursery:
    """A nursery of the library's own in its caller's task, and what becomes of it where the caller leaves it in another task.

    Args:
        what: What is left, as the caller knows it.
        ended: Set when everything that runs in the nursery has been asked to end, and has.
    """

    def __init__(self, what: str, ended: anyio.Event) -> None:
        self._what = what
        self._ended = ended

    async def __aenter__(self) -> anyio.abc.TaskGroup:
        self._task = _task()
        self._home = Home()
        self._nursery = anyio.create_task_group()
        return await self._nursery.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            elsewhere = self._is_elsewhere()
        except BaseException:
            # Whatever fails here, a nursery is left, and its tasks have been asked to end.
            await self._nursery.__aexit__(kind, exc, traceback)
            raise
        if not elsewhere:
            return await self._nursery.__aexit__(kind, exc, traceback)
        self._home.check()
        # The nursery's scope is the other task's: it can't be left here, and holds nothing any more when this has passed.
        with anyio.CancelScope(shield=True), anyio.move_on_after(_END) as limit:
            await self._ended.wait()
        still = " and something of it still runs" if limit.cancelled_caught else ""
        raise WrongContext(
            f"the block of {self._what} was left in another task than it was entered in{still}: enter and leave it in one task, "
            "by `async with`, and never by a generator that is abandoned or by a fixture that is torn down elsewhere"
        )

    def _is_elsewhere(self) -> bool:
        return _task() is not self._task

"""The calls of a map that need tasks: of a pool with policies, where a call waits, is tried again or runs twice; or elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import anyio
import anyio.abc

from snakepit_trio._bell import Bell
from snakepit_trio._interrupts import protected
from snakepit_trio.errors import QueueFull, ToolError

from ..scheduling.request import Phase

__all__ = ["MapTask", "MapTasks"]


class MapTask:
    """One call.

    Attributes:
        phase: ``DONE`` when it has ended.
        error: What it raised.
    """

    __slots__ = ("error", "phase", "scope", "value")

    def __init__(self) -> None:
        self.phase = Phase.NEW
        self.error: Exception | None = None
        self.scope = anyio.CancelScope()
        self.value: Any = None

    def __repr__(self) -> str:
        return f"<MapTask {self.phase.value}>"


class MapTasks:
    """All calls of one map.

    Args:
        execute: Makes a call.
        has_room: Whether a call that is made now would be taken, as far as that is known here.

    Attributes:
        nursery: Where they run; set before the first.
    """

    nursery: anyio.abc.TaskGroup

    def __init__(
        self, execute: Callable[[Mapping[str, Any]], Awaitable[Any]], has_room: Callable[[], bool] = lambda: True
    ) -> None:
        self._execute = execute
        self._has_room = has_room
        # Those for whose end others may wait: not those that wait for a place, for a limit or before another attempt.
        self._busy = 0
        self._fewer = Bell()

    def __repr__(self) -> str:
        return f"<MapTasks busy={self._busy}>"

    def submit(self, params: Mapping[str, Any], wake: Callable[[], None]) -> MapTask:
        """Begin a call; ``wake`` is called when it has ended."""
        task = MapTask()
        self._busy += 1
        self.nursery.start_soon(self._run, task, params, wake)
        return task

    @staticmethod
    def take(task: MapTask) -> Any:
        """The result of a call that has ended, or what it raised."""
        if task.error is not None:
            raise task.error
        return task.value

    @staticmethod
    def cancel(task: MapTask) -> None:
        """Its result is not wanted any more."""
        task.scope.cancel()

    @protected
    async def _run(self, task: MapTask, params: Mapping[str, Any], wake: Callable[[], None]) -> None:
        try:
            with task.scope:
                try:
                    task.value = await self.patiently(functools.partial(self._execute, params))
                except Exception as exc:
                    task.error = exc
        finally:
            self._busy -= 1
            self._fewer.ring()
        task.phase = Phase.DONE
        wake()

    @contextmanager
    def standing(self, wait: AbstractContextManager[object]) -> Iterator[None]:
        """In the block a call waits for a limit, perhaps for a permit of one of ours, or before another attempt."""
        self._busy -= 1
        self._fewer.ring()
        try:
            with wait:
                yield
        finally:
            self._busy += 1

    async def patiently(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make a call; when a queue is full, others have filled it, and this one waits for one of ours to end.

        Raises:
            QueueFull: None of ours is under way.
        """
        while True:
            if self._busy == 1 or self._has_room():
                try:
                    return await call()
                except QueueFull as exc:
                    if self._busy == 1 or isinstance(exc, ToolError):
                        raise
            self._busy -= 1
            try:
                await self._fewer.wait()
            finally:
                self._busy += 1

"""A tool's view of its call, and its way to call the host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from snakepit_trio.errors import RequestCancelled

if TYPE_CHECKING:
    from .call import Call

__all__ = ["ToolContext"]


class ToolContext:
    """The context of a call. A parameter annotated with this class receives it."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __repr__(self) -> str:
        return f"<ToolContext {self.request_id} attempt={self.attempt}>"

    @property
    def request_id(self) -> str:
        """The request's id, as in the host's events."""
        return self._call.request_id

    @property
    def session_id(self) -> str | None:
        """The id of the caller's session; None without one."""
        return self._call.frame.session_id or None

    @property
    def worker_id(self) -> str:
        """The worker's id, as in ``pool.workers()``."""
        return self._call.channel.worker_id

    @property
    def attempt(self) -> int:
        """1 on the first attempt; greater after a worker died during an idempotent call."""
        return self._call.frame.attempt

    @property
    def metadata(self) -> Mapping[str, str]:
        """The caller's ``metadata``."""
        return self._call.frame.metadata

    @property
    def deadline(self) -> float | None:
        """Seconds until the request's deadline, at least 0; None without a deadline."""
        deadline = self._call.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the caller has left. A sync tool that runs for long should check this regularly."""
        return self._call.cancelled

    def raise_if_cancelled(self) -> None:
        """Raise an exception if the caller has left.

        Raises:
            RequestCancelled: The caller has left.
        """
        if self._call.cancelled:
            raise RequestCancelled("the caller is gone")

    async def call_host(
        self, name: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Call a host tool, from an async tool, within the request's deadline. A cancellation also cancels the host tool.

        Args:
            name: The host tool's name.
            params: The arguments by name.
            timeout: Seconds for this call.

        Raises:
            ToolNotFound: The host has no such tool.
            ToolError: The host tool raised.
            InvalidParameter: An argument can't be sent; the call has not begun.
            RequestTimeout: The call took too long.
            ConnectionLost: This process is a fork of the worker.
        """
        return await self._call.channel.host_calls.call(self._call, name, params, timeout)

    def call_host_sync(
        self, name: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Call a host tool as :meth:`call_host`, from a sync tool, whose thread waits.

        Raises:
            WouldDeadlock: The tool is inline.
        """
        return self._call.channel.host_calls.call_sync(self._call, name, params, timeout)

    def emit(
        self,
        event: str,
        measurements: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Emit an event; it arrives in ``runtime.events`` with the ids of this worker and request, and without secrets.

        The method never blocks: events emitted faster than they can be sent are dropped.

        Args:
            event: The name: a letter, then letters, digits, ``_``, ``.`` or ``-``; not one of the library's own names.
            measurements: Numbers by name.
            metadata: Plain values by name; with the measurements at most 16 KiB.

        Raises:
            InvalidParameter: The name, the measurements or the metadata are invalid.
        """
        self._call.emit(event, measurements or {}, metadata or {})

"""What a tool knows of its call, and how it talks back to the host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from snakepit_trio.errors import RequestCancelled

if TYPE_CHECKING:
    from .call import Call

__all__ = ["ToolContext"]


class ToolContext:
    """The call that a tool runs under. A parameter annotated with this class gets it."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __repr__(self) -> str:
        return f"<ToolContext {self.request_id} attempt={self.attempt}>"

    @property
    def request_id(self) -> str:
        """The request's id, the same as in the host's events."""
        return self._call.request_id

    @property
    def session_id(self) -> str | None:
        """The caller's session, None without one."""
        return self._call.frame.session_id or None

    @property
    def worker_id(self) -> str:
        """The worker's id, the same as in ``pool.workers()``."""
        return self._call.channel.worker_id

    @property
    def attempt(self) -> int:
        """1 on the first try, more when a worker died under an idempotent call."""
        return self._call.frame.attempt

    @property
    def metadata(self) -> Mapping[str, str]:
        """The text that the caller gave."""
        return self._call.frame.metadata

    @property
    def deadline(self) -> float | None:
        """Seconds left until the request's deadline, not below 0; None when it has none."""
        deadline = self._call.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the caller is gone. A sync tool that runs for long looks at this now and then."""
        return self._call.cancelled

    def raise_if_cancelled(self) -> None:
        """Leave the tool when the caller is gone.

        Raises:
            RequestCancelled: It is.
        """
        if self._call.cancelled:
            raise RequestCancelled("the caller is gone")

    async def call_host(
        self, name: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Call a tool of the host, from an async tool. Takes part in the request's deadline; a cancel goes along.

        Args:
            name: The host tool's name.
            params: Its arguments by name.
            timeout: Seconds that this call may take.

        Raises:
            ToolNotFound: The host has no such tool.
            ToolError: It raised.
            InvalidParameter: An argument can't be sent; nothing was.
            RequestTimeout: It took too long.
            ConnectionLost: This process is one that the tool has forked.
        """
        return await self._call.channel.host_calls.call(self._call, name, params, timeout)

    def call_host_sync(
        self, name: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """The same as :meth:`call_host`, from a sync tool: its thread waits.

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
        """Emit an event; it arrives in ``runtime.events`` with this worker's and request's ids, and without secrets.

        Events never hold a tool up: those that come faster than they can be sent are dropped.

        Args:
            event: Its name: a letter, then letters, digits, ``_``, ``.`` or ``-``; none of the library's own.
            measurements: Numbers by name.
            metadata: Plain values by name; with the measurements at most 16 KiB.

        Raises:
            InvalidParameter: The name, the measurements or the metadata are refused.
        """
        self._call.emit(event, measurements or {}, metadata or {})

"""Calls from a tool to the host."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from snakepit_trio import _forks
from snakepit_trio._timeouts import check_timeout
from snakepit_trio.errors import ConnectionLost, InvalidParameter, RequestTimeout, WouldDeadlock
from snakepit_trio.wire import codec, failures
from snakepit_trio.wire.frames import HostCall, HostCancel, HostReply

if TYPE_CHECKING:
    from .call import Call

__all__ = ["HostCalls"]

#: The largest number of characters of a host tool's name; longer than any real one.
_LONGEST_NAME = 256


class _Pending:
    """A call to the host with a waiting tool."""

    __slots__ = ("call", "done", "reply")

    def __init__(self, call: Call, done: Callable[[], object]) -> None:
        self.call = call
        self.done = done
        self.reply: HostReply | None = None


class HostCalls:
    """The running calls to the host, of all tools.

    Args:
        portal: Returns, in the thread of an event loop, a function that runs a callback in that loop from any thread.
        wait: Waits for a condition and does the I/O meanwhile, if this is the thread for both; see
            :class:`.call.Channel`. Returns False at once in another thread.
    """

    def __init__(
        self,
        portal: Callable[[], Callable[[Callable[[], object]], object]],
        wait: Callable[[Callable[[], bool], float | None], bool],
    ) -> None:
        self._portal = portal
        self._wait = wait
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}

    def resolve(self, reply: HostReply) -> None:
        """Handle the host's answer. Called in the I/O thread."""
        pending = self._pending.pop(reply.id, None)
        if pending is not None:
            pending.reply = reply
            pending.done()

    def cancel(self, call: Call) -> None:
        """Cancel the host calls of a cancelled call. Called in the I/O thread."""
        for id, pending in list(self._pending.items()):
            if pending.call is call and self._pending.pop(id, None) is not None:
                pending.done()

    async def call(self, call: Call, name: str, params: Mapping[str, Any] | None, timeout: float | None) -> Any:
        """Call the host and wait on the event loop. A cancellation also cancels the call in the host."""
        import anyio

        timeout = check_timeout(timeout)
        answered = anyio.Event()
        run_soon = self._portal()
        id, pending = self._begin(call, name, params, timeout, lambda: run_soon(answered.set))
        try:
            with anyio.move_on_after(self._time_left(call, timeout)):
                await answered.wait()
        finally:
            self._end(id, call)
        return self._answer(call, pending, name)

    def call_sync(self, call: Call, name: str, params: Mapping[str, Any] | None, timeout: float | None) -> Any:
        """Call the host and block the thread."""
        if call.tool.options.inline:
            raise WouldDeadlock(
                f"the inline tool {call.tool.name!r} can't wait for the host: the thread that it runs in is the one that "
                "would bring the answer",
                details={"tool": name},
            )
        timeout = check_timeout(timeout)
        answered = threading.Event()
        id, pending = self._begin(call, name, params, timeout, answered.set)
        try:
            left = self._time_left(call, timeout)
            if not self._wait(answered.is_set, None if left is None else time.monotonic() + left):
                answered.wait(left)
        finally:
            self._end(id, call)
        return self._answer(call, pending, name)

    def _begin(
        self,
        call: Call,
        name: str,
        params: Mapping[str, Any] | None,
        timeout: float | None,
        done: Callable[[], object],
    ) -> tuple[int, _Pending]:
        if not isinstance(name, str) or len(name) > _LONGEST_NAME or not name.isprintable():
            raise InvalidParameter(
                f"a host tool's name is printable text of up to {_LONGEST_NAME} characters, not {repr(name)[:100]}",
                details={"path": "name"},
            )
        if params is not None and not isinstance(params, Mapping):
            raise InvalidParameter(
                f"params must be a mapping of argument names to values, not {type(params).__name__}",
                details={"path": "params"},
            )
        if _forks.forked:
            raise ConnectionLost(
                f"a process that the tool {call.tool.name!r} has forked has no way to the host: only its worker does",
                details={"tool": name},
                retryable=False,
            )
        payload = call.encode_params(params)
        id = next(self._ids)
        pending = self._pending[id] = _Pending(call, done)
        # Checked after the call is registered: a cancellation either finds it there, or is seen here.
        if call.cancelled:
            self._pending.pop(id, None)
            call.context.raise_if_cancelled()
        left = self._time_left(call, timeout)
        call.send(HostCall(id, call.id, name, payload, 0 if left is None else max(1, int(left * 1e6))))
        return id, pending

    def _end(self, id: int, call: Call) -> None:
        if self._pending.pop(id, None) is not None:
            call.send(HostCancel(id))

    @staticmethod
    def _time_left(call: Call, timeout: float | None) -> float | None:
        left = call.context.deadline
        if timeout is None or left is None:
            return left if timeout is None else timeout
        return min(left, timeout)

    @staticmethod
    def _answer(call: Call, pending: _Pending, name: str) -> Any:
        reply = pending.reply
        if reply is None:
            call.context.raise_if_cancelled()
            raise RequestTimeout(
                f"the host tool {name!r} did not answer in time", details={"phase": "host_call", "tool": name}
            )
        if reply.error is not None:
            raise failures.from_info(reply.error)
        return None if reply.payload is None else codec.decode(reply.payload, what="result", limit=call.channel.limit)

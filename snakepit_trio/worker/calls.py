"""The calls that a worker holds, and the ways in which one ends.

A :class:`Call` is touched by two threads: the I/O thread makes it, cancels it and gives it credits; the thread that runs
the tool does the rest. What both touch is guarded by the call's condition, or is a single assignment.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from snakepit_trio.errors import InvalidParameter, RequestCancelled, RequestTimeout, SnakepitError
from snakepit_trio.observe.correlation import CURRENT
from snakepit_trio.wire import codec, failures
from snakepit_trio.wire.events import EVENT_LIMIT
from snakepit_trio.wire.frames import NO_PAYLOAD, Chunk, Emit, Frame, HostCall, HostCancel, HostReply, Payload, Reply

from .context import ToolContext
from .tracing import CallSpan, begin_span

if TYPE_CHECKING:
    from .toolbox import Tool

__all__ = ["Call", "HostCalls"]


class Call:
    """One call in a worker.

    Attributes:
        id: The host's number for it.
        tool: What to run.
        payload: The encoded arguments.
        stream: Chunks are wanted.
        deadline: On the clock of ``time.monotonic``; None when it has none.
        cancelled: The caller is gone.
        span: Its OpenTelemetry span; None where nobody uses that.
        wake: Set by whoever runs the call on an event loop: called, in the I/O thread, after a cancel or a credit.
    """

    __slots__ = (
        "_begin",
        "_claim",
        "_credits",
        "_lend",
        "_lock",
        "_send",
        "_token",
        "_unserializable",
        "_wait",
        "cancelled",
        "context",
        "deadline",
        "host_calls",
        "id",
        "limit",
        "payload",
        "span",
        "stream",
        "tool",
        "wake",
    )

    def __init__(
        self,
        id: int,
        tool: Tool,
        payload: Payload,
        *,
        send: Callable[[Frame], None],
        wait: Callable[[Callable[[], bool], float | None], bool],
        host_calls: HostCalls,
        stream: bool,
        credits: int,
        timeout: float | None,
        limit: int,
        request_id: str,
        session_id: str | None,
        worker_id: str,
        attempt: int,
        metadata: Mapping[str, str],
        begin: Callable[[int], None],
        lend: Callable[[Payload], Payload],
        unserializable: str,
    ) -> None:
        self.id = id
        self.tool = tool
        self.payload = payload
        self.stream = stream
        self.limit = limit
        self.host_calls = host_calls
        self.cancelled = False
        self.span: CallSpan | None = None
        self.wake: Callable[[], None] | None = None
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self._begin = begin
        # Whoever takes what is in it decides what becomes of the call; one operation of a list is never torn.
        self._claim = [None]
        self._lend = lend
        self._unserializable = unserializable
        self._credits = credits
        self._lock = threading.Condition()
        self._send = send
        self._wait = wait
        self.context = ToolContext(
            self,
            request_id=request_id,
            session_id=session_id,
            worker_id=worker_id,
            attempt=attempt,
            metadata=metadata,
            deadline=self.deadline,
        )

    def claim(self) -> bool:
        """Decide what becomes of the call: to run it, or to answer it unrun. True for the first who asks, in any thread."""
        try:
            self._claim.pop()
        except IndexError:
            return False
        return True

    # ---- from the I/O thread -----------------------------------------------------------------------

    def cancel(self) -> None:
        """The caller is gone."""
        with self._lock:
            self.cancelled = True
            self._lock.notify_all()
        self.host_calls.cancel(self)
        if self.wake is not None:
            self.wake()

    def credit(self, chunks: int) -> None:
        """The consumer has room for more chunks."""
        with self._lock:
            self._credits += chunks
            self._lock.notify_all()
        if self.wake is not None:
            self.wake()

    # ---- from the thread that runs the tool ----------------------------------------------------------

    def enter(self) -> None:
        """Its tool is about to run in this task or thread: what is logged and traced here belongs to it."""
        context = self.context
        self._token = CURRENT.set(context)
        self.span = begin_span(
            self.tool.name,
            context.metadata,
            {"snakepit.request_id": context.request_id, "snakepit.worker_id": context.worker_id},
        )

    def leave(self) -> None:
        """It has ended, and this task or thread goes on to something else."""
        CURRENT.reset(self._token)
        if self.span is not None:
            self.span.leave()

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Decode and bind the arguments.

        Raises:
            RequestCancelled: The caller is gone already.
            InvalidPayload, InvalidParameter: They are no arguments for this tool.
        """
        if self.cancelled:
            raise RequestCancelled("cancelled before it began")
        self._begin(self.id)
        params = codec.decode(self.payload, what="params", limit=self.limit)
        self.payload = NO_PAYLOAD
        return self.tool.bind(params, self.context)

    def take_credit(self) -> bool | None:
        """True when a chunk may be made now, False when there is no room, None when the caller is gone."""
        with self._lock:
            if self.cancelled:
                return None
            if not self._credits:
                return False
            self._credits -= 1
            return True

    def wait_credit(self) -> bool:
        """Block the thread until a chunk may be made. Returns False when the caller is gone."""
        if not self._credits and not self.cancelled:
            self._wait(lambda: bool(self._credits) or self.cancelled, None)
        with self._lock:
            while not self._credits and not self.cancelled:
                self._lock.wait()
            self._credits -= 1
            return not self.cancelled

    def chunk(self, value: Any) -> None:
        """Send a chunk."""
        self._send(Chunk(self.id, self._encode(value, "chunk")))

    def finish(self, value: Any) -> None:
        """The tool has returned."""
        try:
            payload = self._encode(value, "result")
        except SnakepitError as exc:
            self.fail(exc)
        else:
            self._end_span()
            self._send(Reply(self.id, payload))

    def _encode(self, value: Any, what: str) -> Payload:
        payload = codec.encode_result(value, what=what, limit=self.limit, unserializable=self._unserializable)
        return self._lend(payload) if payload.buffers else payload

    def encode_params(self, params: Mapping[str, Any] | None) -> Payload:
        """The arguments of a call to the host."""
        payload = codec.encode(dict(params or {}), limit=self.limit)
        return self._lend(payload) if payload.buffers else payload

    def end_stream(self) -> None:
        """The generator has ended, or was closed because the caller is gone."""
        if self.cancelled:
            self.fail(RequestCancelled("cancelled"))
        else:
            self._end_span()
            self._send(Reply(self.id))

    def fail(self, exc: BaseException) -> None:
        """The tool has raised."""
        from snakepit_trio.observe.redaction import redact

        # What it lies in is wanted back now, not when this object's cycle is collected.
        self.payload = NO_PAYLOAD
        info = failures.describe_exception(exc, redact=redact)
        self._end_span(exc, info.remote_message or info.message)
        self._send(Reply(self.id, None, info))

    def _end_span(self, error: BaseException | None = None, message: str = "") -> None:
        if self.span is not None:
            self.span.end(error, message)

    def emit(self, name: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """Send an event, without secrets."""
        from snakepit_trio.observe.catalogue import CATALOGUE, EVENT_NAME
        from snakepit_trio.observe.redaction import redact_value

        if not isinstance(name, str) or not EVENT_NAME.fullmatch(name) or name in CATALOGUE:
            raise InvalidParameter(
                f"an event of a tool can't be called {name!r}: a letter, then up to 127 letters, digits, '_', '.' or '-', "
                "and none of the library's own names",
                details={"path": "event"},
            )
        for what, given in (("measurements", measurements), ("metadata", metadata)):
            for key, value in given.items():
                if not isinstance(key, str):
                    raise InvalidParameter(f"{what}: {key!r} is no name", details={"path": what})
                if what == "measurements" and (isinstance(value, bool) or not isinstance(value, int | float)):
                    raise InvalidParameter(
                        f"measurements[{key!r}] must be a number, not {type(value).__name__}",
                        details={"path": f"measurements[{key!r}]"},
                    )
        payload = codec.encode([dict(measurements), redact_value(metadata)], what="event", limit=EVENT_LIMIT)
        self._send(Emit(self.id, name, payload))

    def send(self, frame: Frame) -> None:
        """Send any other frame that belongs to this call."""
        self._send(frame)


class _Pending:
    """A call to the host that somebody waits for."""

    __slots__ = ("call", "done", "reply")

    def __init__(self, call: Call, done: Callable[[], object]) -> None:
        self.call = call
        self.done = done
        self.reply: HostReply | None = None


class HostCalls:
    """The calls to the host that are under way, of all tools.

    Args:
        portal: Gives, in the thread of an event loop, a function that runs a callback in that loop from any thread.
        wait: Waits for a condition, and does the I/O meanwhile, in the thread whose business both are; see
            ``WorkerService``. False in another thread, at once.
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
        """The host has answered. Called in the I/O thread."""
        pending = self._pending.pop(reply.id, None)
        if pending is not None:
            pending.reply = reply
            pending.done()

    def cancel(self, call: Call) -> None:
        """The call that these belong to was cancelled: nobody is left waiting. Called in the I/O thread."""
        for id, pending in list(self._pending.items()):
            if pending.call is call and self._pending.pop(id, None) is not None:
                pending.done()

    async def call(self, call: Call, name: str, params: Mapping[str, Any] | None, timeout: float | None) -> Any:
        """Call the host and wait on the event loop."""
        import anyio

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
        if not isinstance(name, str):
            raise InvalidParameter(f"a host tool's name is text, not {name!r}", details={"path": "name"})
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise InvalidParameter(
                f"timeout must be a positive number of seconds or None, not {timeout!r}", details={"path": "timeout"}
            )
        if params is not None and not isinstance(params, Mapping):
            raise InvalidParameter(
                f"params must be a mapping of argument names to values, not {type(params).__name__}",
                details={"path": "params"},
            )
        payload = call.encode_params(params)
        id = next(self._ids)
        pending = self._pending[id] = _Pending(call, done)
        # Looked at after it is in the book: a cancel either sees it there, or is seen here.
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
        return None if reply.payload is None else codec.decode(reply.payload, what="result", limit=call.limit)

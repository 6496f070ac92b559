"""The calls that a worker holds, and the ways in which a call ends.

Two threads use a :class:`Call`: the I/O thread creates it, cancels it and gives it credits; the thread that runs the
tool does the rest. Shared state is guarded by the call's condition, or is a single assignment.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from snakepit_trio import _forks
from snakepit_trio._exceptions import is_a
from snakepit_trio.errors import InvalidParameter, InvalidPayload, RequestCancelled, RequestTimeout, SnakepitError
from snakepit_trio.observe.correlation import CURRENT
from snakepit_trio.wire import codec, failures
from snakepit_trio.wire.frames import (
    EVENT_LIMIT,
    JSON,
    MSGPACK,
    NO_PAYLOAD,
    NOT_BEGUN,
    STOPPED,
    Chunk,
    Emit,
    ErrorInfo,
    Frame,
    Payload,
    Reply,
)
from snakepit_trio.wire.frames import Call as CallFrame

from .context import ToolContext
from .tracing import CallSpan, begin_span

if TYPE_CHECKING:
    from .host_calls import HostCalls
    from .toolbox import Tool

__all__ = ["Call", "Channel", "late"]


def late() -> RequestTimeout:
    """Return the error of a call whose deadline passed before it began."""
    return RequestTimeout("the deadline passed before the call began", details={"phase": "queued"})


#: The condition of all calls in which no thread waits for credits.
_NOBODY_WAITS = threading.Condition()


class Channel:
    """The common part of all calls that arrive in the same way.

    Attributes:
        send: Sends a frame of a call; from any thread.
        wait: Waits for a condition and does the I/O meanwhile, if this is the thread for both, until a time of
            ``time.monotonic``; returns False at once in another thread.
        begin: Called with the number of each call before it begins.
        lend: Puts the large buffers of a payload into shared memory.
        host_calls: The running calls to the host.
        prefix: The prefix of a request's id, before the call's number.
        worker_id: The worker's id.
        limit: The largest encoded value, in bytes.
        unserializable: The handling of a result that can't be sent.
        encoding: The encoding of results: a caller that sends JSON may read nothing else.
    """

    __slots__ = (
        "begin",
        "encoding",
        "host_calls",
        "lend",
        "limit",
        "prefix",
        "send",
        "unserializable",
        "wait",
        "worker_id",
    )

    def __init__(
        self,
        *,
        send: Callable[[Frame], object],
        wait: Callable[[Callable[[], bool], float | None], bool],
        begin: Callable[[int], None],
        lend: Callable[[Payload], Payload],
        host_calls: HostCalls,
        prefix: str,
        worker_id: str,
        limit: int,
        unserializable: str,
        encoding: int = MSGPACK,
    ) -> None:
        self.encoding = JSON if encoding == JSON else MSGPACK
        self.send: Callable[[Frame], object] = send
        self.wait: Callable[[Callable[[], bool], float | None], bool] = wait
        self.begin: Callable[[int], None] = begin
        self.lend: Callable[[Payload], Payload] = lend
        self.host_calls: HostCalls = host_calls
        self.prefix: str = prefix
        self.worker_id: str = worker_id
        self.limit: int = limit
        self.unserializable: str = unserializable


class Call:
    """One call in a worker.

    Attributes:
        frame: The host's frame, without the arguments.
        id: The host's number for the call.
        tool: The tool.
        payload: The encoded arguments.
        channel: The way in which the call arrived.
        context: The tool's context; set by :meth:`enter`.
        deadline: The deadline on the clock of ``time.monotonic``; None for none.
        cancelled: Whether it must stop: its caller has left, or the worker ends.
        stopped: Whether it must stop because the worker ends.
        span: Its OpenTelemetry span; None if OpenTelemetry is not used.
        wake: Set by the code that runs the call on an event loop: called, in the I/O thread, after a cancellation or a
            credit.
    """

    __slots__ = (
        "_claim",
        "_credits",
        "_lock",
        "_room",
        "cancelled",
        "channel",
        "context",
        "deadline",
        "frame",
        "id",
        "payload",
        "send",
        "span",
        "stopped",
        "tool",
        "wake",
    )

    def __init__(self, frame: CallFrame, tool: Tool, channel: Channel, timeout: float | None) -> None:
        self.frame: CallFrame = frame
        self.id: int = frame.id
        self.tool: Tool = tool
        self.payload: Payload = frame.payload
        frame.payload = NO_PAYLOAD
        self.channel: Channel = channel
        self.send: Callable[[Frame], object] = channel.send
        self.cancelled: bool = False
        self.stopped: bool = False
        self.span: CallSpan | None = None
        self.wake: Callable[[], None] | None = None
        self.deadline: float | None = None if timeout is None else time.monotonic() + timeout
        # A one-item list as an atomic claim: whoever pops the item owns the call.
        self._claim = [None]
        self._credits = frame.credits
        # The bytes that the consumer has room for; the last chunk may exceed them.
        self._room: float = frame.credit_bytes or math.inf
        self._lock = threading.Condition() if frame.stream else _NOBODY_WAITS

    def claim(self) -> bool:
        """Claim the call, to run it or to answer it without running it. Returns True for the first claim, in any thread."""
        try:
            self._claim.pop()
        except IndexError:
            return False
        return True

    @property
    def request_id(self) -> str:
        """The request's id, as in the host's events."""
        return f"{self.channel.prefix}{self.id}"

    @property
    def unclaimed(self) -> bool:
        """Whether the call is not claimed yet."""
        return bool(self._claim)

    # ---- from the I/O thread -----------------------------------------------------------------------

    def cancel(self, *, stopped: bool = False) -> None:
        """Tell the call to stop: its caller has left or, with ``stopped``, the worker ends."""
        with self._lock:
            if stopped and not self.cancelled:
                self.stopped = True
            self.cancelled = True
            self._lock.notify_all()
        self.channel.host_calls.cancel(self)
        if self.wake is not None:
            self.wake()

    def credit(self, chunks: int, size: int) -> None:
        """Add the consumer's room for further chunks and bytes."""
        with self._lock:
            self._credits += chunks
            self._room += size
            self._lock.notify_all()
        if self.wake is not None:
            self.wake()

    # ---- from the thread that runs the tool ----------------------------------------------------------

    def enter(self) -> None:
        """Enter the call's own context before its tool runs: logs and traces in it belong to the call."""
        self.context: ToolContext = ToolContext(self)
        CURRENT.set(self.context)
        self.span = begin_span(self.tool.name, self.context)

    def arguments(self) -> tuple[list[Any], dict[str, Any]] | None:
        """Decode and bind the arguments. Returns None if the call was refused and answered instead: its caller has left,
        its deadline has passed, or the arguments are invalid.
        """
        if self.cancelled:
            self.withdraw()
            return None
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.refuse(late())
            return None
        channel, tool = self.channel, self.tool
        channel.begin(self.id)
        try:
            params = codec.decode(self.payload, what="params", limit=channel.limit)
            self.payload = NO_PAYLOAD
            return tool.bind(params, self.context)
        except (InvalidPayload, InvalidParameter) as exc:
            self.refuse(exc)
            return None

    def take_credit(self) -> bool | None:
        """Return True if a chunk may be sent now, False if there is no room, None if the caller has left."""
        with self._lock:
            if self.cancelled:
                return None
            if not self._has_credit:
                return False
            self._credits -= 1
            return True

    def wait_credit(self) -> bool:
        """Block the thread until a chunk may be sent. Returns False if the caller has left."""
        if not self._has_credit and not self.cancelled:
            self.channel.wait(lambda: self._has_credit or self.cancelled, None)
        with self._lock:
            while not self._has_credit and not self.cancelled:
                self._lock.wait()
            self._credits -= 1
            return not self.cancelled

    @property
    def _has_credit(self) -> bool:
        return self._credits > 0 and self._room > 0

    def chunk(self, value: Any) -> None:
        """Send a chunk."""
        if _forks.forked:
            _forks.end(None)
        payload = self._encode(value, "chunk")
        with self._lock:
            self._room -= payload.size
        self.send(Chunk(self.id, payload))

    def finish(self, value: Any) -> None:
        """Send the tool's result; in a fork of the worker, do nothing."""
        if _forks.forked:
            _forks.end(None)
        try:
            payload = self._encode(value, "result")
        except SnakepitError as exc:
            self.refuse(exc)
        else:
            self._end_span()
            self.send(Reply(self.id, payload))

    def _encode(self, value: Any, what: str) -> Payload:
        channel = self.channel
        payload = codec.encode_result(
            value, what=what, limit=channel.limit, unserializable=channel.unserializable, encoding=channel.encoding
        )
        return channel.lend(payload) if payload.buffers else payload

    def encode_params(self, params: Mapping[str, Any] | None) -> Payload:
        """Encode the arguments of a call to the host."""
        payload = codec.encode(dict(params or {}), limit=self.channel.limit)
        return self.channel.lend(payload) if payload.buffers else payload

    def end_stream(self) -> None:
        """Send the end of a generator that has ended, or was closed because the call must stop."""
        if _forks.forked:
            _forks.end(None)
        if self.cancelled:
            self.end_cancelled()
        else:
            self._end_span()
            self.send(Reply(self.id))

    def fail(self, exc: BaseException) -> None:
        """Send the tool's exception. Never raises, whatever the exception is."""
        if _forks.forked:
            _forks.end(exc)
        if self.cancelled and is_a(exc, RequestCancelled):
            self.end_cancelled()
            return
        from snakepit_trio.observe.redaction import redact

        self._fail(failures.describe_exception(exc, redact=redact), exc)

    def refuse(self, error: SnakepitError) -> None:
        """Send the worker's refusal of the call."""
        from snakepit_trio.observe.redaction import redact

        self._fail(failures.to_info(error, redact=redact), error)

    def end_cancelled(self) -> None:
        """Send that the call has stopped because it was told to."""
        if self.stopped:
            self._end_span(message="the worker ends")
            self.send(Reply(self.id, undone=STOPPED))
        else:
            self.refuse(RequestCancelled("cancelled"))

    def withdraw(self) -> None:
        """Give back a call that has not begun."""
        if self.cancelled and not self.stopped:
            self.refuse(RequestCancelled("cancelled before it began"))
        else:
            self.payload = NO_PAYLOAD
            self.send(Reply(self.id, undone=NOT_BEGUN))

    def _fail(self, info: ErrorInfo, exc: BaseException) -> None:
        # Its memory is released now rather than when this object's cycle is collected.
        self.payload = NO_PAYLOAD
        self._end_span(exc, failures.message_of(info))
        self.send(Reply(self.id, None, info))

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
        if not _forks.forked:
            self.send(Emit(self.id, name, payload))

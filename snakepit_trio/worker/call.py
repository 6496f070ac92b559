"""The calls that a worker holds, and the ways in which one ends.

A :class:`Call` is touched by two threads: the I/O thread makes it, cancels it and gives it credits; the thread that runs
the tool does the rest. What both touch is guarded by the call's condition, or is a single assignment.
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
    """The failure of a call whose deadline has passed before it began."""
    return RequestTimeout("the deadline passed before the call began", details={"phase": "queued"})


#: The condition of all calls in which no thread waits for credits.
_NOBODY_WAITS = threading.Condition()


class Channel:
    """What the calls that come the same way have in common.

    Attributes:
        send: Sends a frame of a call; from any thread.
        wait: Waits for a condition and does the I/O meanwhile, in the thread whose business both are, until a time of
            ``time.monotonic``; False in another thread, at once.
        begin: Told the number of each call that begins, before anything of it runs.
        lend: Puts the large buffers of a payload into shared memory.
        host_calls: The calls to the host that are under way.
        prefix: What a request's id begins with, before the call's number.
        worker_id: This worker's id.
        limit: Bytes that a value may have when encoded.
        unserializable: What becomes of a result that can't be sent.
        encoding: How results are encoded: a caller that writes JSON may read nothing else.
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
        frame: What the host said of it, without the arguments.
        id: The host's number for it.
        tool: What to run.
        payload: The encoded arguments.
        channel: How it came.
        context: What its tool may know of it; from :meth:`enter` on.
        deadline: On the clock of ``time.monotonic``; None when it has none.
        cancelled: It is to stop: the caller is gone, or the worker ends.
        stopped: It is to stop because the worker ends.
        span: Its OpenTelemetry span; None where nobody uses that.
        wake: Set by whoever runs the call on an event loop: called, in the I/O thread, after a cancel or a credit.
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
        # Whoever takes what is in it decides what becomes of the call; one operation of a list is never torn.
        self._claim = [None]
        self._credits = frame.credits
        # Bytes that the consumer has room for; the last chunk may have had more.
        self._room: float = frame.credit_bytes or math.inf
        self._lock = threading.Condition() if frame.stream else _NOBODY_WAITS

    def claim(self) -> bool:
        """Decide what becomes of the call: to run it, or to answer it unrun. True for the first who asks, in any thread."""
        try:
            self._claim.pop()
        except IndexError:
            return False
        return True

    @property
    def request_id(self) -> str:
        """The request's id, the same as in the host's events."""
        return f"{self.channel.prefix}{self.id}"

    @property
    def unclaimed(self) -> bool:
        """Whether nobody has decided yet what becomes of it."""
        return bool(self._claim)

    # ---- from the I/O thread -----------------------------------------------------------------------

    def cancel(self, *, stopped: bool = False) -> None:
        """It is to stop: the caller is gone, or, when ``stopped``, the worker ends."""
        with self._lock:
            if stopped and not self.cancelled:
                self.stopped = True
            self.cancelled = True
            self._lock.notify_all()
        self.channel.host_calls.cancel(self)
        if self.wake is not None:
            self.wake()

    def credit(self, chunks: int, size: int) -> None:
        """The consumer has room for so many chunks and bytes more."""
        with self._lock:
            self._credits += chunks
            self._room += size
            self._lock.notify_all()
        if self.wake is not None:
            self.wake()

    # ---- from the thread that runs the tool ----------------------------------------------------------

    def enter(self) -> None:
        """Its tool is about to run in this context, which is its own: what is logged and traced here belongs to it."""
        self.context: ToolContext = ToolContext(self)
        CURRENT.set(self.context)
        self.span = begin_span(self.tool.name, self.context)

    def arguments(self) -> tuple[list[Any], dict[str, Any]] | None:
        """Decode and bind the arguments; None when the call is refused instead, and has been answered: its caller is gone, its
        deadline has passed, or they are no arguments for this tool."""
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
        """True when a chunk may be made now, False when there is no room, None when the caller is gone."""
        with self._lock:
            if self.cancelled:
                return None
            if not self._has_credit:
                return False
            self._credits -= 1
            return True

    def wait_credit(self) -> bool:
        """Block the thread until a chunk may be made. Returns False when the caller is gone."""
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
        """The tool has returned: in its worker, or in a fork of that, which has nothing to say."""
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
        """The arguments of a call to the host."""
        payload = codec.encode(dict(params or {}), limit=self.channel.limit)
        return self.channel.lend(payload) if payload.buffers else payload

    def end_stream(self) -> None:
        """The generator has ended, or was closed because the call is to stop."""
        if _forks.forked:
            _forks.end(None)
        if self.cancelled:
            self.end_cancelled()
        else:
            self._end_span()
            self.send(Reply(self.id))

    def fail(self, exc: BaseException) -> None:
        """The tool has raised. Never raises, whatever that is."""
        if _forks.forked:
            _forks.end(exc)
        if self.cancelled and is_a(exc, RequestCancelled):
            self.end_cancelled()
            return
        from snakepit_trio.observe.redaction import redact

        self._fail(failures.describe_exception(exc, redact=redact), exc)

    def refuse(self, error: SnakepitError) -> None:
        """The call is refused by the worker, not by its tool."""
        from snakepit_trio.observe.redaction import redact

        self._fail(failures.to_info(error, redact=redact), error)

    def end_cancelled(self) -> None:
        """It has stopped because it was to."""
        if self.stopped:
            self._end_span(message="the worker ends")
            self.send(Reply(self.id, undone=STOPPED))
        else:
            self.refuse(RequestCancelled("cancelled"))

    def withdraw(self) -> None:
        """It is not wanted any more, or not from this worker, and has not begun."""
        if self.cancelled and not self.stopped:
            self.refuse(RequestCancelled("cancelled before it began"))
        else:
            self.payload = NO_PAYLOAD
            self.send(Reply(self.id, undone=NOT_BEGUN))

    def _fail(self, info: ErrorInfo, exc: BaseException) -> None:
        # What it lies in is wanted back now, not when this object's cycle is collected.
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

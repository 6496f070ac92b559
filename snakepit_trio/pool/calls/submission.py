"""Checks and encodes a call's arguments, and makes the request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from snakepit_trio._call_options import CallOptions, check_params, check_tool
from snakepit_trio.errors import StreamingUnsupported, ToolNotFound
from snakepit_trio.policies.options import Timeouts
from snakepit_trio.tools.waits import CHAIN, Permit, check_depth, current_chain
from snakepit_trio.wire import codec
from snakepit_trio.wire.frames import Payload

from ..scheduling.request import CLIENT, Binding, Request

if TYPE_CHECKING:
    from snakepit_trio._waiting import EventLoop
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.wire.handshake_messages import ToolSpec

    from ..fleet.dispatch import WorkerDispatch
    from ..services import PoolServices
    from .stream import ChunkStream

__all__ = ["Arguments", "Encoded", "Submission", "tool_not_found", "wrong_kind"]


class Encoded:
    """Arguments that a client has already encoded.

    Attributes:
        payload: The encoded arguments. They are sent unchanged if the workers decode their encoding.
        params: The decoded and checked arguments; None if only the worker decodes them.
    """

    __slots__ = ("params", "payload")

    def __init__(self, payload: Payload, params: Mapping[str, Any] | None) -> None:
        self.payload: Payload = payload
        self.params: Mapping[str, Any] | None = params


#: The arguments of a call by name.
Arguments: TypeAlias = Mapping[str, Any] | Encoded | None


class Submission:
    """Makes the requests of one pool.

    Args:
        loop: The running event loop.
    """

    def __init__(self, config: PoolConfig, services: PoolServices, dispatch: WorkerDispatch, loop: EventLoop) -> None:
        self._config = config
        self._name = config.name
        self._timeouts = Timeouts(config.timeout, config.stream_timeout, config.queue_timeout)
        self._services = services
        self._dispatch = dispatch
        self._loop = loop

    def make(
        self,
        tool: str,
        params: Arguments,
        options: CallOptions,
        on_end: Callable[[], object],
        *,
        binding: Binding | None = None,
        stream: ChunkStream | None = None,
        permits: tuple[Permit, ...] = (),
        batch: bool = False,
        taskless: bool = False,
    ) -> Request:
        """Check and encode the arguments, and create the request, which is not submitted yet.

        Args:
            on_end: Called when the request has ended.
            binding: The binding of the request's session.
            stream: The caller's end of the stream.
            permits: The permits of limits that the request holds.
            batch: The wait does not count: the timeout begins when a worker gets the request.
            taskless: The request has no task: no scope ends it, and its result is not decoded here.
        """
        config, repertoire = self._config, self._dispatch.repertoire
        payload = None
        if isinstance(params, Encoded):
            payload, params = params.payload, params.params
        spec = repertoire.tools.get(tool)
        if spec is None:
            check_tool(tool)
            if repertoire.tools:
                raise tool_not_found(tool, repertoire.tools, self._name)
        elif spec.streaming != (stream is not None):
            raise wrong_kind(spec)
        if params is not None or payload is None:
            if type(params) is not dict:
                params = check_params(params)
            check = repertoire.checks[tool]
            if check is not None:
                check(params)
        if payload is None or (params is not None and payload.encoding != repertoire.encoding):
            payload = codec.encode(params, limit=config.max_payload, encoding=repertoire.encoding)
        chain = CHAIN.get()
        if chain:
            chain = current_chain()
            check_depth(chain, tool)
        timeout = options.limit(config.timeout)
        now = self._loop.now()
        request = Request(
            next(self._services.ids),
            tool,
            payload,
            options,
            on_end=on_end,
            deadline=math.inf if timeout is None or batch else now + timeout,
            queue_deadline=math.inf if batch or config.queue_timeout is None else now + config.queue_timeout,
            scope_deadline=math.inf if taskless or batch else self._loop.deadline(),
            binding=binding,
            stream=stream,
        )
        if options.idempotent is None and spec is not None:
            request.idempotent = spec.idempotent and stream is None
        if batch:
            request.time_limit = timeout
        request.defaults = self._timeouts
        request.chain = chain
        request.permits = permits
        request.client = CLIENT.get()
        if stream is not None:
            stream.request = request
        telemetry = self._services.telemetry
        if telemetry is not None:
            id = f"{self._dispatch.request_prefix}{request.id}"
            decodes = not (taskless or batch) and stream is None
            request.trace = telemetry.begin(request, pool=self._name, request_id=id, decodes=decodes)
            request.metadata = {**request.metadata, **request.trace.carrier}
        return request

    def take(self, request: Request) -> Any:
        """Return the result of an ended request, or raise its error."""
        if request.error is not None:
            try:
                raise request.error
            finally:
                # The traceback refers to this frame.
                del request
        return self.decode(request.result)

    def decode(self, payload: Payload | None) -> Any:
        """Decode a result or a chunk."""
        if payload is None:
            return None
        return codec.decode(payload, what="result", limit=self._config.max_payload)


def tool_not_found(tool: object, known: Iterable[str], pool: str) -> ToolNotFound:
    """The error for a tool that a pool does not have."""
    import difflib

    close = difflib.get_close_matches(str(tool), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ToolNotFound(f"pool {pool!r} has no tool {tool!r}{hint}", details={"tool": tool, "pool": pool})


def wrong_kind(spec: ToolSpec) -> StreamingUnsupported:
    """Return the error for a streaming tool called as a plain one, or the reverse."""
    if spec.streaming:
        text = f"{spec.name!r} gives a stream: use pool.stream({spec.name!r}, ...)"
    else:
        text = f"{spec.name!r} gives one result, not a stream: use pool.execute, or make the tool a generator"
    return StreamingUnsupported(text, details={"tool": spec.name, "streaming": spec.streaming})

"""Tools that clients serve: registered by RegisterTools, served over ServeTools, called by the workers' tools.

To a worker such a tool is a host tool. Its function here sends the call to the client and waits for the answer. When
the worker's tool gives up, the client is informed; when the client disconnects, its calls fail and its tools are
removed.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from snakepit_trio._interrupts import protected
from snakepit_trio.errors import (
    ConnectionLost,
    InvalidParameter,
    InvalidPayload,
    QuotaExceeded,
    SnakepitError,
    ToolExists,
)
from snakepit_trio.sessions.records import check_name
from snakepit_trio.tools.registry import HostTool, ToolRegistry
from snakepit_trio.wire import failures, frame_reading
from snakepit_trio.wire.frames import MSGPACK
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.worker.adapter import ToolOptions
from snakepit_trio.worker.toolbox import Tool

from .payloads import read, write

if TYPE_CHECKING:
    from snakepit_trio.runtime import Runtime

    from .server_call import ServerCall

__all__ = ["ClientTools", "spec_of"]

#: Seconds. The time in which a client must open ServeTools after RegisterTools.
_TO_COME = 10.0
#: The largest numbers of tools in one registration, of registrations, and of one client's calls that wait for an answer.
_MOST_TOOLS, _MOST_REGISTRATIONS, _MOST_CALLS = 256, 1000, 1000
#: The largest numbers of registrations and of tools of one connection, so that it leaves room for others.
_MOST_OF_ONE, _MOST_TOOLS_OF_ONE = 32, 1000


class _Registration:
    """The tools of one RegisterTools request."""

    def __init__(self, client: object, names: list[str], registry: ToolRegistry, until: float, limit: int) -> None:
        self.client = client
        self.names = names
        self.registry = registry
        self.until = until
        self.limit = limit
        self.call: ServerCall | None = None
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[anyio.Event, list[v1.ClientToolReply]]] = {}
        self._ended = False

    def function(self, name: str) -> Callable[..., Any]:
        """Return the function that is registered under a name."""

        async def call_client(**params: Any) -> Any:
            return await self._ask(name, params)

        return call_client

    async def _ask(self, name: str, params: dict[str, Any]) -> Any:
        if self.call is None or self._ended:
            raise ConnectionLost(f"the client that serves {name!r} is not there", details={"tool": name})
        if len(self._waiting) >= _MOST_CALLS:
            raise SnakepitError(f"{name!r} has {_MOST_CALLS} calls waiting already", code="queue_full", retryable=True)
        id = next(self._ids)
        payload = write(params, MSGPACK, what="params", limit=self.limit)
        answered = anyio.Event()
        answers: list[v1.ClientToolReply] = []
        self._waiting[id] = answered, answers
        sent = False
        try:
            await self.call.send(v1.ClientToolCall(call_id=id, tool=name, payload=payload))
            sent = True
            await answered.wait()
        except BaseException:
            # The worker's tool no longer waits. A client that does not read has not received the call, and need not
            # forget it.
            if sent:
                self.call.send_nowait(v1.ClientToolCall(call_id=id, cancelled=True))
            raise
        finally:
            del self._waiting[id]
        if not answers:
            raise ConnectionLost(f"the client that serves {name!r} went before it answered", details={"tool": name})
        (answer,) = answers
        if answer.error is not None:
            raise failures.from_info(frame_reading.decode_error(bytes(answer.error)))
        if answer.payload is None:
            return None
        return read(answer.payload, what=f"the result of {name}", limit=self.limit)

    def answer(self, reply: v1.ClientToolReply) -> None:
        """Pass a client's answer to its call; an answer without a waiting call is dropped."""
        found = self._waiting.get(reply.call_id)
        if found is not None and not found[1]:
            found[1].append(reply)
            found[0].set()

    def end(self) -> None:
        """Remove the tools from the registry; waiting calls fail. Idempotent."""
        self._ended = True
        while self.names:
            if self.names[-1] in self.registry:
                self.registry.unregister(self.names[-1])
            self.names.pop()
        for answered, _ in self._waiting.values():
            answered.set()


class ClientTools:
    """The registrations of one runtime.

    Args:
        runtime: The runtime whose host tools they become.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._registrations: dict[str, _Registration] = {}
        self._changed = anyio.Event()

    def host_tools(self, session_id: str) -> dict[str, HostTool]:
        """Return the host tools by name; those of a session take precedence."""
        found = {tool.name: tool for tool in self._runtime.tools.list()}
        known = self._runtime.sessions.known(session_id) if session_id else None
        if known is not None and known.tools is not None:
            found.update((tool.name, tool) for tool in known.tools.list())
        return dict(sorted(found.items()))

    async def _registry(self, session_id: str, generation: str) -> ToolRegistry:
        if not session_id:
            return self._runtime.tools
        sessions = self._runtime.sessions
        found = await sessions.info(check_name(session_id, "session_id"), generation or None)
        known = sessions.known(session_id)
        if known is None or known.generation != found.generation:
            raise InvalidParameter(
                "the session was opened by another host; open it here first", details={"path": "session_id"}
            )
        if known.tools is None:
            known.tools = ToolRegistry(self._runtime.internal_errors)
        tools: ToolRegistry = known.tools
        return tools

    async def register(self, call: ServerCall, request: v1.RegisterToolsRequest) -> v1.RegisterToolsResponse:
        """Register all of the tools, or none."""
        if not 0 < len(request.tools) <= _MOST_TOOLS:
            raise InvalidParameter(f"tools: 1 to {_MOST_TOOLS} are expected", details={"path": "tools"})
        if len(self._registrations) >= _MOST_REGISTRATIONS:
            raise SnakepitError(
                f"there are {_MOST_REGISTRATIONS} registrations already", code="quota_exceeded",
                details={"quota": "registrations", "limit": _MOST_REGISTRATIONS},
            )  # fmt: skip
        self._check_share(call.client, len(request.tools))
        registry = await self._registry(request.session_id, request.generation)
        limit = max(pool.config.max_payload for pool in self._runtime.pools.values())
        made = _Registration(call.client, [], registry, anyio.current_time() + _TO_COME, limit)
        try:
            for index, spec in enumerate(request.tools):
                if spec.name in made.names:
                    raise ToolExists(f"tools[{index}]: {spec.name!r} is there twice", details={"tool": spec.name})
                if spec.critical or spec.streaming:
                    raise InvalidParameter(
                        f"tools[{index}]: a client's tool can be neither critical nor streaming",
                        details={"path": f"tools[{index}]", "tool": spec.name},
                    )
                _check_schema(index, spec)
                metadata = dict(spec.metadata)
                function = made.function(spec.name)
                tool = registry.register_alike(
                    spec.name, function, _TOOL, description=spec.description, metadata=metadata
                ).tool
                # The function here accepts anything, so the client's description is published instead.
                tool.parameters_schema = spec.parameters_schema or tool.parameters_schema
                tool.result_schema = spec.result_schema or tool.result_schema
                made.names.append(spec.name)
        except BaseException:
            made.end()
            raise
        id = secrets.token_urlsafe(16)
        self._registrations[id] = made
        self._changed.set()
        return v1.RegisterToolsResponse(registration_id=id, names=list(made.names))

    def _check_share(self, client: object, tools: int) -> None:
        """Check that a connection leaves enough room for others.

        Raises:
            QuotaExceeded: It has as many registrations, or tools, as one connection may have.
        """
        its = [made for made in self._registrations.values() if made.client is client]
        named = sum(len(made.names) for made in its)
        for quota, limit, used, asked in (
            ("client_registrations", _MOST_OF_ONE, len(its), 1),
            ("client_tools", _MOST_TOOLS_OF_ONE, named, tools),
        ):
            if used + asked > limit:
                raise QuotaExceeded(
                    f"{quota}: one connection may have {limit}, has {used}, and asks for {asked} more",
                    details={"quota": quota, "limit": limit, "used": used, "asked": asked},
                )

    async def serve(self, call: ServerCall) -> None:
        """Carry calls to the client that registered the tools, and its answers back, until it disconnects."""
        first = await call.receive()
        id = "" if first is None else first.registration_id or ""
        made = self._registrations.get(id)
        if made is None or made.call is not None:
            raise InvalidParameter(
                "the first message must name a registration that is not served yet",
                details={"path": "registration_id"},
            )
        made.call = call
        try:
            await call.send(v1.ClientToolCall(ready=True))
            while (frame := await call.receive()) is not None:
                if frame.reply is None:
                    raise InvalidPayload("after the first message, each is a reply", details={"path": "frame"})
                made.answer(frame.reply)
        finally:
            try:
                self._drop(id)
            except Exception:
                # Tried again, because no other code removes a served registration, and its names would stay taken.
                self._drop(id)
                raise

    @protected
    async def keep(self) -> None:
        """Remove registrations that are not served in time, until cancelled."""
        try:
            while True:
                self._changed = anyio.Event()
                due = [made.until for made in self._registrations.values() if made.call is None]
                with anyio.CancelScope() as scope:
                    if due:
                        scope.deadline = min(due)
                    await self._changed.wait()
                now = anyio.current_time()
                for id, made in list(self._registrations.items()):
                    if made.call is None and made.until <= now:
                        self._drop(id)
        finally:
            for id in list(self._registrations):
                self._drop(id)

    def _drop(self, id: str) -> None:
        made = self._registrations.get(id)
        if made is not None:
            made.end()
            del self._registrations[id]


async def _call_client(**params: Any) -> Any:
    """The signature of all functions of clients' tools."""


_TOOL = Tool(_call_client, ToolOptions("client", "", False))


def _check_schema(index: int, spec: v1.ToolSpec) -> None:
    """Check that a schema is a JSON object, or empty.

    Raises:
        InvalidParameter: It is not; the error names the tool and the field.
    """
    for field in ("parameters_schema", "result_schema"):
        text: str = getattr(spec, field)
        if not text:
            continue
        try:
            # Also checks that its parts are JSON, without creating objects.
            msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        except (msgspec.MsgspecError, RecursionError) as exc:
            path = f"tools[{index}].{field}"
            raise InvalidParameter(
                f"{path}: the schema of {spec.name!r} is no JSON object: {exc}",
                details={"path": path, "tool": spec.name, "expected": "a JSON Schema, as JSON text"},
            ) from None


def spec_of(tool: HostTool) -> v1.ToolSpec:
    """Return the description of a host tool."""
    return v1.ToolSpec(
        name=tool.name,
        description=tool.description,
        parameters_schema=tool.parameters_schema,
        result_schema=tool.tool.result_schema,
        critical=tool.critical,
        metadata=dict(tool.metadata),
    )

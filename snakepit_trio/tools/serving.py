"""Calls from workers' tools to the host's: each runs in a task of its worker's nursery, under its own scope."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any, Protocol

import anyio
import anyio.to_thread

from snakepit_trio._interrupts import protected
from snakepit_trio.errors import InvalidParameter, RequestCancelled, RequestTimeout, ToolNotFound
from snakepit_trio.observe.correlation import CURRENT, Correlation
from snakepit_trio.wire import codec, failures
from snakepit_trio.wire.frames import HostCall, HostReply

from .registry import HostTool, ToolRegistry

__all__ = ["CHAIN", "Caller", "HostToolServer"]

_log = logging.getLogger(__name__)

#: The requests that wait, each for the next, for what this task does; empty for a task that no worker waits for.
CHAIN: ContextVar[tuple[Any, ...]] = ContextVar("snakepit_chain", default=())


class Caller(Protocol):
    """The worker that calls."""

    def host_reply(self, reply: HostReply) -> None:
        """Send the answer; does nothing once the worker is gone."""


class HostToolServer:
    """Runs host tools for one worker.

    Args:
        caller: The worker.
        registries: Where a request's tools are looked for, the nearest first.
        limit: Largest result, in bytes.
        redact: Takes secrets out of what the tools raise.
        prefix: What a request's number is put behind, to make its id.
    """

    def __init__(
        self,
        caller: Caller,
        registries: Callable[[Any], tuple[ToolRegistry, ...]],
        limit: int,
        redact: Callable[[str], str],
        prefix: str,
    ) -> None:
        self._caller = caller
        self._registries = registries
        self._limit = limit
        self._redact = redact
        self._prefix = prefix
        self._scopes: dict[int, anyio.CancelScope] = {}

    def begin(self, id: int) -> anyio.CancelScope:
        """The scope of a call that is about to run.

        Raises:
            ValueError: There is such a call.
        """
        if id in self._scopes:
            raise ValueError(f"host call {id} is under way already")
        scope = self._scopes[id] = anyio.CancelScope()
        return scope

    def cancel(self, id: int) -> None:
        """The tool no longer waits for this call."""
        scope = self._scopes.get(id)
        if scope is not None:
            scope.cancel()

    @protected
    async def run(self, call: HostCall, request: Any, scope: anyio.CancelScope) -> None:
        """Run one call for a request, and answer it. ``request`` is None when its caller is gone already."""
        deadline = anyio.current_time() + call.timeout_us / 1e6 if call.timeout_us else None
        reply = HostReply(call.id)
        try:
            with scope:
                if deadline is not None:
                    scope.deadline = deadline
                try:
                    reply.payload = await self._run(call, request)
                except Exception as exc:
                    reply.error = failures.describe_exception(exc, redact=self._redact)
            if scope.cancelled_caught:
                if deadline is None or anyio.current_time() < deadline:
                    return  # Nobody waits for it.
                late = RequestTimeout(
                    f"the host tool {call.name!r} did not answer in time",
                    details={"phase": "host_call", "tool": call.name},
                )
                reply = HostReply(call.id, None, failures.to_info(late))
        finally:
            del self._scopes[call.id]
        self._caller.host_reply(reply)

    async def _run(self, call: HostCall, request: Any) -> Any:
        if request is None:
            raise RequestCancelled("the request's caller is gone")
        found = self._find(call.name, request)
        params = codec.decode(call.payload, what="params", limit=self._limit)
        if not isinstance(params, Mapping):
            raise InvalidParameter("params must be a mapping", details={"path": "params", "tool": call.name})
        positional, keywords = found.tool.bind(params, None)
        token = CHAIN.set((*request.chain, request))
        current = CURRENT.set(Correlation(f"{self._prefix}{request.id}", request.worker_id or "", request.session))
        try:
            with nullcontext() if request.trace is None else request.trace.current():
                if found.tool.kind.needs_loop:
                    result = await found.tool.function(*positional, **keywords)
                else:
                    result = await anyio.to_thread.run_sync(lambda: found.tool.function(*positional, **keywords))
        finally:
            CURRENT.reset(current)
            CHAIN.reset(token)
        return codec.encode_result(result, limit=self._limit)

    def _find(self, name: str, request: Any) -> HostTool:
        for registry in self._registries(request):
            if name in registry:
                return registry.get(name)
        raise ToolNotFound(f"the host has no tool {name!r}", details={"tool": name})

"""A session of a runtime elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Unpack

from snakepit_trio._bulkhead import block, operation
from snakepit_trio._call_options import CallKeywords, CallOptions, StreamKeywords, declares
from snakepit_trio.sessions.records import compare_and_set
from snakepit_trio.wire.frames import MSGPACK
from snakepit_trio.wire.generated.snakepit import v1

from .channel import Link
from .values import pack, unpack

if TYPE_CHECKING:
    from .client import Client
    from .streams import RemoteChunks

__all__ = ["RemoteSession"]

_ACCEPT = v1.Encoding(MSGPACK)


class RemoteSession:
    """Made by ``client.session()``; its methods are those of :class:`snakepit_trio.Session`.

    Attributes:
        id: Its id, by which it can be resumed.
        generation: Tells it from other sessions that have had its id, or will; empty where the host knows of none.
        ttl: Seconds that it lives without being used; None: for ever.
    """

    def __init__(self, client: Client, link: Link, state: v1.SessionState, limit: int) -> None:
        self.id: str = state.session_id
        self.generation: str = state.generation
        self.ttl: float | None = state.ttl
        self._client = client
        self._link = link
        self._limit = limit
        self._errors = link.errors

    def __repr__(self) -> str:
        return f"<RemoteSession {self.id!r}>"

    @declares(CallKeywords)
    @operation
    async def execute(self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]) -> Any:
        """Run a tool in the session's worker; the rest is as in :meth:`Client.execute`.

        A cancellation reaches into the worker.
        """
        return await self._client._execute(tool, params, CallOptions.of(options), self)

    @declares(StreamKeywords)
    @block("stream")
    def stream(
        self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[StreamKeywords]
    ) -> AbstractAsyncContextManager[RemoteChunks]:
        """Run a streaming tool in the session's worker; the rest is as in :meth:`Client.stream`."""
        return self._client._stream(tool, params, CallOptions.of(options, StreamKeywords), self)

    @operation
    async def put(self, key: str, value: Any, *, expect: int | None = None) -> int | None:
        """Store a value; returns its version, None when ``expect`` did not fit and nothing was stored.

        A cancellation leaves at once; the runtime may have done it by then.
        """
        payload = pack(value, what="value", limit=self._limit)
        request = v1.PutValueRequest(
            session_id=self.id, generation=self.generation, key=key, payload=payload, expect=expect
        )
        answer = await self._link.unary("PutValue", request, v1.PutValueResponse)
        return answer.version if answer.stored else None

    @operation
    async def get(self, key: str, default: Any = None) -> Any:
        """A value; ``default`` when there is none.

        A cancellation leaves everything as it is.
        """
        value, version = await self.get_versioned(key)
        return value if version else default

    @operation
    async def get_versioned(self, key: str) -> tuple[Any, int]:
        """A value and its version; ``(None, 0)`` when there is none.

        A cancellation leaves everything as it is.
        """
        request = v1.GetValueRequest(session_id=self.id, generation=self.generation, key=key, accept=_ACCEPT)
        answer = await self._link.unary("GetValue", request, v1.GetValueResponse, again=True)
        return unpack(answer.payload, what="value", limit=self._limit), answer.version

    async def update(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace a value by what a function makes of it, so that no other update is lost; returns the new value.

        A cancellation leaves at once; the runtime may have stored the new value by then.
        """
        return await compare_and_set(self.get_versioned, self.put, key, function, default)

    @operation
    async def delete(self, key: str) -> bool:
        """Delete a value. Returns whether there was one.

        A cancellation leaves at once; the runtime may have done it by then.
        """
        request = v1.DeleteValueRequest(session_id=self.id, generation=self.generation, key=key)
        return (await self._link.unary("DeleteValue", request, v1.DeleteValueResponse)).deleted

    @operation
    async def keys(self) -> tuple[str, ...]:
        """The keys of its values, sorted.

        A cancellation leaves everything as it is.
        """
        request = v1.ListValuesRequest(session_id=self.id, generation=self.generation)
        return tuple((await self._link.unary("ListValues", request, v1.ListValuesResponse, again=True)).keys)

    @operation
    async def heartbeat(self) -> float | None:
        """Use it without doing anything; returns the seconds that it lives from now on, None for ever.

        A cancellation leaves at once; the session may count as used by then.
        """
        request = v1.HeartbeatRequest(session_id=self.id, generation=self.generation)
        return (await self._link.unary("Heartbeat", request, v1.HeartbeatResponse, again=True)).expires_in

    @operation
    async def close(self) -> None:
        """End it, for everybody who uses it. Idempotent; another session of its id is not ended.

        A cancellation leaves at once; the runtime may have done it by then.
        """
        request = v1.CloseSessionRequest(session_id=self.id, generation=self.generation)
        await self._link.unary("CloseSession", request, v1.CloseSessionResponse)

"""A session of a remote runtime."""

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
    """A session of a remote runtime, with the methods of :class:`snakepit_trio.Session`. Created by ``client.session()``.

    Attributes:
        id: The session's id, by which it can be resumed.
        generation: Distinguishes it from other sessions with the same id; empty if the host does not support
            generations.
        ttl: Seconds without use after which it expires; None: never.
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
        """Run a tool in the session's worker; otherwise as :meth:`Client.execute`.

        A cancellation also cancels the call in the worker.
        """
        return await self._client._execute(tool, params, CallOptions.of(options), self)

    @declares(StreamKeywords)
    @block("stream")
    def stream(
        self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[StreamKeywords]
    ) -> AbstractAsyncContextManager[RemoteChunks]:
        """Run a streaming tool in the session's worker; otherwise as :meth:`Client.stream`."""
        return self._client._stream(tool, params, CallOptions.of(options, StreamKeywords), self)

    @operation
    async def put(self, key: str, value: Any, *, expect: int | None = None) -> int | None:
        """Store a value, and return its version; None if ``expect`` did not match and nothing was stored.

        A cancellation leaves at once; the runtime may already have stored the value.
        """
        payload = pack(value, what="value", limit=self._limit)
        request = v1.PutValueRequest(
            session_id=self.id, generation=self.generation, key=key, payload=payload, expect=expect
        )
        answer = await self._link.unary("PutValue", request, v1.PutValueResponse)
        return answer.version if answer.stored else None

    @operation
    async def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or ``default`` if there is none.

        A cancellation changes nothing.
        """
        value, version = await self.get_versioned(key)
        return value if version else default

    @operation
    async def get_versioned(self, key: str) -> tuple[Any, int]:
        """Return a value and its version, or ``(None, 0)`` if there is no value.

        A cancellation changes nothing.
        """
        request = v1.GetValueRequest(session_id=self.id, generation=self.generation, key=key, accept=_ACCEPT)
        answer = await self._link.unary("GetValue", request, v1.GetValueResponse, again=True)
        return unpack(answer.payload, what="value", limit=self._limit), answer.version

    async def update(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace a value by a function of it, without losing another update, and return the new value.

        A cancellation leaves at once; the runtime may already have stored the new value.
        """
        return await compare_and_set(self.get_versioned, self.put, key, function, default)

    @operation
    async def delete(self, key: str) -> bool:
        """Delete a value, and return whether there was one.

        A cancellation leaves at once; the runtime may already have deleted the value.
        """
        request = v1.DeleteValueRequest(session_id=self.id, generation=self.generation, key=key)
        return (await self._link.unary("DeleteValue", request, v1.DeleteValueResponse)).deleted

    @operation
    async def keys(self) -> tuple[str, ...]:
        """Return the keys of the session's values, sorted.

        A cancellation changes nothing.
        """
        request = v1.ListValuesRequest(session_id=self.id, generation=self.generation)
        return tuple((await self._link.unary("ListValues", request, v1.ListValuesResponse, again=True)).keys)

    @operation
    async def heartbeat(self) -> float | None:
        """Count as a use of the session, and return the seconds until it expires; None: never.

        A cancellation leaves at once; the session may already count as used.
        """
        request = v1.HeartbeatRequest(session_id=self.id, generation=self.generation)
        return (await self._link.unary("Heartbeat", request, v1.HeartbeatResponse, again=True)).expires_in

    @operation
    async def close(self) -> None:
        """End the session for everybody who uses it. Idempotent; another session of the same id is not ended.

        A cancellation leaves at once; the runtime may already have ended the session.
        """
        request = v1.CloseSessionRequest(session_id=self.id, generation=self.generation)
        await self._link.unary("CloseSession", request, v1.CloseSessionResponse)

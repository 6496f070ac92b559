"""The client of a control socket, for the commands."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from snakepit_trio._bulkhead import InternalErrors, operation
from snakepit_trio.errors import SnakepitError

from .protocol import ANSWER_LIMIT, VERSION

__all__ = ["ControlClient", "ControlError", "connect"]


class ControlError(SnakepitError):
    """A runtime refused a request, or could not be reached; ``code`` gives the reason."""

    default_code = "control"


class ControlClient:
    """A connection to a running runtime; see :func:`connect`. For one task at a time."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._errors = InternalErrors()
        self._lines = BufferedByteReceiveStream(stream)
        self._ids = itertools.count(1)

    @operation
    async def ask(self, op: str, *, timeout: float = 10.0, **params: Any) -> dict[str, Any]:
        """Request an operation, and wait ``timeout`` seconds for its answer.

        After a cancellation or a timeout the connection is unusable; the requested operation continues.

        Raises:
            ControlError: The runtime refused the request (the code is the runtime's), or did not answer
                (``unreachable``).
        """
        id = next(self._ids)
        try:
            with anyio.fail_after(timeout):
                await self._send(op, id, params)
                return _result(await self._line(), id)
        except TimeoutError:
            raise _unreachable(f"no answer within {timeout:g} s") from None

    async def events(self, *prefixes: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the runtime's events, each with ``dropped`` beside ``event``, until its end. The connection can't be used
        for anything else afterwards.

        Raises:
            ControlError: The runtime refused the request or failed later (the code is the runtime's), or did not answer
                (``unreachable``).
        """
        id = await self._subscribe(prefixes)
        while (line := await self._event(id)) is not None:
            yield line

    @operation
    async def _subscribe(self, prefixes: tuple[str, ...]) -> int:
        id = next(self._ids)
        await self._send("events", id, {"prefixes": list(prefixes)})
        _result(await self._line(), id)
        return id

    @operation
    async def _event(self, id: int) -> dict[str, Any] | None:
        """Return the next event, or None at the end."""
        try:
            line = await self._line()
        except ControlError:
            return None
        if "event" not in line:
            _result(line, id)
            raise _unreachable("its answer is none to our question")
        return line

    async def _send(self, op: str, id: int, params: dict[str, Any]) -> None:
        request = {"v": VERSION, "id": id, "op": op, "params": params}
        try:
            await self._stream.send(msgspec.json.encode(request) + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise _unreachable("it has closed the connection") from None

    async def _line(self) -> dict[str, Any]:
        try:
            line = await self._lines.receive_until(b"\n", ANSWER_LIMIT)
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            raise _unreachable("it has closed the connection") from None
        except anyio.DelimiterNotFound:
            raise _unreachable("its answer is too long") from None
        try:
            found = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError as exc:
            raise _unreachable(f"its answer can't be read: {exc}") from None
        return found


def _result(answer: dict[str, Any], id: int) -> dict[str, Any]:
    if answer.get("ok") is True and answer.get("id") == id:
        result: dict[str, Any] = answer["result"]
        return result
    error = answer.get("error")
    if not isinstance(error, dict):
        raise _unreachable("its answer is none to our question")
    raise ControlError(str(error.get("message", "")), code=str(error.get("code", "control")))


def _unreachable(why: str) -> ControlError:
    return ControlError(f"the runtime can't be reached: {why}", code="unreachable", retryable=True)


def connect(path: str, *, timeout: float = 2.0) -> AbstractAsyncContextManager[ControlClient]:
    """Connect to a runtime's control socket.

    Raises:
        ControlError: No runtime listens there.
    """
    return InternalErrors().block(_connect(path, timeout), "connection")


@asynccontextmanager
async def _connect(path: str, timeout: float) -> AsyncIterator[ControlClient]:
    try:
        with anyio.fail_after(timeout):
            stream = await anyio.connect_unix(path)
    except (OSError, TimeoutError) as exc:
        raise _unreachable(str(exc) or f"no connection within {timeout:g} s") from None
    async with stream:
        yield ControlClient(stream)

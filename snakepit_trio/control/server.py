"""The control socket of a running runtime: a Unix socket that only this user can open; see :mod:`.protocol`.

No client can block the runtime. Each connection is a task in the runtime's nursery. The length of a line, the time for
it to arrive and the time for an answer to be read are bounded, and so is the number of connections: at the limit, the
connection that has been silent for the longest time is closed. A requested action runs to its end, even if the client
has gone.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.abc

from snakepit_trio import _forks, _platform
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import protected
from snakepit_trio._unix_door import UnixDoor
from snakepit_trio.observe.events import Event, EventBus

from . import protocol
from .operations import EVENTS, EventsOf, Operations, read_params
from .protocol import REQUEST_LIMIT, Refusal

__all__ = ["ControlServer"]

_log = logging.getLogger(__name__)

#: The largest number of connections.
_MOST = 16
#: Seconds. The longest silence of a connection, the longest time for the rest of a line, and for an answer to be read.
_SILENCE, _LINE, _TAKEN = 300.0, 10.0, 10.0
#: Seconds. The pause after the system had no descriptor for a connection.
_NO_DESCRIPTORS = 0.25
#: The number of events that wait for a client before the oldest is dropped.
_EVENTS = 1000
#: The largest number of events in one write.
_TOGETHER = 100
_CHUNK = 64 * 1024


class _Connection:
    """One client."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.scope = anyio.CancelScope()
        #: The time since which it has been silent, on the event loop's clock; inf while its request is processed.
        self.idle_since = anyio.current_time()
        self._read = bytearray()

    async def line(self) -> bytes | None:
        """Return the next request; None at the end of the connection, or after too long a silence.

        Raises:
            Refusal: The line is too long, or incomplete for too long.
        """
        limit = _LINE if self._read else _SILENCE
        with anyio.move_on_after(limit) as waiting:
            while True:
                end = self._read.find(b"\n")
                if end >= 0:
                    found = bytes(self._read[:end])
                    del self._read[: end + 1]
                    return found
                if len(self._read) > REQUEST_LIMIT:
                    raise Refusal("too_large", f"a request has at most {REQUEST_LIMIT} bytes")
                data = await self._receive()
                if not data:
                    return None
                if not self._read:
                    waiting.deadline = anyio.current_time() + _LINE
                self._read += data
        if self._read:
            raise Refusal("bad_request", f"no whole line within {_LINE:g} s")
        return None

    async def _receive(self) -> bytes:
        while True:
            await anyio.wait_readable(self.sock)
            try:
                return self.sock.recv(_CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                return b""

    async def send(self, data: bytes) -> bool:
        """Send an answer, and return whether it was read in time."""
        rest = memoryview(data)
        with anyio.move_on_after(_TAKEN):
            while rest:
                try:
                    rest = rest[self.sock.send(rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(self.sock)
                except OSError:
                    break
        return not rest

    async def spoken(self) -> None:
        """Wait until the client sends anything, or disconnects."""
        if not self._read:
            await anyio.wait_readable(self.sock)


class ControlServer:
    """Serves one runtime's control socket.

    Args:
        operations: The offered operations.
        events: The runtime's events.
        path: The path of the socket, in a directory that only this user can enter.
        errors: Reports unexpected exceptions; one ends a client's connection.
        restore: Creates the directory again if a cleaner has removed it.
    """

    def __init__(
        self, operations: Operations, events: EventBus, path: Path, errors: InternalErrors, restore: Callable[[], None]
    ) -> None:
        self._restore = restore
        self._operations = operations
        self._events = events
        self._path = path
        self._errors = errors
        self._connections: dict[_Connection, None] = {}

    def __repr__(self) -> str:
        return f"<ControlServer {self._path} connections={len(self._connections)}>"

    @protected
    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Serve until cancelled, and then remove the socket. If it can't be created, log a warning with the reason and
        serve nothing.
        """
        try:
            self._path.unlink(missing_ok=True)
            door = UnixDoor(self._path, backlog=_MOST, restore=self._restore)
        except OSError as exc:
            _log.warning("no control socket at %s: %s", self._path, exc)
            task_status.started()
            return
        try:
            async with anyio.create_task_group() as nursery:
                task_status.started()
                while True:
                    with self._errors.bulkhead("connection") as turn:
                        await self._let_in(door, nursery)
                    if turn.failed:
                        await anyio.sleep(_NO_DESCRIPTORS)
        finally:
            door.close()

    async def _let_in(self, door: UnixDoor, nursery: anyio.abc.TaskGroup) -> None:
        """Wait for a client, and accept it."""
        await door.wait()
        try:
            sock, _ = door.sock.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as exc:
            _log.warning("the control socket can't take a connection: %s", exc)
            await anyio.sleep(_NO_DESCRIPTORS)
            return
        try:
            self._admit(sock, nursery)
        except BaseException:
            sock.close()
            raise

    def _admit(self, sock: socket.socket, nursery: anyio.abc.TaskGroup) -> None:
        sock.setblocking(False)
        _forks.keep(sock.fileno())
        if not _is_ours(sock):
            _log.warning("the control socket has turned another user away")
            sock.close()
            return
        if len(self._connections) >= _MOST:
            longest = min(self._connections, key=lambda connection: connection.idle_since)
            if longest.idle_since == math.inf:
                with contextlib.suppress(OSError):
                    sock.send(protocol.failure(None, "busy", f"there are {_MOST} connections already"))
                sock.close()
                return
            # Removed from the table at once, so that the next client does not choose it again.
            del self._connections[longest]
            longest.scope.cancel()
        connection = _Connection(sock)
        self._errors.start(
            nursery, self._converse, connection, ended="connection", on_error=lambda exc: self._dismiss(connection)
        )
        self._connections[connection] = None

    def _dismiss(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        connection.sock.close()

    @protected
    async def _converse(self, connection: _Connection) -> None:
        try:
            with connection.scope:
                while await self._answer(connection):
                    connection.idle_since = anyio.current_time()
        finally:
            self._dismiss(connection)

    async def _answer(self, connection: _Connection) -> bool:
        """Answer one request, and return whether another may follow."""
        id: int | str | None = None
        try:
            line = await connection.line()
        except Refusal as exc:
            # The start of the next request is unknown.
            await connection.send(protocol.failure(None, exc.code, exc.message))
            return False
        if line is None:
            return False
        connection.idle_since = math.inf
        try:
            request = protocol.parse(line)
            id = request.id
            if request.op == EVENTS:
                await self._stream(connection, id, read_params(EventsOf, request.params))
                return False
            answer = protocol.success(id, await self._operations.run(request))
        except Refusal as exc:
            answer = protocol.failure(id if exc.id is None else exc.id, exc.code, exc.message)
        except Exception as exc:
            self._errors.report(exc, "operation")
            answer = protocol.failure(id, "internal", "the operation has failed; the runtime's log says why")
        return await connection.send(answer)

    async def _stream(self, connection: _Connection, id: int | str | None, wanted: EventsOf) -> None:
        async with anyio.create_task_group() as nursery:

            @protected
            async def watch() -> None:
                await connection.spoken()
                nursery.cancel_scope.cancel()

            async with self._events.subscribe(*wanted.prefixes, capacity=_EVENTS) as events:
                if not await connection.send(protocol.success(id, {})):
                    return
                nursery.start_soon(watch)
                async for event in events:
                    lines = []
                    following: Event | None = event
                    while following is not None:
                        told = self._operations.event(following)
                        lines.append(protocol.event_line(id, told, events.dropped))
                        following = events.receive_nowait() if len(lines) < _TOGETHER else None
                    if not await connection.send(b"".join(lines)):
                        break
                nursery.cancel_scope.cancel()


def _is_ours(sock: socket.socket) -> bool:
    """Return whether the peer is a process of this user, by the system's information.

    Without that, return whether no other user can reach the socket, by the mode of its directory.
    """
    try:
        peer = _platform.peer_of(sock)
        if peer is not None:
            return peer.user == os.geteuid()
        place = os.stat(os.path.dirname(os.path.abspath(sock.getsockname())))
    except OSError:
        return False
    return place.st_uid == os.geteuid() and not stat.S_IMODE(place.st_mode) & 0o077

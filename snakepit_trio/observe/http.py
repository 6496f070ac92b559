"""An HTTP endpoint for scrapers and probes: ``/metrics``, ``/live`` and ``/ready``. Needs the extra ``prometheus``.

Each connection serves one request. The number of connections and the time of each are bounded, so a slow, silent or
broken client affects only itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.abc
import h11
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from snakepit_trio import _forks
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import protected
from snakepit_trio._unix_door import UnixDoor
from snakepit_trio.errors import ConfigError

if TYPE_CHECKING:
    from snakepit_trio.config import MetricsConfig

    from .prometheus import RuntimeCollector

__all__ = ["Metrics"]

_log = logging.getLogger(__name__)

#: The largest size of request line and headers, in bytes.
_LONGEST_HEAD = 8 * 1024
#: Seconds. The pause after a failure to accept a client.
_PAUSE = 0.5
_BACKLOG = 128
#: The exceptions when no client can be accepted, from the system and from anyio.
_BROKEN = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)
#: The exceptions when the client has gone, or does not speak HTTP.
_GONE = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, h11.ProtocolError)
_TCP = re.compile(r"tcp:\[?(.+?)\]?:(\d+)")

#: Returns, by pool, the number of ready workers and the wanted number.
Readiness = Callable[[], Mapping[str, tuple[int, int]]]


class _Listening(Protocol):
    """The used part of anyio's listeners."""

    async def serve(self, handler: Callable[[anyio.abc.SocketStream], Any], /) -> object: ...

    async def __aenter__(self) -> _Listening: ...

    async def __aexit__(self, *exc: Any) -> None: ...


class _UnixListener:
    """A Unix socket listener that binds its socket again when a cleaner has removed the file.

    Raises:
        OSError: The path can't be bound.
    """

    def __init__(self, path: str) -> None:
        with contextlib.suppress(OSError):
            # A socket left by a process that has ended.
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.unlink(path)
        self._door = UnixDoor(path, backlog=_BACKLOG, restore=lambda: None)

    async def __aenter__(self) -> _UnixListener:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._door.close()

    @protected
    async def serve(self, handler: Callable[[anyio.abc.SocketStream], Any], /) -> None:
        """Run the handler for each client, until accepting fails."""
        async with anyio.create_task_group() as nursery:
            while True:
                await self._door.wait()
                try:
                    sock, _ = self._door.sock.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue
                try:
                    stream = await anyio.abc.UNIXSocketStream.from_socket(sock)
                except (OSError, ValueError):
                    sock.close()  # The client has already gone.
                    continue
                nursery.start_soon(handler, stream)


class Metrics:
    """A runtime's metrics; ``runtime.metrics``.

    Args:
        config: The configuration of the endpoint.
        collector: Collects the metrics.
        readiness: Returns whether the pools serve.
        errors: Reports unexpected exceptions; one ends a client's connection.

    Attributes:
        collector: The collector, for an application's own registry.
        address: The address of the endpoint; None: no endpoint.
    """

    def __init__(
        self, config: MetricsConfig, collector: RuntimeCollector, readiness: Readiness, errors: InternalErrors
    ) -> None:
        self.collector = collector
        self.address: str | None = None
        self._config = config
        self._readiness = readiness
        self._errors = errors
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)
        self._clients = 0
        # The clients whose request is incomplete, oldest first.
        self._waiting: dict[anyio.abc.SocketStream, anyio.CancelScope] = {}

    def __repr__(self) -> str:
        return f"<Metrics at {self.address or 'no address'} clients={self._clients}>"

    @protected
    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Serve until cancelled.

        Raises:
            ConfigError: The address can't be bound.
        """
        address = self._config.address
        if address is None:
            task_status.started()
            return
        listener: _Listening | None
        try:
            listener = await self._listen(address)
        except OSError as exc:
            raise ConfigError(
                f"metrics.address: expected an address to listen at, got {address!r}: {exc}",
                details={"source": "code", "key": "metrics.address", "expected": "an address to listen at"},
            ) from exc
        try:
            task_status.started()
        except BaseException:
            await listener.__aexit__(None, None, None)
            raise
        while True:
            try:
                # A new listener gets the port of the first one.
                async with listener or await self._listen(self.address or address) as listening:
                    listener = None
                    await listening.serve(self._client)
            except* _BROKEN as group:
                # Probably out of descriptors, which other code needs more.
                _log.warning("metrics can't be served for a moment: %s", _first_of(group))
            except* Exception as group:
                # Only the current clients are lost.
                self._errors.report(group, "connection")
            await anyio.sleep(_PAUSE)

    async def _listen(self, address: str) -> _Listening:
        found = _TCP.fullmatch(address)
        if found is None:
            unix = _UnixListener(address.removeprefix("unix:"))
            self.address = address
            return unix
        tcp = await anyio.create_tcp_listener(local_host=found[1], local_port=int(found[2]))
        try:
            _keep(tcp)
            host, port = tuple(tcp.extra(anyio.abc.SocketAttribute.local_address))[:2]
        except BaseException:
            await tcp.aclose()
            raise
        self.address = f"tcp:[{host}]:{port}" if ":" in str(host) else f"tcp:{host}:{port}"
        return tcp

    @protected
    async def _client(self, stream: anyio.abc.SocketStream) -> None:
        self._clients += 1
        try:
            _keep(stream)
            with self._errors.bulkhead("connection"), anyio.move_on_after(self._config.client_timeout) as scope:
                if self._clients > self._config.max_connections and not self._make_room():
                    return
                self._waiting[stream] = scope
                with contextlib.suppress(*_GONE):
                    await self._answer(stream)
        finally:
            self._clients -= 1
            self._waiting.pop(stream, None)
            await anyio.aclose_forcefully(stream)

    def _make_room(self) -> bool:
        """Disconnect the client whose request has been incomplete for the longest time."""
        for stream in self._waiting:
            self._waiting.pop(stream).cancel()
            return True
        return False

    async def _answer(self, stream: anyio.abc.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_LONGEST_HEAD)
        try:
            request = await self._request(connection, stream)
        except h11.RemoteProtocolError as exc:
            request, status, kind, body = None, exc.error_status_hint, "text/plain; charset=utf-8", b"bad request\n"
        else:
            if request is None:
                return
            self._waiting.pop(stream, None)
            status, kind, body = self._page(request)
        head = h11.Response(
            status_code=status,
            headers=[
                ("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close"),
                ("Cache-Control", "no-store"), *([("Allow", "GET, HEAD")] if status == 405 else []),
            ],
        )  # fmt: skip
        if request is not None and request.method == b"HEAD":
            body = b""
        await stream.send((connection.send(head) or b"") + body)
        await stream.send_eof()

    @staticmethod
    async def _request(connection: h11.Connection, stream: anyio.abc.SocketStream) -> h11.Request | None:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                return event
            if event is not h11.NEED_DATA:
                return None
            try:
                connection.receive_data(await stream.receive(_LONGEST_HEAD))
            except anyio.EndOfStream:
                return None

    def _page(self, request: h11.Request) -> tuple[int, str, bytes]:
        text = "text/plain; charset=utf-8"
        if request.method not in (b"GET", b"HEAD"):
            return 405, text, b"GET or HEAD\n"
        path = request.target.partition(b"?")[0]
        if path == b"/metrics":
            accept = next((value.decode("latin-1") for name, value in request.headers if name == b"accept"), "")
            encode, kind = choose_encoder(accept)
            return 200, kind, encode(self._registry)
        if path == b"/live":
            return 200, text, b"live\n"
        if path == b"/ready":
            pools = self._readiness()
            ready = bool(pools) and all(ready or not size for ready, size in pools.values())
            shown = {name: {"ready": ready, "size": size} for name, (ready, size) in pools.items()}
            body = json.dumps({"ready": ready, "pools": shown}) + "\n"
            return 200 if ready else 503, "application/json", body.encode()
        return 404, text, b"/metrics, /live or /ready\n"


def _first_of(group: BaseExceptionGroup[Any]) -> str:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return str(leaf.__cause__ or leaf) or type(leaf).__name__


def _keep(part: anyio.TypedAttributeProvider) -> None:
    _forks.keep(part.extra(anyio.abc.SocketAttribute.raw_socket).fileno())

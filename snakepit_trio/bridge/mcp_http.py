"""MCP over streamable HTTP: authentication, and the HTTP server.

A web page can send requests to loopback addresses under its own host name, bound to 127.0.0.1 (DNS rebinding). So three
things of a request are checked first: the bearer token, compared in constant time; the ``Host``; and the ``Origin``, if
there is one.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings

from snakepit_trio import _forks, _private_names
from snakepit_trio.errors import ConfigError
from snakepit_trio.wire.addresses import is_loopback

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

__all__ = ["PATH", "listen", "serve_http"]

_private_names.require("uvicorn")

PATH = "/mcp"
#: Seconds. The time for open connections to end after the server was stopped.
_GRACE = 2
#: Seconds. The time for the whole shutdown.
_END = 5
_App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


def listen(address: str) -> socket.socket:
    """Listen on ``HOST:PORT`` of this machine; port 0 is any free port.

    Raises:
        ConfigError: The address is not a loopback address, or is in use.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not is_loopback(host) or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(
            f"http: expected HOST:PORT with a loopback address, got {address!r}; for other machines put a proxy with TLS"
            " before it",
            details={"source": "code", "key": "http", "expected": "HOST:PORT with a loopback address"},
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, int(port)), family=family)
    except OSError as exc:
        raise ConfigError(
            f"http: can't listen on {address}: {exc.strerror or exc}",
            details={"source": "code", "key": "http", "expected": "an address that is free"},
        ) from exc
    _forks.keep(sock.fileno())
    return sock


async def serve_http(server: Server[Any], sock: socket.socket, *, token: str, names: Sequence[str] = ()) -> None:
    """Serve until cancelled; open connections then have a moment to end. Runs on asyncio, as uvicorn does.

    Args:
        server: The MCP server, served under ``/mcp``.
        sock: The listening socket; closed at the end.
        token: The token that clients send as ``authorization: Bearer TOKEN``.
        names: Further accepted values of ``Host``, such as a proxy's; ``https://NAME`` is then an accepted origin.
    """
    port = sock.getsockname()[1]
    hosts = [f"{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")]
    security = TransportSecuritySettings(
        allowed_hosts=[*hosts, *names],
        allowed_origins=[*(f"http://{host}" for host in hosts), *(f"https://{name}" for name in names)],
    )
    app = server.streamable_http_app(streamable_http_path=PATH, transport_security=security)
    config = uvicorn.Config(
        _Guarded(app, token),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        limit_concurrency=1000,
        lifespan="on",
    )
    web = _WebServer(config)
    # uvicorn would report a cancellation as a fault, so it is told to stop, and ends by itself.
    life = anyio.CancelScope(shield=True)

    async def serve() -> None:
        with life:
            await web.serve(sockets=[sock])
        nursery.cancel_scope.cancel()

    async with anyio.create_task_group() as nursery:
        nursery.start_soon(serve)
        try:
            await anyio.sleep_forever()
        finally:
            web.should_exit = True
            life.deadline = anyio.current_time() + _END


class _WebServer(uvicorn.Server):
    """A uvicorn server that does not handle signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Guarded:
    """Checks the token, the host and the origin of each request."""

    def __init__(self, app: _App, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = b"".join(value for name, value in scope["headers"] if name == b"authorization")
            if not hmac.compare_digest(given, self._expected):
                await self._refuse(send)
                return
        await self._app(scope, receive, send)

    @staticmethod
    async def _refuse(send: Any) -> None:
        headers = [(b"www-authenticate", b"Bearer"), (b"content-type", b"text/plain"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

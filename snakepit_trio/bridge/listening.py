"""A bridge's listening socket, its peers, and its TLS."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import anyio

from snakepit_trio import _forks, _platform
from snakepit_trio._platform import SOCKET_PATH_MAX
from snakepit_trio._unix_door import UnixDoor
from snakepit_trio.errors import ConfigError
from snakepit_trio.wire.addresses import parse_address
from snakepit_trio.wire.http2.rules import ErrorCodes

if TYPE_CHECKING:
    from snakepit_trio.config import BridgeConfig

__all__ = ["Door", "listen", "peer_of", "tls_context", "turn_away"]

_BACKLOG = 1024
#: An empty SETTINGS frame, a server's first frame; and the part of a GOAWAY frame after its length.
_SETTINGS, _GOAWAY = b"\0\0\0\4\0\0\0\0\0", b"\7\0\0\0\0\0"


def _refuse(key: str, message: str, expected: str) -> NoReturn:
    raise ConfigError(
        f"bridge.{key}: {message}", details={"source": "code", "key": f"bridge.{key}", "expected": expected}
    )


class _TcpDoor:
    """A listening TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def wait(self) -> None:
        """Wait until a client may be there. A cancellation changes nothing."""
        await anyio.wait_readable(self.sock)


Door = UnixDoor | _TcpDoor


def peer_of(sock: socket.socket) -> Hashable:
    """Return the identity of a peer: its address for TCP, its process for a Unix socket; None if unknown."""
    try:
        if sock.family != socket.AF_UNIX:
            return str(sock.getpeername()[0])
        peer = _platform.peer_of(sock)
    except OSError:
        return None
    # The user alone would make all programs of that user one peer.
    return None if peer is None or peer.pid is None else peer


def turn_away(sock: socket.socket, reason: str, *, secured: bool) -> None:
    """Close a connection that was just accepted. Without TLS the client receives the reason in a GOAWAY (RFC 9113, 6.8)."""
    with sock:
        if not secured:
            body = bytes(4) + ErrorCodes.ENHANCE_YOUR_CALM.to_bytes(4, "big") + reason.encode()
            with contextlib.suppress(OSError):
                sock.send(_SETTINGS + len(body).to_bytes(3, "big") + _GOAWAY + body)
                sock.shutdown(socket.SHUT_WR)
                # Closing a socket with unread data may discard sent data.
                sock.recv(64 * 1024)


@contextmanager
def listen(config: BridgeConfig, default: str, restore: Callable[[], None]) -> Iterator[tuple[Door, str]]:
    """Listen, and yield the socket and its actual address."""
    place = parse_address(config.address or f"unix:{default}")
    if isinstance(place, str):
        yield from _listen_unix(place, restore)
    else:
        with _bind_tcp(place, config) as sock:
            _forks.keep(sock.fileno())
            host, port = sock.getsockname()[:2]
            yield _TcpDoor(sock), f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def _listen_unix(path: str, restore: Callable[[], None]) -> Iterator[tuple[Door, str]]:
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        _refuse("address", f"the path of a Unix socket may have {SOCKET_PATH_MAX} bytes: {path}", "a shorter path")
    _clear(path)
    try:
        door = UnixDoor(path, backlog=_BACKLOG, restore=restore)
    except OSError as exc:
        _refuse("address", f"can't listen on unix:{path}: {exc.strerror}", "a path that can be listened on")
    with contextlib.closing(door):
        yield door, f"unix:{path}"


def _clear(path: str) -> None:
    """Remove the socket that a dead process has left; refuse to take a living one's."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        _refuse("address", f"{path} is there, and is no socket", "a path that is free")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except OSError:
            pass
        _refuse("address", f"another process listens on unix:{path}", "a path that is free")


def _bind_tcp(place: tuple[str, int], config: BridgeConfig) -> socket.socket:
    host, port = place
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as exc:
        _refuse("address", f"{host!r} has no address: {exc}", "a host's name or address")
    if config.tls is None and not config.allow_plaintext and not ipaddress.ip_address(address[0]).is_loopback:
        _refuse(
            "address",
            f"tcp:{host}:{port} can be reached from other machines, and there is no TLS; give tls, or say "
            "allow_plaintext=True when something else protects it",
            "a loopback address, or tls",
        )
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        _refuse("address", f"can't listen on tcp:{host}:{port}: {exc.strerror}", "an address that can be listened on")
    return sock


def tls_context(config: BridgeConfig) -> ssl.SSLContext | None:
    """Return the server's TLS context, 1.2 or later; with an authority, clients must present a certificate of it.

    Raises:
        ConfigError: A file can't be used; the error names the file.
    """
    tls = config.tls
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["h2"])
    for key, path in (("cert", tls.cert), ("key", tls.key), ("ca", tls.ca)):
        if path is not None and not os.access(path, os.R_OK):
            _refuse(f"tls.{key}", f"{path} can't be read", "a readable PEM file")
    try:
        context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ValueError) as exc:
        _refuse("tls.cert", f"{tls.cert} and {tls.key} are no certificate and its key: {exc}", "PEM files that fit")
    if tls.ca is not None:
        try:
            context.load_verify_locations(tls.ca)
        except (OSError, ValueError) as exc:
            _refuse("tls.ca", f"{tls.ca} holds no certificates: {exc}", "certificates in PEM")
        context.verify_mode = ssl.CERT_REQUIRED
    return context

"""A client of a bridge by hand, for what no honest one does."""

from __future__ import annotations

import socket
import ssl

import h2.config
import h2.connection
import h2.events

__all__ = ["EXECUTE", "PREFACE", "SETTINGS", "Raw", "frame"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
EXECUTE = "/snakepit.v1.BridgeService/ExecuteTool"


def frame(kind: int, body: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


class Raw:
    """A client that sends what it is told, over h2 where that is of use.

    Args:
        address: As of ``runtime.bridge.address``.
        tls: How the connection is secured.
    """

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        kind, _, place = address.partition(":")
        if kind == "unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(10)
            self.socket.connect(place)
        else:
            host, _, port = place.rpartition(":")
            self.socket = socket.create_connection((host, int(port)), timeout=10)
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname=host)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def headers(self, path: str = EXECUTE, *, token: str = "right", **extra: str) -> int:
        stream = self.h2.get_next_available_stream_id()
        names = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers",
                 "content-type": "application/grpc", "authorization": f"Bearer {token}", **extra}  # fmt: skip
        self.h2.send_headers(stream, list(names.items()))
        return stream

    def request(self, message: bytes, *, prefix: bytes | None = None, **options: str) -> int:
        stream = self.headers(**options)
        head = b"\0" + len(message).to_bytes(4, "big") if prefix is None else prefix
        self.h2.send_data(stream, head + message, end_stream=True)
        self.flush()
        return stream

    def read(self) -> bool:
        """Take what comes; False at the end."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            return False
        if data:
            self.events += self.h2.receive_data(data)
            self.flush_quietly()
        return bool(data)

    def flush_quietly(self) -> None:
        try:
            self.flush()
        except ConnectionError:
            pass

    def trailers(self, stream: int) -> dict[str, str]:
        """The status of a request."""
        while True:
            for event in self.events:
                if isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived):
                    found = dict(event.headers)
                    if event.stream_id == stream and "grpc-status" in found:
                        return found
            assert self.read(), "the connection was closed"

    def ended(self) -> int | None:
        """Wait until the server closes the connection; the code of its GOAWAY, if it sent one."""
        while self.read():
            pass
        return next((e.error_code for e in self.events if isinstance(e, h2.events.ConnectionTerminated)), None)

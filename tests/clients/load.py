"""Many connections to a bridge, each with requests one after another; the HTTP/2 is the least there is, written by hand.

``python load.py SOCKET TOKEN CONNECTIONS REQUESTS MESSAGE_IN_HEX``; prints how many answers had ``grpc-status: 0``.
"""

from __future__ import annotations

import selectors
import socket
import sys

_DATA, _HEADERS = 0, 1
_END_STREAM = 1


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


def literal(name: str, value: str) -> bytes:
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


class Client:
    def __init__(self, path: str, headers: bytes, body: bytes, requests: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        self.headers, self.body, self.left = headers, body, requests
        self.stream = -1
        self.unread = b""
        self.well = 0

    def ask(self) -> bool:
        """Send the next request; False when there is none."""
        if not self.left:
            return False
        self.left -= 1
        self.stream += 2
        self.socket.sendall(
            frame(_HEADERS, 4, self.stream, self.headers) + frame(_DATA, _END_STREAM, self.stream, self.body)
        )
        return True

    def read(self) -> bool:
        """Take what has come; whether there is more to wait for."""
        data = self.socket.recv(65536)
        if not data:
            return False
        data = self.unread + data
        while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3], "big")):
            kind, flags, body = data[3], data[4], data[9 : 9 + size]
            data = data[9 + size :]
            if kind == _HEADERS and flags & _END_STREAM:
                self.well += body == literal("grpc-status", "0")
                if not self.ask():
                    return False
        self.unread = data
        return True


def main(path: str, token: str, connections: int, requests: int, message: bytes) -> None:
    names = {":method": "POST", ":scheme": "http", ":path": "/snakepit.v1.BridgeService/ExecuteTool", ":authority": "x",
             "te": "trailers", "content-type": "application/grpc", "authorization": f"Bearer {token}"}  # fmt: skip
    headers = b"".join(literal(*item) for item in names.items())
    body = b"\0" + len(message).to_bytes(4, "big") + message
    clients = [Client(path, headers, body, requests) for _ in range(connections)]
    with selectors.DefaultSelector() as waiting:
        for client in clients:
            client.ask()
            waiting.register(client.socket, selectors.EVENT_READ, client)
        while waiting.get_map():
            for key, _ in waiting.select():
                if not key.data.read():
                    waiting.unregister(key.fileobj)
    print(sum(client.well for client in clients))
    for client in clients:
        client.socket.close()


if __name__ == "__main__":
    _, where, secret, many, each, body_hex = sys.argv
    main(where, secret, int(many), int(each), bytes.fromhex(body_hex))

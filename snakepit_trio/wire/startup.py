"""The messages between a host and a starting worker over inherited pipes. The worker imports this and little else.

They are JSON by the standard library, which accepts paths that are not UTF-8; msgspec refuses lone surrogates.
"""

from __future__ import annotations

import json
from typing import Self

import msgspec

__all__ = ["Boot", "Credentials", "Report"]


class _Message(msgspec.Struct):
    """A message with its encoding."""

    def encode(self) -> bytes:
        """Encode the message as JSON."""
        return json.dumps(msgspec.to_builtins(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a message from JSON.

        Raises:
            ValueError: The message is malformed.
        """
        try:
            return msgspec.convert(json.loads(data), cls)
        except (msgspec.MsgspecError, RecursionError) as exc:
            raise ValueError(f"no {cls.__name__} message: {exc}") from exc


class Credentials(msgspec.Struct, frozen=True):
    """The certificates of one end of a mutually authenticated connection, in PEM."""

    certificate: str
    key: str
    authority: str

    def __repr__(self) -> str:
        return "<Credentials>"


class Boot(_Message, kw_only=True):
    """The only message on the lifeline pipe: 4 bytes of big-endian length, then this as JSON."""

    worker_id: str
    run_id: str
    pool: str
    adapter: str
    token: str
    socket_dir: str | None
    threads: int
    worker_backend: str
    host_backend: str
    max_payload: int
    #: Bytes of shared memory for the worker's sent values; 0: neither side uses any.
    shm_limit: int = 0
    unserializable: str = "error"
    #: The address on which it listens if it has no ``socket_dir``; anything but loopback needs ``tls``.
    bind: str = "127.0.0.1"
    #: Clients need a certificate of the same authority.
    tls: Credentials | None = None
    #: Variables of this worker alone, which its template does not have.
    env: dict[str, str] = {}
    #: The host's ``sys.path``, for a worker without a template, which already uses it.
    path: list[str] = []


class Report(_Message, kw_only=True, omit_defaults=True):
    """The worker's only message on its report pipe, as JSON."""

    #: The address on which it listens, "unix:PATH" or "tcp:HOST:PORT".
    address: str = ""
    pid: int = 0
    #: If it can't start: an error code of ``snakepit_trio.errors``, and below the message.
    code: str = ""
    message: str = ""
    remote_types: list[str] = []
    remote_traceback: str = ""
    #: The processes that the adapter's import has started, each as its id and its start time.
    helpers: list[tuple[int, int]] = []

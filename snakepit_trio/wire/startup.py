"""What a host and a starting worker tell each other over inherited pipes. The worker imports this and little else.

As JSON by the standard library, which lets pass what paths may hold that are not UTF-8: msgspec's own refuses lone surrogates.
"""

from __future__ import annotations

import json
from typing import Self

import msgspec

__all__ = ["Boot", "Credentials", "Report"]


class _Message(msgspec.Struct):
    """A message as bytes, and back."""

    def encode(self) -> bytes:
        """It, as JSON."""
        return json.dumps(msgspec.to_builtins(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """From JSON.

        Raises:
            ValueError: It is not such a message.
        """
        try:
            return msgspec.convert(json.loads(data), cls)
        except (msgspec.MsgspecError, RecursionError) as exc:
            raise ValueError(f"no {cls.__name__} message: {exc}") from exc


class Credentials(msgspec.Struct, frozen=True):
    """What one end of a mutually authenticated connection shows, and whom it trusts; all in PEM."""

    certificate: str
    key: str
    authority: str

    def __repr__(self) -> str:
        return "<Credentials>"


class Boot(_Message, kw_only=True):
    """The first and only message on the lifeline pipe: 4 bytes of big-endian length, then this as JSON."""

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
    #: Bytes of shared memory that the worker may use for what it sends; 0 for none, on both sides.
    shm_limit: int = 0
    unserializable: str = "error"
    #: The address on which it listens when it has no ``socket_dir``; anything but loopback needs ``tls``.
    bind: str = "127.0.0.1"
    #: Whoever connects must come from the same authority.
    tls: Credentials | None = None
    #: Variables of this worker alone, which its template does not have.
    env: dict[str, str] = {}
    #: The host's ``sys.path``, for a worker that has no template, which has followed it already.
    path: list[str] = []


class Report(_Message, kw_only=True, omit_defaults=True):
    """What a worker says on its report pipe, once, as JSON, before it closes it."""

    #: "unix:PATH" or "tcp:HOST:PORT", where it is listening now.
    address: str = ""
    pid: int = 0
    #: Why it can't start, when it can't: an error code of ``snakepit_trio.errors`` and what there is to say.
    code: str = ""
    message: str = ""
    remote_types: list[str] = []
    remote_traceback: str = ""
    #: The processes that the adapter's import has started, each as its id and its start time.
    helpers: list[tuple[int, int]] = []

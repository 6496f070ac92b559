"""What a host and a starting worker tell each other over inherited pipes. The worker imports this and little else."""

from __future__ import annotations

import msgspec

__all__ = ["Boot", "Credentials", "Report"]


class Credentials(msgspec.Struct, frozen=True):
    """What one end of a mutually authenticated connection shows, and whom it trusts; all in PEM."""

    certificate: str
    key: str
    authority: str

    def __repr__(self) -> str:
        return "<Credentials>"


class Boot(msgspec.Struct, kw_only=True):
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
    #: Entries of ``sys.path`` that the worker puts before its own, so that it finds what the host finds.
    path: list[str] = []


class Report(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a worker says on its report pipe, once, as JSON, before it closes it."""

    #: "unix:PATH" or "tcp:HOST:PORT", where it is listening now.
    address: str = ""
    pid: int = 0
    #: Why it can't start, when it can't: an error code of ``snakepit_trio.errors`` and what there is to say.
    code: str = ""
    message: str = ""
    remote_types: list[str] = []
    remote_traceback: str = ""

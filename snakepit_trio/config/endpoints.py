"""The options of a runtime's doors: the bridge, and where metrics are read."""

from __future__ import annotations

import re

import attrs

from snakepit_trio._config_checks import TINY, as_path, check_types, refuse, within

__all__ = ["BridgeConfig", "MetricsConfig", "TlsConfig"]

_TOKEN = re.compile(r"[!-~]{1,4096}")
_ADDRESS = re.compile(r"unix:.+|tcp:[^:\[\]]+:\d{1,5}|tcp:\[[0-9A-Fa-f:]+\]:\d{1,5}")


@attrs.frozen(kw_only=True)
class TlsConfig:
    """Files for TLS, in PEM.

    Attributes:
        cert: Our certificate, with what stands between it and its authority.
        key: Its private key.
        ca: The authority that clients' certificates must come from; None: clients need none.
    """

    cert: str = attrs.field(converter=as_path)
    key: str = attrs.field(converter=as_path)
    ca: str | None = attrs.field(default=None, converter=as_path)

    def __attrs_post_init__(self) -> None:
        check_types(self)


@attrs.frozen(kw_only=True)
class BridgeConfig:
    """The gRPC front door.

    Attributes:
        address: ``"unix:PATH"`` or ``"tcp:HOST:PORT"``; port 0 is any free one. None: a Unix socket in the run's directory.
        token: What clients send as ``authorization: Bearer TOKEN``; None: made anew for each run.
        token_file: A file that holds the token; only its owner may read it. When it changes, connections that come from then
            on must show what it holds now. One that does not exist is made (0600), with a new token, and removed at the end.
        tls: For TCP.
        allow_plaintext: Listen without TLS on an address that other machines reach: the token then travels in the clear.
        max_connections: Clients at once. When there are as many, one that has not shown the token yet makes room. From one
            address (TCP) or process (Unix socket) no more come than it leaves for others: half of them when it is alone.
        max_streams: Requests of one connection at once.
        max_message: Largest request; None: as large as the largest ``max_payload`` of the pools allows.
        max_buffered: Bytes of requests, until they are answered, and of answers, until they are read, over all connections.
            A quarter of them is divided among the ``max_connections``; of the rest each may have as many as it leaves,
            half of them when it is alone. What would be more is RESOURCE_EXHAUSTED. None: eight times the largest request
            or answer, and at least 256 MiB.
        max_header_size: Largest request headers.
        handshake_timeout: For TLS, and for a connection's first request with the token.
        idle_timeout: A connection without requests is closed after so long; clients connect anew when they need it.
        receive_timeout: For a request to arrive whole.
        keepalive_interval, keepalive_timeout: A TCP client that was silent for so long is asked for a sign of life, and
            has so long to give one. None: never asked.
        public_health: Health checks need no token.
        reflection: Tell clients with the token what the service looks like.
    """

    address: str | None = None
    token: str | None = attrs.field(default=None, repr=False)
    token_file: str | None = attrs.field(default=None, converter=as_path)
    tls: TlsConfig | None = None
    allow_plaintext: bool = False
    max_connections: int = within(1000, 1)
    max_streams: int = within(100, 1, 10_000)
    max_message: int | None = within(None, 1024, 1 << 31)
    max_buffered: int | None = within(None, 1024)
    max_header_size: int = within(16 * 1024, 1024, 1 << 20)
    handshake_timeout: float = within(10.0, TINY)
    idle_timeout: float | None = within(600.0, TINY)
    receive_timeout: float = within(60.0, TINY)
    keepalive_interval: float | None = within(30.0, 0.01)
    keepalive_timeout: float = within(20.0, TINY)
    public_health: bool = False
    reflection: bool = True

    def __attrs_post_init__(self) -> None:
        check_types(self)
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            refuse("address", self.address, "unix:PATH or tcp:HOST:PORT")
        if (
            self.address is not None
            and self.address.startswith("tcp:")
            and int(self.address.rpartition(":")[2]) > 65535
        ):
            refuse("address", self.address, "a port up to 65535")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            refuse("token", "...", "printable ASCII text without spaces")
        if self.token is not None and self.token_file is not None:
            refuse("token_file", self.token_file, "a token or a file that holds it, not both")
        if self.tls is not None and not (self.address or "").startswith("tcp:"):
            refuse("tls", "a TlsConfig", "a tcp address, or no TLS: a Unix socket is private already")


@attrs.frozen(kw_only=True)
class MetricsConfig:
    """Metrics for Prometheus; needs the extra ``prometheus``.

    Attributes:
        address: Where ``/metrics``, ``/live`` and ``/ready`` are served over HTTP: ``"tcp:HOST:PORT"`` (port 0 is any free
            one; ``runtime.metrics.address`` says which) or ``"unix:PATH"``. None: nowhere, for an application that
            serves its own registry. There is no authentication: what is not loopback is for trusted networks.
        max_connections: How many clients are served at once. When there are as many, the one that has kept its request back
            longest makes room.
        client_timeout: How long one client may take for its request and its answer, in seconds.
        max_tools: How many tools have a label of their own; the others share ``"other"``.
    """

    address: str | None = "tcp:127.0.0.1:0"
    max_connections: int = within(16, 1, 1000)
    client_timeout: float = within(10.0, TINY)
    max_tools: int = within(50, 1, 1000)

    def __attrs_post_init__(self) -> None:
        check_types(self)
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            refuse("address", self.address, "unix:PATH or tcp:HOST:PORT")

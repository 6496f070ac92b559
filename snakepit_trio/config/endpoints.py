"""The options of a runtime's network endpoints: the bridge and the metrics endpoint."""

from __future__ import annotations

import re

import attrs

from snakepit_trio._config_checks import TINY, Options, as_path, check_types, refuse, within

__all__ = ["BridgeConfig", "MetricsConfig", "TlsConfig"]

_TOKEN = re.compile(r"[!-~]{1,4096}")
_ADDRESS = re.compile(r"unix:.+|tcp:[^:\[\]]+:\d{1,5}|tcp:\[[0-9A-Fa-f:]+\]:\d{1,5}")


@attrs.frozen(kw_only=True)
class TlsConfig(Options):
    """Files for TLS, in PEM format.

    Attributes:
        cert: The server's certificate, followed by intermediate certificates.
        key: The private key of the certificate.
        ca: The authority that clients' certificates must come from. None: clients need no certificate.
    """

    cert: str = attrs.field(converter=as_path)
    key: str = attrs.field(converter=as_path)
    ca: str | None = attrs.field(default=None, converter=as_path)

    def __attrs_post_init__(self) -> None:
        check_types(self)


@attrs.frozen(kw_only=True)
class BridgeConfig(Options):
    """The gRPC server for clients.

    Attributes:
        address: ``"unix:PATH"`` or ``"tcp:HOST:PORT"``; port 0 is any free port. None: a Unix socket in the run's
            directory.
        token: The token that clients send as ``authorization: Bearer TOKEN``. None: a new token for each run.
        token_file: A file that holds the token; only its owner may be able to read it. When the file changes, new
            connections need the new token. A missing file is created (0600) with a new token, and removed at the end.
        tls: TLS for TCP.
        allow_plaintext: Listen without TLS on an address that other machines can reach; the token is then sent
            unencrypted.
        max_connections: The largest number of connections. At the limit, a connection that has not sent the token is
            closed for a new one. One address (TCP) or process (Unix socket) may have as many as it leaves for others:
            half when it is alone.
        max_streams: The largest number of simultaneous requests of one connection.
        max_message: The largest size of a request. None: as large as the pools' largest ``max_payload`` requires.
        max_buffered: The largest number of buffered bytes over all connections: of requests until they are answered,
            and of answers until they are read. A quarter is divided among the ``max_connections``; of the rest each
            connection may use as much as it leaves for others, half when it is alone. The excess gets
            RESOURCE_EXHAUSTED. None: eight times the largest request or answer, and at least 256 MiB.
        max_header_size: The largest size of request headers.
        handshake_timeout: The time for TLS and for a connection's first request with the token.
        idle_timeout: A connection without requests is closed after this time; clients reconnect when necessary.
        receive_timeout: The time in which a request must arrive completely.
        keepalive_interval, keepalive_timeout: A TCP client that was silent for the interval is pinged, and must answer
            within the timeout. None: no pings.
        public_health: Answer health checks without the token.
        reflection: Serve gRPC reflection to clients with the token.
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
class MetricsConfig(Options):
    """Metrics for Prometheus; needs the extra ``prometheus``.

    Attributes:
        address: The address of the HTTP endpoint with ``/metrics``, ``/live`` and ``/ready``: ``"tcp:HOST:PORT"`` (port
            0 is any free port; ``runtime.metrics.address`` is the actual address) or ``"unix:PATH"``. None: no
            endpoint, for an application that serves its own registry. There is no authentication, so use other
            addresses than loopback only in trusted networks.
        max_connections: The largest number of simultaneous clients. At the limit, the client whose request has been
            incomplete for the longest time is disconnected.
        client_timeout: The time for one client's request and answer, in seconds.
        max_tools: The number of tools with their own label; the others share ``"other"``.
    """

    address: str | None = "tcp:127.0.0.1:0"
    max_connections: int = within(16, 1, 1000)
    client_timeout: float = within(10.0, TINY)
    max_tools: int = within(50, 1, 1000)

    def __attrs_post_init__(self) -> None:
        check_types(self)
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            refuse("address", self.address, "unix:PATH or tcp:HOST:PORT")

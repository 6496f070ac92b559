"""Addresses in the forms ``unix:PATH`` and ``tcp:HOST:PORT``."""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback", "parse_address"]


def parse_address(address: str) -> str | tuple[str, int]:
    """Return a Unix socket's path for ``unix:PATH``, or host and port for ``tcp:HOST:PORT``.

    Raises:
        ValueError: The address has neither form.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return rest
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        if host and port.isascii() and port.isdigit():
            return host.strip("[]"), int(port)
    raise ValueError(f"not an address: {address!r}; expected unix:PATH or tcp:HOST:PORT")


def is_loopback(host: str) -> bool:
    """Return whether the host, by name or number, is loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

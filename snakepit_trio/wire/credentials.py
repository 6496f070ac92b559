"""TLS contexts from certificates and keys that are in memory, and stay there."""

from __future__ import annotations

import os
import ssl

__all__ = ["tls_context"]


def tls_context(certificate: str, key: str, authority: str, *, server_side: bool) -> ssl.SSLContext:
    """A context for one end of a connection both of whose ends must show a certificate of one authority.

    Args:
        certificate: Ours, in PEM.
        key: Its private key, in PEM, shorter than a pipe.
        authority: The only one that is trusted, in PEM.
        server_side: Which end we are.

    Raises:
        OSError: They don't fit each other.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority)
    context.set_alpn_protocols(["h2"])
    # The ssl module reads files only; a pipe is one that no disk has seen.
    ends = [_pipe_with(certificate), _pipe_with(key)]
    try:
        context.load_cert_chain(*(f"/dev/fd/{end}" for end in ends))
    finally:
        for end in ends:
            os.close(end)
    return context


def _pipe_with(text: str) -> int:
    read, write = os.pipe()
    try:
        os.write(write, text.encode())
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    return read

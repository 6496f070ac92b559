"""TLS contexts from certificates and keys in memory."""

from __future__ import annotations

import os
import ssl

__all__ = ["tls_context"]


def tls_context(certificate: str, key: str, authority: str, *, server_side: bool) -> ssl.SSLContext:
    """Return a context for one end of a connection whose two ends authenticate each other by one authority.

    Args:
        certificate: The own certificate, in PEM.
        key: Its private key, in PEM, shorter than a pipe's capacity.
        authority: The only trusted authority, in PEM.
        server_side: Whether this is the server's end.

    Raises:
        OSError: They don't match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority)
    context.set_alpn_protocols(["h2"])
    # The ssl module reads only files; a pipe is one that never reaches a disk.
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

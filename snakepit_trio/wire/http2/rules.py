"""HTTP/2's error codes, exceptions and events, and its rules for headers, for other rooms."""

from __future__ import annotations

from collections.abc import Iterable

from h2 import events
from h2.errors import ErrorCodes
from h2.exceptions import H2Error, ProtocolError
from h2.utilities import HeaderValidationFlags, validate_headers

__all__ = ["ErrorCodes", "H2Error", "events", "find_flaw"]


def find_flaw(headers: Iterable[tuple[bytes, bytes]], *, trailers: bool = False) -> str:
    """Return what HTTP/2 forbids in a request's headers, or in its trailers (RFC 9113, 8.2 and 8.3); empty for valid ones."""
    try:
        for _ in validate_headers(headers, HeaderValidationFlags(False, trailers, False, False)):
            pass
    except ProtocolError as exc:
        return str(exc)
    return ""

"""Values as payloads: what :func:`encode` takes comes out of :func:`decode` equal and of the same type."""

from .codec import BUFFER_THRESHOLD, DEFAULT_LIMIT, check_shape, check_size, decode, encode, encode_result

__all__ = ["BUFFER_THRESHOLD", "DEFAULT_LIMIT", "check_shape", "check_size", "decode", "encode", "encode_result"]

"""Encoding of values as payloads: :func:`decode` returns a value equal to the encoded one, with the same type."""

from .codec import BUFFER_THRESHOLD, DEFAULT_LIMIT, check_shape, check_size, decode, encode, encode_result

__all__ = ["BUFFER_THRESHOLD", "DEFAULT_LIMIT", "check_shape", "check_size", "decode", "encode", "encode_result"]

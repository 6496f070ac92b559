"""Exact conversion between values and payloads.

MSGPACK is symmetric over the domain in docs/payloads.md: :func:`decode` returns a value equal to the encoded one, with
the same type, and :func:`encode` refuses any other value with the place of the offending part. Values of JSON's own
types (the most common ones, and large lists of numbers) go directly to msgspec; others use extension types.

JSON is for clients and logs: only JSON's own types, strictly.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from snakepit_trio.errors import InvalidParameter, InvalidPayload
from snakepit_trio.wire.frames import JSON, MSGPACK, Payload, SharedBlock

from .extensions import MAX_DEPTH
from .unwrapping import Unwrapper
from .wrapping import Refused, Wrapper, type_name

__all__ = ["BUFFER_THRESHOLD", "DEFAULT_LIMIT", "check_shape", "check_size", "decode", "encode", "encode_result"]

#: Bytes; the default of ``PoolConfig.max_payload``.
DEFAULT_LIMIT = 64 * 1024 * 1024
#: The values whose size that option limits; other limits are fixed.
_BY_OPTION = frozenset({"params", "result", "chunk", "payload"})
#: Binary values of at least this many bytes travel beside the data instead of inside it.
BUFFER_THRESHOLD = 64 * 1024

#: With more bytes of data there may be so many values that pausing the garbage collector pays.
_LARGE = 256 * 1024

_SCALARS = frozenset({type(None), bool, int, float, str})
_SCALARS_OR_BYTES = _SCALARS | {bytes}
_TEXT = frozenset({str})
_LIST_OR_DICT = frozenset({list, dict})

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(ext_hook=lambda code, data: Unwrapper(()).unwrap(code, data)).decode
_skip = msgspec.msgpack.Decoder(msgspec.Raw).decode
_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder().decode


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether msgspec alone encodes this exactly, except for integers beyond 64 bits and lone surrogates."""
    kind = type(value)
    if kind is dict:
        if not _TEXT.issuperset(map(type, value)):
            return False
        items: Any = value.values()
    elif kind is list:
        items = value
    else:
        return kind in _SCALARS
    rest = set(map(type, items)) - _SCALARS
    if not rest:
        return True
    if depth >= MAX_DEPTH or not rest <= _LIST_OR_DICT:
        return False
    return all(_is_plain(item, depth + 1) for item in items if type(item) in _LIST_OR_DICT)


def _quick(value: Any, limit: int, threshold: int) -> Payload | None:
    """Return the payload of a simple and small value by the shortest way; None if it needs a longer one.

    Simple is a map from text to plain values, as most calls' arguments are, or one such value.
    """
    kind = type(value)
    if kind is dict:
        kinds = set(map(type, value.values()))
        if not (_TEXT.issuperset(map(type, value)) and kinds <= _SCALARS_OR_BYTES):
            return None
        if bytes in kinds:
            for item in value.values():
                if type(item) is bytes and len(item) >= threshold:
                    return None
    elif not (kind in _SCALARS or (kind is bytes and len(value) < threshold)):
        return None
    try:
        data = _pack(value)
    except (OverflowError, UnicodeEncodeError):
        return None
    return Payload(MSGPACK, data) if len(data) <= limit else None


def encode(
    value: Any,
    *,
    what: str = "params",
    limit: int = DEFAULT_LIMIT,
    encoding: int = MSGPACK,
    buffer_threshold: int = BUFFER_THRESHOLD,
) -> Payload:
    """Encode a caller's value.

    Args:
        value: Any value of the domain.
        what: The value's name in errors, the root of their paths.
        limit: The largest size of data and buffers together, in bytes.
        encoding: ``MSGPACK`` or ``JSON``.
        buffer_threshold: Binary values of at least this many bytes go into ``Payload.buffers``, uncopied.

    Raises:
        InvalidParameter: The value contains something that can't be sent; ``details["path"]`` is its place.
    """
    if encoding == MSGPACK:
        quick = _quick(value, limit, buffer_threshold)
        if quick is not None:
            return quick
    try:
        return _encode(value, what, limit, encoding, Wrapper(threshold=buffer_threshold))
    except Refused as exc:
        raise InvalidParameter(str(exc), details={"path": exc.path, "reason": exc.reason}) from None


def encode_result(
    value: Any,
    *,
    what: str = "result",
    limit: int = DEFAULT_LIMIT,
    unserializable: str = "error",
    encoding: int = MSGPACK,
    buffer_threshold: int = BUFFER_THRESHOLD,
) -> Payload:
    """Encode a tool's result. A value outside the domain is converted by its own methods first.

    Args:
        encoding: ``MSGPACK``, or ``JSON``, for which nothing is converted.
        unserializable: ``"error"``, or ``"marker"`` to put ``{"__snakepit_unserializable__": True, "type": ...}`` in
            the place of a value that can't be encoded at all.

    Raises:
        InvalidPayload: The value contains something that can't be sent; ``details["path"]`` is its place.
    """
    if encoding == MSGPACK:
        quick = _quick(value, limit, buffer_threshold)
        if quick is not None:
            return quick
    wrapper = Wrapper(threshold=buffer_threshold, limit=limit, convert=True, marker=unserializable == "marker")
    try:
        return _encode(value, what, limit, encoding, wrapper)
    except Refused as exc:
        raise InvalidPayload(str(exc), details={"path": exc.path, "reason": exc.reason}) from None


def _encode(value: Any, what: str, limit: int, encoding: int, wrapper: Wrapper) -> Payload:
    if encoding == JSON:
        _check_json(value, what, 0)
        data = _to_json(value)
    else:
        try:
            data = _pack(value if _is_plain(value) else wrapper.wrap(value, what))
        except (OverflowError, UnicodeEncodeError):
            # An integer beyond 64 bits, or a lone surrogate: the long way keeps the former and reports the latter.
            data = _pack(wrapper.wrap(value, what))
        except RecursionError:
            raise Refused(what, f"is nested deeper than {MAX_DEPTH} levels, or contains itself") from None
    size = len(data) + sum(buffer.nbytes for buffer in wrapper.buffers)
    if size > limit:
        raise Refused(what, f"has {size} bytes when encoded; the limit is {_named(limit, what)}")
    return Payload(encoding, data, wrapper.buffers)


def _named(limit: int, what: str) -> str:
    """Return a limit in bytes, with the option that sets it."""
    return f"{limit} (max_payload)" if what in _BY_OPTION else str(limit)


def _check_json(value: Any, path: str, depth: int) -> None:
    kind = type(value)
    if kind is float:
        if not math.isfinite(value):
            raise Refused(path, "JSON has no number for nan and infinity")
    elif kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refused(path, "text with a lone surrogate has no UTF-8 form") from None
    elif kind is list or kind is dict:
        if depth > MAX_DEPTH:
            raise Refused(path, f"is nested deeper than {MAX_DEPTH} levels, or contains itself")
        if kind is list:
            for index, item in enumerate(value):
                _check_json(item, f"{path}[{index}]", depth + 1)
            return
        for key, item in value.items():
            if type(key) is not str:
                raise Refused(path, f"JSON has no {type_name(key)} keys")
            _check_json(key, f"a key of {path}", depth)
            _check_json(item, f"{path}[{json.dumps(key)}]", depth + 1)
    elif kind is int:
        if not -(1 << 63) <= value < 1 << 64:
            raise Refused(path, "an integer beyond 64 bits is not safe in JSON")
    elif value is not None and kind is not bool:
        raise Refused(path, f"JSON has no {type_name(value)}")


def decode(payload: Payload, *, what: str = "payload", limit: int = DEFAULT_LIMIT) -> Any:
    """Return the value of a payload.

    Binary values that arrived in buffers are views of them if their type allows it: memoryviews and arrays are
    read-only and keep their buffer alive.

    Raises:
        InvalidPayload: The payload is malformed, or larger than the limit.
    """
    buffers = payload.buffers
    if buffers or len(payload.data) > limit:
        check_size(payload, what=what, limit=limit)
    # A collection would visit all values created so far, none of which can be garbage: for many small containers that
    # takes twenty times as long as decoding them.
    pause = len(payload.data) > _LARGE and gc.isenabled()
    if pause:
        gc.disable()
    try:
        if payload.encoding == MSGPACK:
            return Unwrapper(_here(buffers)).decode(payload.data) if buffers else _unpack(payload.data)
        if payload.encoding == JSON:
            return _from_json(payload.data)
    except Exception as exc:
        raise InvalidPayload(
            f"{what} does not decode: {type(exc).__name__}: {str(exc)[:200]}", details={"encoding": payload.encoding}
        ) from exc
    finally:
        if pause:
            gc.enable()
    raise InvalidPayload(f"{what} has the unknown encoding {payload.encoding}", details={"encoding": payload.encoding})


def check_shape(payload: Payload, *, what: str, limit: int) -> None:
    """Check that a payload is valid MessagePack within the limit, without creating its values.

    Raises:
        InvalidPayload: It is not.
    """
    check_size(payload, what=what, limit=limit)
    try:
        _skip(payload.data)
    except Exception as exc:
        raise InvalidPayload(
            f"{what} does not decode: {type(exc).__name__}: {str(exc)[:200]}", details={"encoding": payload.encoding}
        ) from exc


def check_size(payload: Payload, *, what: str, limit: int) -> None:
    """Check the size of a payload.

    Raises:
        InvalidPayload: It is too large.
    """
    size = payload.size if payload.buffers else len(payload.data)
    if size > limit:
        words = f"{what} has {size} bytes; the limit is {_named(limit, what)}"
        raise InvalidPayload(words, details={"size": size, "limit": limit})


def _here(buffers: Sequence[object]) -> list[memoryview]:
    if any(isinstance(buffer, SharedBlock) for buffer in buffers):
        raise ValueError("a buffer is in shared memory, which this connection does not use")
    return [memoryview(buffer) for buffer in buffers]  # type: ignore[arg-type]

"""Values to payloads and back, exactly.

MSGPACK is total and symmetric over the domain that docs/payloads.md lists: what :func:`encode` takes comes out of
:func:`decode` equal and of the same type, and what it does not take is refused with the place of the offending value.
Values of JSON's own kinds (the most common, and the large lists of numbers) go straight to msgspec; anything else takes
the way over extension types.

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
#: The values whose size that option bounds; the bounds of others are fixed.
_BY_OPTION = frozenset({"params", "result", "chunk", "payload"})
#: Binary values of at least this many bytes travel beside the data instead of inside it.
BUFFER_THRESHOLD = 64 * 1024

#: Bytes of data beyond which there may be so many values that it is worth it to keep the garbage collector from them.
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
    """Whether msgspec alone encodes this exactly, but for integers beyond 64 bits and lone surrogates."""
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
    """The payload of a simple and small value, in the shortest way; None when it takes a longer one.

    Simple is a map from text to plain values, the kind of arguments that most calls have, or one such value.
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
    """Encode a value that the caller gave.

    Args:
        value: Anything in the domain.
        what: What the value is called in errors, the root of their paths.
        limit: Bytes that data and buffers may have in all.
        encoding: ``MSGPACK`` or ``JSON``.
        buffer_threshold: Binary values of at least this many bytes go into ``Payload.buffers``, uncopied.

    Raises:
        InvalidParameter: The value, or something in it, can't travel; ``details["path"]`` says where it is.
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
    """Encode what a tool gave. What is outside of the domain is converted by its own means first.

    Args:
        encoding: ``MSGPACK``, or ``JSON``, for which nothing is converted.
        unserializable: ``"error"``, or ``"marker"`` to put ``{"__snakepit_unserializable__": True, "type": ...}`` in the
            place of what can't be encoded at all.

    Raises:
        InvalidPayload: The value, or something in it, can't travel; ``details["path"]`` says where it is.
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
            # An integer beyond 64 bits, or a lone surrogate: the long way keeps the one and names the other.
            data = _pack(wrapper.wrap(value, what))
        except RecursionError:
            raise Refused(what, f"is nested deeper than {MAX_DEPTH} levels, or contains itself") from None
    size = len(data) + sum(buffer.nbytes for buffer in wrapper.buffers)
    if size > limit:
        raise Refused(what, f"has {size} bytes when encoded; the limit is {_named(limit, what)}")
    return Payload(encoding, data, wrapper.buffers)


def _named(limit: int, what: str) -> str:
    """A limit in bytes, with the option that says so."""
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
    """The value that a payload holds.

    Binary values that came in buffers are views over them where their type allows it: memoryviews and arrays are
    read-only and keep what they look at alive.

    Raises:
        InvalidPayload: It does not hold one, or is larger than the limit.
    """
    buffers = payload.buffers
    if buffers or len(payload.data) > limit:
        check_size(payload, what=what, limit=limit)
    # A collection looks at all values that have been made so far, none of which can be garbage: for many small containers that
    # takes twenty times as long as to decode them.
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
    """Refuse what is no MessagePack, or too large, without making the values that it holds.

    Raises:
        InvalidPayload: It is.
    """
    check_size(payload, what=what, limit=limit)
    try:
        _skip(payload.data)
    except Exception as exc:
        raise InvalidPayload(
            f"{what} does not decode: {type(exc).__name__}: {str(exc)[:200]}", details={"encoding": payload.encoding}
        ) from exc


def check_size(payload: Payload, *, what: str, limit: int) -> None:
    """Refuse a payload that is too large.

    Raises:
        InvalidPayload: It is.
    """
    size = payload.size if payload.buffers else len(payload.data)
    if size > limit:
        words = f"{what} has {size} bytes; the limit is {_named(limit, what)}"
        raise InvalidPayload(words, details={"size": size, "limit": limit})


def _here(buffers: Sequence[object]) -> list[memoryview]:
    if any(isinstance(buffer, SharedBlock) for buffer in buffers):
        raise ValueError("a buffer is in shared memory, which this connection does not use")
    return [memoryview(buffer) for buffer in buffers]  # type: ignore[arg-type]

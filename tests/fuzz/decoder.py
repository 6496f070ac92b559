"""Coverage-guided fuzzing of whatever takes bytes from the other side: frames, payloads, values.

``python tests/fuzz/decoder.py -max_total_time=300 -rss_limit_mb=512 [CORPUS]``, with atheris installed; ``nox -s soak`` does. The
options are libFuzzer's: https://llvm.org/docs/LibFuzzer.html#options. A crash, a hang or a growth of memory ends it with a file that holds the
input; anything but the errors that are meant for it counts as a crash.
"""

from __future__ import annotations

import datetime as dt
import decimal
import sys
import uuid
import zoneinfo
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["snakepit_trio.wire"]):
    from snakepit_trio.errors import InvalidParameter, InvalidPayload
    from snakepit_trio.wire import codec, frame_reading, frame_writing, frames

import numpy as np

LIMIT = 1 << 20


def seeds() -> list[bytes]:
    """One frame of each kind and one value of each type, each behind the byte that says what it is."""
    values: list[Any] = [
        None, -1, 2**70, 1.5, "text", b"bytes", bytearray(b"b"), memoryview(b"m"), (1, (2,)), {1}, frozenset({"a"}),
        {(1, 2): [3]}, dt.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")), dt.date(2024, 1, 1),
        dt.time(1, 2, fold=1), dt.timedelta(1), decimal.Decimal("1.5"), uuid.UUID(int=1), 1j, np.arange(6).reshape(2, 3),
        np.float32(1.5), np.zeros(2, [("a", "i4"), ("b", "f8", 2)]),
    ]  # fmt: skip
    encoded = [codec.encode(value) for value in values]
    made = [b"\x00" + payload.data for payload in encoded]
    payload = codec.encode({"a": [b"x" * 100, (1,)]}, buffer_threshold=10)
    failure = frames.ErrorInfo("tool_error", "no", False, ["builtins.ValueError"], "no", "Traceback", payload)
    made += [b"\x01" + frame_writing.encode(frame) for frame in (
        frames.Call(1, 1, "", payload, 5, 1, False, 0, "s", {"k": "v"}), frames.Cancel(1, True), frames.Credit(1, 2),
        frames.Ping(3), frames.HostReply(1, payload, None), frames.Stop(5),
    )]  # fmt: skip
    made += [b"\x02" + frame_writing.encode(frame) for frame in (
        frames.Reply(1, payload, None), frames.Reply(1, None, failure), frames.Chunk(1, payload), frames.Pong(1, [1], 2, 3),
        frames.HostCall(1, 1, "t", payload, 5), frames.HostCancel(1), frames.Emit(1, "e", payload),
    )]  # fmt: skip
    return made


def value(payload: frames.Payload) -> None:
    """What decodes can be sent again, unless it is of a kind that the sender never makes."""
    try:
        found = codec.decode(payload, limit=LIMIT)
    except InvalidPayload:
        return
    try:
        codec.encode(found, limit=4 * LIMIT)
    except InvalidParameter:
        pass


def one_input(data: bytes) -> None:
    """The first byte says what the rest is."""
    if not data:
        return
    kind, body = data[0] % 3, data[1:]
    if kind == 0:
        value(frames.Payload(frames.MSGPACK, body))
        return
    try:
        frame = (frame_reading.decode_host_frame if kind == 1 else frame_reading.decode_worker_frame)(body)
    except frames.FrameError:
        return
    payload = getattr(frame, "payload", None)
    if payload is not None:
        value(payload)


def main() -> None:
    corpus = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    if corpus:
        corpus[0].mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (corpus[0] / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

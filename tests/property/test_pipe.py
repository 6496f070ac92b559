"""However the bytes of a stream are cut, the same messages come out; what breaks the framing ends the pipe, once."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio.wire.http2.pipe import FramePipe, Ready, Turn


class ScriptedStream:
    """The parts of grpclib's stream that a pipe uses, without a connection."""

    def __init__(self) -> None:
        import types

        self.id = 1
        self.resets: list[Any] = []
        self.closable = True
        self.turn = Turn(1 << 30)
        self.connection = types.SimpleNamespace(
            write_ready=Ready(), turn=self.turn, is_closing=lambda: False, flush=lambda: None, fail=None
        )
        self.frames: list[bytes] = []
        self.trailers: list[Any] = []
        self.room = 1 << 30
        self._h2_connection = types.SimpleNamespace(
            acknowledge_received_data=lambda size, stream: None,
            local_flow_control_window=lambda stream: self.room,
            max_outbound_frame_size=100,
            send_data=lambda stream, data, last=False: self.frames.append(bytes(data)),
            send_headers=lambda stream, headers, end_stream: self.trailers.append(headers),
        )
        empty = types.SimpleNamespace(empty=lambda: True)
        self.buffer: Any = types.SimpleNamespace(_unacked=empty, _eof=False)

    def reset_nowait(self, code: Any) -> None:
        self.resets.append(code)


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def open_pipe(limit: int = 1000) -> tuple[FramePipe, ScriptedStream, list[bytes], list[str]]:
    stream = ScriptedStream()
    messages: list[bytes] = []
    closed: list[str] = []
    pipe = FramePipe(
        stream,  # type: ignore[arg-type]
        on_message=messages.append,
        on_close=closed.append,
        max_message=limit,
        call_soon=lambda callback: None,
    )
    return pipe.start(), stream, messages, closed


@given(st.lists(st.binary(max_size=60), max_size=8), st.data())
def test_any_split_gives_the_same_messages(sent: list[bytes], data: st.DataObject) -> None:
    pipe, stream, messages, closed = open_pipe()
    rest = b"".join(map(framed, sent))
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        stream.buffer.add(rest[:size], size)
        rest = rest[size:]
    assert messages == sent
    assert closed == []
    stream.buffer.eof()
    assert closed == [""]


@given(st.lists(st.binary(max_size=60), max_size=8), st.booleans(), st.data())
def test_turns_of_any_length_give_the_same_messages_and_none_gives_more_than_it_has(
    sent: list[bytes], end: bool, data: st.DataObject
) -> None:
    pipe, stream, messages, closed = open_pipe()
    turn = stream.turn
    rest = b"".join(map(framed, sent))
    while rest or turn.put_off:
        turn.left = data.draw(st.integers(1, 3))
        allowed, before = turn.left, len(messages)
        while turn.put_off and turn.left > 0:
            turn.put_off.popleft().go_on()
        # As long as something is put off nothing is read; but h2 may have more of it in its hands.
        if rest and (not turn.put_off or data.draw(st.booleans())):
            size = data.draw(st.integers(1, len(rest)))
            stream.buffer.add(rest[:size], size)
            rest = rest[size:]
            if end and not rest:
                stream.buffer.eof()
        assert len(messages) <= before + allowed
        assert closed == [] or (not turn.put_off and end)
    assert messages == sent
    assert pipe._later is None
    assert closed == [""] * (end and bool(sent))


def test_a_pipe_that_is_closed_hands_nothing_over_that_was_put_off() -> None:
    pipe, stream, messages, closed = open_pipe()
    stream.turn.left = 1
    stream.buffer.add(framed(b"x") * 3, 18)
    stream.buffer.eof()
    pipe.close()
    stream.turn.left = 10
    stream.turn.put_off.popleft().go_on()
    assert messages == [b"x"]
    assert closed == []


def test_many_small_parts_of_a_message_cost_no_more_than_their_bytes() -> None:
    pipe, stream, messages, _ = open_pipe(limit=1 << 20)
    message = os.urandom(1 << 20)
    for byte in framed(message):
        stream.buffer.add(bytes((byte,)), 1)
        assert len(pipe._parts) <= 3
    assert messages == [message]


@given(st.lists(st.lists(st.binary(max_size=150), max_size=4), max_size=5), st.lists(st.integers(0, 200), max_size=5))
def test_what_is_sent_is_cut_to_fit_the_frames_and_the_windows(sent: list[list[bytes]], rooms: list[int]) -> None:
    pipe, stream, _, _ = open_pipe()
    stream.connection.write_ready.set()
    expected = b"".join(framed(b"".join(pieces)) for pieces in sent)
    for pieces in sent:
        pipe.send(*pieces)
    for stream.room in [*rooms, 1 << 30]:
        before = len(stream.frames)
        pipe.flush()
        assert sum(map(len, stream.frames[before:])) <= stream.room
        assert pipe.unsent == len(expected) - len(b"".join(stream.frames))
    assert b"".join(stream.frames) == expected
    assert all(0 < len(frame) <= 100 for frame in stream.frames)


def test_a_socket_that_takes_no_more_holds_back_data_and_what_ends_it_but_not_an_end_alone() -> None:
    """Whoever has nothing left to send closes the pipe, which would take an end along that had not left."""
    pipe, stream, _, _ = open_pipe()
    ready = stream.connection.write_ready
    ready.set()
    pipe.send(b"first")
    pipe.flush()
    ready.clear()
    pipe.send(b"second")
    pipe.flush()
    assert b"".join(stream.frames) == framed(b"first")
    ready.set()
    pipe.flush()
    ready.clear()
    pipe.end([("grpc-status", "0")])
    pipe.flush()
    assert b"".join(stream.frames) == framed(b"first") + framed(b"second")
    assert stream.trailers == [[("grpc-status", "0")]]


@given(st.lists(st.binary(max_size=30), max_size=3), st.binary(min_size=1, max_size=40), st.data())
def test_garbage_ends_the_pipe_or_waits_for_more(sent: list[bytes], garbage: bytes, data: st.DataObject) -> None:
    pipe, stream, messages, closed = open_pipe(limit=100)
    rest = b"".join(map(framed, sent)) + garbage
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        stream.buffer.add(rest[:size], size)
        rest = rest[size:]
    assert messages[: len(sent)] == sent
    stream.buffer.eof()
    stream.buffer.eof()
    assert len(closed) == 1


def test_a_message_that_is_too_long_or_compressed_is_refused() -> None:
    for bad in (b"\0" + (1001).to_bytes(4, "big"), b"\1\0\0\0\0"):
        pipe, stream, messages, closed = open_pipe(limit=1000)
        stream.buffer.add(bad, len(bad))
        assert len(closed) == 1
        assert closed[0]
        assert stream.resets


def test_a_message_that_its_receiver_refuses_ends_the_pipe() -> None:
    stream = ScriptedStream()
    closed: list[str] = []

    def refuse(message: bytes) -> None:
        raise ValueError("not a frame")

    FramePipe(
        stream,  # type: ignore[arg-type]
        on_message=refuse,
        on_close=closed.append,
        max_message=10,
        call_soon=lambda callback: None,
    ).start()
    stream.buffer.add(framed(b"x") + framed(b"y"), 12)
    assert closed == ["not a frame"]

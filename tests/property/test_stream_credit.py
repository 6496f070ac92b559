"""A stream between its worker and its host: chunks of any size, taken at any pace, never stand still nor pass their bound."""

from __future__ import annotations

import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.pool.calls.stream import ChunkStream
from snakepit_trio.pool.scheduling.request import Phase
from snakepit_trio.wire import frames
from snakepit_trio.worker.call import Call

CHUNKS, BYTES = 8, 1000
# Around the whole window of bytes, around half of it, and nothing.
SIZES = st.sampled_from([0, 1, 10, 499, 500, 501, 999, 1000, 1001, 5000])


def payload(size: int) -> frames.Payload:
    return frames.Payload(frames.MSGPACK, bytes(size))


async def nothing() -> None:
    pass


class SizedCall(Call):
    """Its chunks are numbers, and have so many bytes."""

    __slots__ = ()

    def _encode(self, value: Any, what: str) -> frames.Payload:
        return payload(value)


class Stream:
    """Both ends; credits are under way until :meth:`carry`."""

    def __init__(self) -> None:
        self.credits: list[tuple[int, int]] = []
        loop: Any = types.SimpleNamespace(check=nothing)
        self.host = ChunkStream(
            CHUNKS, BYTES, lambda chunk: chunk.size, loop, InternalErrors(),
        )  # fmt: skip
        port = types.SimpleNamespace(credit=lambda request, chunks, size: self.credits.append((chunks, size)))
        request: Any = types.SimpleNamespace(
            phase=Phase.RUNNING, outcome=None, error=None, seats=types.SimpleNamespace(port=port)
        )
        self.host.request = request
        channel: Any = types.SimpleNamespace(send=lambda frame: self.host.put(frame.payload))
        frame = frames.Call(1, stream=True, credits=CHUNKS, credit_bytes=BYTES)
        self.worker = SizedCall(frame, None, channel, None)  # type: ignore[arg-type]

    def make(self, size: int) -> bool:
        """The generator's next chunk, if it may make one."""
        may = bool(self.worker.take_credit())
        if may:
            self.worker.chunk(size)
        return may

    def take(self) -> int:
        """The consumer's next chunk. There must be one: nothing is waited for here."""
        self.host._in_a_row = 0
        with pytest.raises(StopIteration) as done:
            self.host.__anext__().send(None)
        return done.value.value  # type: ignore[no-any-return]

    def carry(self) -> None:
        for chunks, size in self.credits:
            self.worker.credit(chunks, size)
        self.credits.clear()

    @property
    def waiting(self) -> list[int]:
        return [chunk.size for chunk in self.host._chunks]


@given(st.lists(SIZES, max_size=60), st.data())
def test_every_chunk_arrives_and_no_more_wait_than_the_window(sizes: list[int], data: st.DataObject) -> None:
    stream = Stream()
    taken: list[int] = []
    made = 0
    while len(taken) < len(sizes):
        step = data.draw(st.sampled_from(["make", "take", "carry"]))
        if step == "make" and made < len(sizes):
            made += stream.make(sizes[made])
        elif step == "carry":
            stream.carry()
        elif stream.waiting:
            taken.append(stream.take())
        waiting = stream.waiting
        assert len(waiting) <= CHUNKS
        # One chunk may go beyond the window: what came before the last one did not fill it.
        assert sum(waiting[:-1]) < BYTES
        if not waiting and made < len(sizes) and not stream.credits:
            assert stream.make(sizes[made]), "the consumer has taken all, and the generator may not go on"
            made += 1
    assert taken == sizes


@given(SIZES.filter(bool))
def test_a_chunk_beyond_its_credit_is_refused(size: int) -> None:
    stream = Stream()
    while stream.make(size):
        pass
    with pytest.raises(ValueError, match="beyond its credit"):
        stream.host.put(payload(0))


def test_so_is_one_of_a_stream_that_was_left() -> None:
    stream = Stream()
    stream.host.leave()
    for _ in range(CHUNKS):
        stream.host.put(payload(1))
    assert not stream.waiting
    with pytest.raises(ValueError, match="beyond its credit"):
        stream.host.put(payload(1))

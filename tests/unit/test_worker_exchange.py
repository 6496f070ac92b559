"""A worker's exchange without a connection: which frame makes what of a call, and what is written."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from snakepit_trio.wire import codec, frame_reading, frame_writing, frames
from snakepit_trio.wire.http2.grpc_server import GRPCError
from snakepit_trio.worker import exchange as module
from snakepit_trio.worker.adapter import ToolOptions
from snakepit_trio.worker.call import Call
from snakepit_trio.worker.exchange import Exchange
from snakepit_trio.worker.runners import WithoutLoop
from snakepit_trio.worker.toolbox import Tool


def double(n: int = 1) -> int:
    return 2 * n


def count(n: int = 1) -> Iterator[int]:
    yield from range(n)


def quick(n: int = 1) -> int:
    return n


class Pipe:
    """Keeps what is written; how much of that nobody has read, a test says."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.unsent = 0
        self.flushed = 0

    def send(self, *pieces: bytes) -> None:
        self.written.append(frame_reading.decode_worker_frame(b"".join(pieces)))

    def flush(self) -> None:
        self.flushed += 1


class Runner(WithoutLoop):
    """Keeps the calls until a test runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.submitted: list[Call] = []
        self.submit = self.submitted.append

    def lag(self) -> float:
        return 0.25


class Worker:
    """An exchange, what is below it, and what it has said."""

    def __init__(self, threads: int = 1, *, open: bool = True, shared: Any = None) -> None:
        self.pipe, self.runner, self.told = Pipe(), Runner(), cast("list[str]", [])
        self.begun: list[int] = []
        boot = SimpleNamespace(shm_limit=0, max_payload=1 << 20, worker_id="w", unserializable="error", threads=threads)
        tools = [
            Tool(function, ToolOptions(function.__name__, inline=function is quick))
            for function in (double, count, quick)
        ]
        self.exchange = Exchange(
            cast("Any", boot), tools, self.runner,
            on_stop=lambda: self.told.append("stop"), on_drained=lambda: self.told.append("drained"),
            marks=cast("Any", SimpleNamespace(share=None, begin=self.begun.append)), shared=shared,
        )  # fmt: skip
        if open:
            self.exchange._pipe = cast("Any", self.pipe)

    def hear(self, frame: frames.HostFrame) -> list[Any]:
        """What is written because of it, at once."""
        before = len(self.pipe.written)
        self.exchange._on_message(b"".join(frame_writing.encode_pieces(frame)))
        return self.pipe.written[before:]

    def call(self, id: int, tool: str = "double", **fields: Any) -> list[Any]:
        return self.hear(frames.Call(id, tool=tool, payload=codec.encode({}), **fields))

    async def run(self) -> list[Any]:
        """Run all that was submitted; what is written then."""
        before = len(self.pipe.written)
        while self.runner.submitted:
            self.runner.run_sync(self.runner.submitted.pop(0))
        await asyncio.sleep(0)
        return self.pipe.written[before:]


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The I/O of a worker is on asyncio, whatever its tools run on."""

    @functools.wraps(test)
    def run(*args: Any, **fields: Any) -> None:
        asyncio.run(cast("Any", test(*args, **fields)))

    return run


@on_loop
async def test_a_call_from_its_arrival_to_its_reply() -> None:
    worker = Worker()
    assert worker.call(1) == [] and list(worker.exchange.calls) == [1]
    (reply,) = await worker.run()
    assert (reply.id, codec.decode(reply.payload, what="result", limit=100)) == (1, 2)
    assert not worker.exchange.calls and worker.begun == [1]


@on_loop
async def test_by_name_or_by_number() -> None:
    worker = Worker()
    for id, fields in enumerate(
        ({"tool": "double"}, {"tool": "", "tool_index": 1}, {"tool": "count", "tool_index": 1}), 1
    ):
        worker.call(id, **fields)
    assert [call.tool.name for call in worker.runner.submitted] == ["double"] * 3
    assert worker.call(4, "", tool_index=2, stream=True) == []
    assert worker.runner.submitted[-1].tool.name == "count"


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"tool": "none"}, "tool_not_found", "'none'"),
        ({"tool": "", "tool_index": 4}, "tool_not_found", "'number 4'"),
        ({"tool": ""}, "tool_not_found", "number 0"),
        ({"tool": "double", "stream": True}, "streaming_unsupported", "gives one result: make it a generator"),
        ({"tool": "count"}, "streaming_unsupported", "gives a stream: use a streaming call"),
    ],
)
@on_loop
async def test_what_is_refused_at_once(fields: dict[str, Any], code: str, words: str) -> None:
    worker = Worker()
    (reply,) = worker.call(1, **fields)
    assert (reply.id, reply.error.code) == (1, code) and words in reply.error.message
    assert not worker.exchange.calls and not worker.runner.submitted


@on_loop
async def test_a_number_that_is_under_way_is_the_hosts_fault() -> None:
    worker = Worker()
    worker.call(1)
    with pytest.raises(ValueError, match="call 1 is under way already"):
        worker.call(1)
    await worker.run()
    worker.call(1)


@on_loop
async def test_cancel_and_recall_before_it_has_begun() -> None:
    worker = Worker()
    worker.call(1)
    worker.call(2)
    worker.hear(frames.Cancel(1))
    worker.hear(frames.Cancel(2, recall=True))
    cancelled, recalled = await worker.run()
    assert (cancelled.error.code, cancelled.undone) == ("request_cancelled", 0)
    assert (recalled.error, recalled.undone) == (None, frames.NOT_BEGUN)
    assert await worker.run() == [] and not worker.exchange.calls and not worker.begun
    assert worker.hear(frames.Cancel(3)) == []


@on_loop
async def test_cancel_and_recall_after_it_has_begun() -> None:
    worker = Worker(threads=2)
    for id in (1, 2):
        worker.call(id)
        assert worker.exchange.calls[id].claim()
    assert worker.hear(frames.Cancel(1)) == worker.hear(frames.Cancel(2, recall=True)) == []
    assert [worker.exchange.calls[id].cancelled for id in (1, 2)] == [True, False]


@on_loop
async def test_credit_reaches_its_stream() -> None:
    worker = Worker()
    worker.call(1, "count", stream=True, credits=1)
    call = worker.exchange.calls[1]
    assert call.take_credit() and not call.take_credit()
    worker.hear(frames.Credit(1, 1, 10))
    worker.hear(frames.Credit(9, 1, 10))
    assert call.take_credit() and not call.take_credit()


@on_loop
async def test_a_sign_of_life() -> None:
    worker = Worker()
    worker.call(4)
    (pong,) = worker.hear(frames.Ping(3))
    assert (pong.sequence, list(pong.running), pong.lag_us) == (3, [4], 250_000) and pong.rss > 1 << 20


@on_loop
async def test_an_inline_tool_runs_where_it_arrives_if_there_is_a_place() -> None:
    worker = Worker()
    (reply,) = worker.call(1, "quick")
    assert reply.id == 1 and not worker.runner.submitted
    worker.call(2)
    assert worker.call(3, "quick") == []
    assert [call.id for call in worker.runner.submitted] == [2, 3]
    two = Worker(threads=2)
    two.call(1)
    (reply,) = two.call(2, "quick")
    assert reply.id == 2
    shared = Worker(shared=SimpleNamespace(in_user_code=False))
    assert shared.call(1, "quick") == []


@on_loop
async def test_a_call_that_waits_until_its_deadline_is_answered_then() -> None:
    worker = Worker()
    worker.call(1, timeout_us=5_000_000)
    assert worker.exchange._sweeper is None
    worker.call(2, timeout_us=60_000_000)
    worker.call(3, timeout_us=20_000)
    worker.call(4)
    assert worker.exchange.calls[1].claim()
    begun = time.monotonic()
    async with asyncio.timeout(10):
        while len(worker.pipe.written) < 1:
            await asyncio.sleep(0.001)
    assert time.monotonic() - begun >= 0.015
    (late,) = worker.pipe.written
    assert (late.id, late.error.code) == (3, "request_timeout")
    assert list(worker.exchange.calls) == [1, 2, 4]
    # The next that may be late is looked for then.
    sweeper = worker.exchange._sweeper
    assert sweeper is not None and sweeper.when() == worker.exchange.calls[2].deadline
    worker.call(5, timeout_us=70_000_000)
    assert worker.exchange._sweeper is sweeper
    worker.call(6, timeout_us=50_000_000)
    assert sweeper.cancelled()


@on_loop
async def test_one_that_has_begun_is_not_answered_by_its_deadline() -> None:
    worker = Worker()
    worker.call(1)
    worker.call(2, timeout_us=1_000_000)
    call = worker.exchange.calls[2]
    assert call.claim()
    call.deadline = time.monotonic()
    worker.exchange.sweep()
    assert worker.pipe.written == [] and worker.exchange._sweeper is None


@on_loop
async def test_frames_from_other_threads_cost_one_wake_up() -> None:
    worker, woken = Worker(), 0
    loop = asyncio.get_running_loop()
    soon = loop.call_soon_threadsafe

    def counted(*args: Any) -> Any:
        nonlocal woken
        woken += 1
        return soon(*args)

    worker.exchange._loop = cast("Any", SimpleNamespace(call_soon_threadsafe=counted))
    for _ in range(2):
        for n in range(5):
            worker.exchange._send(frames.Chunk(n, codec.encode(n)))
        await asyncio.sleep(0)
    assert woken == 2 and [frame.id for frame in worker.pipe.written] == [*range(5)] * 2


@on_loop
async def test_events_are_dropped_where_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVENTS_WAITING", 5)
    worker = Worker()
    for n in range(10):
        worker.exchange._send(frames.Emit(n, "a", codec.encode([{}, {}])))
    worker.exchange._send(frames.Reply(1))
    await asyncio.sleep(0)
    assert [type(frame) for frame in worker.pipe.written] == [frames.Emit] * 5 + [frames.Reply]
    worker.pipe.unsent = 1 << 20
    worker.exchange._send(frames.Emit(1, "kept", codec.encode([{}, {}])))
    await asyncio.sleep(0)
    worker.pipe.unsent += 1
    worker.exchange._send(frames.Emit(1, "dropped", codec.encode([{}, {}])))
    worker.exchange._send(frames.Reply(2))
    await asyncio.sleep(0)
    assert worker.pipe.written[6].name == "kept" and worker.pipe.written[7].id == 2


# ---- the end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [True, False])
@on_loop
async def test_an_end_lets_what_runs_go_on(asked: bool) -> None:
    worker = Worker(threads=2)
    worker.call(1)
    worker.call(2)
    assert worker.exchange.calls[1].claim()
    if asked:
        assert worker.hear(frames.Stop(60_000_000)) == []
        # What waits here may still be run.
        assert list(worker.exchange.calls) == [1, 2]
    else:
        worker.exchange.stop(60.0)
        await asyncio.sleep(0)
        leaving, undone = worker.pipe.written
        assert type(leaving) is frames.Leaving and (undone.id, undone.undone) == (2, frames.NOT_BEGUN)
    assert worker.told == ["stop"]
    (refused,) = worker.call(3)
    assert (refused.id, refused.undone) == (3, frames.NOT_BEGUN)
    assert not worker.exchange.calls[1].cancelled
    for call in list(worker.exchange.calls.values()):
        worker.exchange._write(frames.Reply(call.id))
    assert worker.told == ["stop", "drained"]
    worker.exchange.stop(0.0)
    worker.exchange.note_drained()
    assert worker.told == ["stop", "drained"]


@on_loop
async def test_after_the_grace_all_are_stopped() -> None:
    worker = Worker()
    worker.call(1)
    worker.call(2)
    call = worker.exchange.calls[1]
    assert call.claim()
    worker.hear(frames.Stop(20_000))
    assert not call.cancelled
    begun = time.monotonic()
    async with asyncio.timeout(10):
        while not call.stopped or not worker.pipe.written:
            await asyncio.sleep(0.001)
    assert time.monotonic() - begun >= 0.015
    assert [(reply.id, reply.undone) for reply in worker.pipe.written] == [(2, frames.NOT_BEGUN)]


@on_loop
async def test_an_end_at_once() -> None:
    worker = Worker()
    worker.call(1)
    call = worker.exchange.calls[1]
    assert call.claim()
    worker.hear(frames.Stop(0))
    assert call.stopped and worker.told == ["stop"]
    idle = Worker()
    idle.hear(frames.Stop(60_000_000))
    assert idle.told == ["stop", "drained"]


@on_loop
async def test_a_host_that_has_gone() -> None:
    worker = Worker()
    worker.call(1)
    call = worker.exchange.calls[1]
    assert call.claim() and not worker.exchange.abandoned
    worker.exchange._lose()
    assert worker.exchange.host_lost and worker.exchange.abandoned and call.stopped
    asked = Worker()
    asked.hear(frames.Stop(0))
    asked.exchange._lose()
    assert not asked.exchange.host_lost


@on_loop
async def test_a_worker_whose_host_does_not_come() -> None:
    met, unmet = Worker(open=False), Worker(open=False)
    met.exchange.met = True
    for worker in (met, unmet):
        assert worker.exchange.abandoned
        worker.exchange.stop_unmet()
    assert (met.told, unmet.told) == ([], ["stop", "drained"])


@on_loop
async def test_one_host_for_one_worker() -> None:
    worker = Worker()
    with pytest.raises(GRPCError, match="has its host already"):
        await worker.exchange.serve(None)
    stopping = Worker(open=False)
    stopping.exchange.stop(0.0)
    with pytest.raises(GRPCError):
        await stopping.exchange.serve(None)
    for opened, prefix in ((worker, ""), (Worker(open=False), "run-")):
        opened.exchange.name_requests("run-")
        assert opened.exchange._channel.prefix == prefix
    assert worker.exchange.share_memory(1, 1, b"") is False


@on_loop
async def test_what_a_tool_has_left_to_be_sent_leaves_in_one_flush() -> None:
    worker = Worker()
    worker.exchange.flush()
    assert worker.pipe.flushed == 0
    worker.exchange._send(frames.Reply(1))
    worker.exchange.flush()
    assert worker.pipe.flushed == 1 and worker.pipe.written == [frames.Reply(1)]
    assert not worker.exchange._flushing
    unheard = Worker(open=False)
    unheard.exchange._send(frames.Reply(1))
    unheard.exchange.flush()


class Shared:
    """Counts the turns that are taken in the middle of a tool."""

    def __init__(self) -> None:
        self.owner, self.turns, self.poked, self.waits, self.in_user_code = True, 0, 0, cast("list[Any]", []), False

    def is_owner(self) -> bool:
        return self.owner

    def turn(self) -> None:
        self.turns += 1

    def poke(self, callback: Callable[[], None]) -> None:
        self.poked += 1

    def wait(self, condition: Callable[[], bool], until: float | None) -> None:
        self.waits.append(until)


@on_loop
async def test_chunks_of_the_thread_that_also_does_the_io(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first at once; those that follow quickly, 32 together or after half a millisecond."""
    shared, now = Shared(), 100.0
    worker = Worker(shared=shared)
    monkeypatch.setattr(module.time, "monotonic", lambda: now)

    def send() -> int:
        worker.exchange._send(frames.Chunk(1, codec.encode(1)))
        return shared.turns

    assert send() == 1
    worker.exchange.flush()
    assert worker.exchange._flushed_at == now
    now += 0.0004
    assert [send() for _ in range(33)] == [1] * 31 + [2, 3]
    worker.exchange.flush()
    now += 0.0006
    worker.exchange._send(frames.Reply(1))
    assert shared.turns == 3
    assert send() == 4
    shared.owner = False
    assert send() == 4 and worker.exchange.wait(lambda: True, 5.0) is False
    shared.owner = True
    assert worker.exchange.wait(lambda: True, 5.0) is True and shared.waits == [5.0]
    assert shared.poked == 3


@on_loop
async def test_a_worker_without_such_a_thread_waits_for_nothing_itself() -> None:
    assert Worker().exchange.wait(lambda: True, None) is False


@on_loop
async def test_deadlines_are_looked_after_while_a_tool_runs() -> None:
    shared = Shared()
    worker = Worker(shared=shared)
    worker.call(1)
    worker.call(2, timeout_us=60_000_000)
    assert worker.exchange._sweeper is None
    shared.in_user_code = True
    worker.call(3, timeout_us=60_000_000)
    assert worker.exchange._sweeper is not None

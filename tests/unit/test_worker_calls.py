"""A worker's calls without a worker: what is sent for each, in whatever way it goes, and what its tool is given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio.errors import ConnectionLost, InvalidParameter, RequestTimeout, WouldDeadlock
from snakepit_trio.wire import codec, failures, frames
from snakepit_trio.worker import host_calls, main_thread
from snakepit_trio.worker.adapter import ToolOptions
from snakepit_trio.worker.call import Call, Channel
from snakepit_trio.worker.host_calls import HostCalls
from snakepit_trio.worker.main_thread import MainThreadRunner
from snakepit_trio.worker.runners import SyncRunner, WithoutLoop
from snakepit_trio.worker.toolbox import Tool


class Host:
    """The other end: keeps what is sent."""

    def __init__(self, **options: Any) -> None:
        self.sent: list[Any] = []
        self.begun: list[int] = []
        self.waits: list[float | None] = []
        self.waited = threading.Semaphore(0)
        self.drives = False
        self.host_calls = HostCalls(lambda: lambda callback: callback(), self.wait)
        given: dict[str, Any] = {"limit": 1000, "unserializable": "error", **options}
        self.channel = Channel(
            send=self.sent.append, wait=self.wait, begin=self.begun.append, lend=lambda payload: payload,
            host_calls=self.host_calls, prefix="run-", worker_id="w", **given,
        )  # fmt: skip

    def wait(self, condition: Callable[[], bool], until: float | None) -> bool:
        self.waits.append(until)
        self.waited.release()
        return self.drives

    def call(self, function: Any, params: Any = None, *, timeout: float | None = None, **fields: Any) -> Call:
        inline = fields.pop("inline", False)
        tool = Tool(function, ToolOptions(function.__name__, inline=inline))
        payload = codec.encode(params or {})
        frame = frames.Call(7, payload=payload, stream=tool.kind.streaming, **fields)
        return Call(frame, tool, self.channel, timeout)

    def run(self, function: Any, params: Any = None, **fields: Any) -> list[Any]:
        """What is sent for one call."""
        WithoutLoop().run_sync(self.call(function, params, **fields))
        return self.sent

    def reply(self) -> frames.Reply:
        (found,) = [frame for frame in self.sent if type(frame) is frames.Reply]
        assert found.id == 7
        return found

    def error(self) -> frames.ErrorInfo:
        found = self.reply()
        assert found.error is not None and found.payload is None and not found.undone
        return found.error


def double(n: int) -> int:
    return 2 * n


def count(n: int) -> Iterator[int]:
    yield from range(n)


def value(payload: frames.Payload | None) -> Any:
    return None if payload is None else codec.decode(payload, what="value", limit=1000)


def test_a_result() -> None:
    host = Host()
    host.run(double, {"n": 4})
    assert value(host.reply().payload) == 8
    assert (host.reply().error, host.reply().undone) == (None, 0)
    assert host.begun == [7]


def test_what_a_tool_may_know() -> None:
    seen: list[Any] = []

    def look(ctx: sp.ToolContext) -> None:
        seen.extend([ctx.request_id, ctx.session_id, ctx.worker_id, ctx.attempt, dict(ctx.metadata), repr(ctx)])

    Host().run(look, attempt=3, session_id="s", metadata={"k": "v"})
    assert seen == ["run-7", "s", "w", 3, {"k": "v"}, "<ToolContext run-7 attempt=3>"]
    seen.clear()
    Host().run(look)
    assert seen[1] is None


@pytest.mark.parametrize(
    ("params", "code", "path"),
    [({}, "invalid_parameter", 'params["n"]'), ({"n": "x"}, "invalid_parameter", 'params["n"]')],
)
def test_arguments_that_do_not_fit(params: Any, code: str, path: str) -> None:
    host = Host()
    host.run(double, params)
    error = host.error()
    assert error.code == code and value(error.details)["path"] == path
    # Its host is to know that it has begun: the arguments are read after that.
    assert host.begun == [7]


def test_what_a_tool_raises_and_what_it_may_not_return() -> None:
    def fail() -> None:
        raise LookupError("password=hunter2")

    host = Host()
    host.run(fail)
    assert host.error().remote_types[0] == "builtins.LookupError" and "hunter2" not in host.error().remote_message
    for result, options in ((object(), {}), (b"x" * 2000, {}), (object(), {"limit": 10})):
        host = Host(**options)

        def give(result: Any = result) -> Any:
            return result

        host.run(give)
        assert host.error().code == "invalid_payload"


def test_an_interrupt_is_the_tools_own_too() -> None:
    def leave() -> None:
        raise SystemExit(3)

    host = Host()
    host.run(leave)
    assert host.error().remote_types[0] == "builtins.SystemExit"


def test_one_that_has_waited_until_its_deadline_does_not_begin() -> None:
    host = Host()
    call = host.call(double, {"n": 1}, timeout=1000)
    assert call.deadline is not None and 990 < call.deadline - time.monotonic() <= 1000
    call.deadline = time.monotonic()
    WithoutLoop().run_sync(call)
    assert (host.error().code, value(host.error().details)) == ("request_timeout", {"phase": "queued"})
    assert not host.begun


@pytest.mark.parametrize(
    ("stopped", "undone", "code"), [(False, 0, "request_cancelled"), (True, frames.NOT_BEGUN, None)]
)
def test_one_that_is_cancelled_before_it_has_begun(stopped: bool, undone: int, code: str | None) -> None:
    host = Host()
    call = host.call(double, {"n": 1})
    call.cancel(stopped=stopped)
    WithoutLoop().run_sync(call)
    reply = host.reply()
    assert (reply.undone, reply.error and reply.error.code) == (undone, code)
    assert not host.begun


@pytest.mark.parametrize("first", ["caller", "worker"])
def test_who_cancels_first_says_why(first: str) -> None:
    host = Host()
    call = host.call(double)
    call.cancel(stopped=first == "worker")
    call.cancel(stopped=first == "caller")
    call.end_cancelled()
    if first == "worker":
        assert host.reply().undone == frames.STOPPED
    else:
        assert host.error().code == "request_cancelled"


def test_a_cancellation_that_a_tool_raises_is_one_only_when_it_was_cancelled() -> None:
    for cancelled, code in ((True, "request_cancelled"), (False, "request_cancelled")):
        host = Host()
        call = host.call(double)
        if cancelled:
            call.cancel()
        call.fail(sp.RequestCancelled("mine"))
        assert host.error().code == code
        assert (host.error().message == "cancelled") is cancelled
    host = Host()
    call = host.call(double)
    call.cancel()
    call.fail(LookupError("other"))
    assert host.error().remote_types[0] == "builtins.LookupError"


def test_one_is_claimed_once() -> None:
    host = Host()
    call = host.call(double, {"n": 1})
    assert call.unclaimed and call.claim() and not call.unclaimed and not call.claim()
    WithoutLoop().run_sync(call)
    assert not host.sent


def test_one_of_many_who_ask_at_once_decides() -> None:
    for _ in range(50):
        call, ready = Host().call(double), threading.Barrier(4)
        got: list[bool] = []

        def ask(call: Call = call, ready: threading.Barrier = ready, got: list[bool] = got) -> None:
            ready.wait(10)
            got.append(call.claim())

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(got) == [False, False, False, True]


# ---- streams -----------------------------------------------------------------------------------------


def test_chunks_and_their_end() -> None:
    host = Host()
    host.run(count, {"n": 3}, credits=10)
    assert [value(frame.payload) for frame in host.sent[:3]] == [0, 1, 2]
    assert host.reply() == frames.Reply(7)
    assert len(host.sent) == 4


@pytest.mark.parametrize(("credits", "room"), [(2, 0), (10, 2)])
def test_a_generator_waits_for_room(credits: int, room: int) -> None:
    """By number and by bytes: a number takes one byte."""
    host = Host()
    call = host.call(count, {"n": 5}, credits=credits, credit_bytes=room)
    thread = threading.Thread(target=WithoutLoop().run_sync, args=[call])
    thread.start()
    assert host.waited.acquire(timeout=10)
    assert len(host.sent) == 2
    assert call.take_credit() is False
    call.credit(100, 0 if not room else 1)
    if room:
        assert host.waited.acquire(timeout=10)
        assert len(host.sent) == 3
        call.credit(0, 100)
    thread.join(10)
    assert [value(frame.payload) for frame in host.sent[:5]] == list(range(5))
    assert host.reply() == frames.Reply(7)


def test_the_last_chunk_may_have_more_bytes_than_there_is_room_and_the_next_waits_for_all_of_them() -> None:
    call = Host().call(count, credits=10, credit_bytes=100)
    assert call.take_credit()
    call.chunk(b"x" * 500)
    over = codec.encode(b"x" * 500).size - 100
    assert call.take_credit() is False
    call.credit(0, over)
    assert call.take_credit() is False
    call.credit(0, 1)
    assert call.take_credit() is True


@pytest.mark.parametrize("stopped", [False, True])
def test_who_is_gone_takes_no_chunk_whatever_room_there_was(stopped: bool) -> None:
    call = Host().call(count, credits=5)
    call.cancel(stopped=stopped)
    assert call.take_credit() is None and call.wait_credit() is False


@pytest.mark.parametrize("stopped", [False, True])
def test_a_generator_whose_caller_leaves_is_closed(stopped: bool) -> None:
    closed = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.get_ident())

    host = Host()
    call = host.call(endless, credits=1)
    thread = threading.Thread(target=WithoutLoop().run_sync, args=[call])
    thread.start()
    assert host.waited.acquire(timeout=10)
    call.cancel(stopped=stopped)
    thread.join(10)
    assert closed == [thread.ident]
    if stopped:
        assert host.reply().undone == frames.STOPPED
    else:
        assert host.error().code == "request_cancelled"
    assert call.take_credit() is None


def test_credits_on_an_event_loop() -> None:
    host = Host()
    call = host.call(count, {"n": 5}, credits=1, credit_bytes=1)
    woken: list[bool] = []
    call.wake = lambda: woken.append(True)
    assert call.take_credit() is True
    assert call.take_credit() is False
    call.chunk(1)
    call.credit(1, 0)
    assert call.take_credit() is False
    call.credit(0, 1)
    assert call.take_credit() is True
    call.cancel()
    assert len(woken) == 3
    assert call.take_credit() is None
    call.end_stream()
    assert host.error().code == "request_cancelled"


# ---- events ------------------------------------------------------------------------------------------


def test_an_event() -> None:
    host = Host()
    host.call(double).emit("mine.done", {"n": 1, "x": 0.5}, {"token": "hunter2", "who": "me"})
    (sent,) = host.sent
    assert (type(sent), sent.call_id, sent.name) == (frames.Emit, 7, "mine.done")
    assert value(sent.payload) == [{"n": 1, "x": 0.5}, {"token": "[redacted]", "who": "me"}]


@pytest.mark.parametrize(
    ("name", "measurements", "metadata", "path"),
    [
        ("", {}, {}, "event"), ("1a", {}, {}, "event"), ("a" * 129, {}, {}, "event"), (3, {}, {}, "event"),
        ("worker.ready", {}, {}, "event"), ("a", {1: 1}, {}, "measurements"), ("a", {"n": True}, {}, "measurements['n']"),
        ("a", {"n": "1"}, {}, "measurements['n']"), ("a", {}, {1: 1}, "metadata"),
    ],
)  # fmt: skip
def test_events_that_are_refused(name: Any, measurements: Any, metadata: Any, path: str) -> None:
    host = Host()
    with pytest.raises(InvalidParameter) as refused:
        host.call(double).emit(name, measurements, metadata)
    assert refused.value.details["path"] == path and not host.sent


def test_the_largest_event() -> None:
    host = Host()
    call = host.call(double)
    call.emit("a" * 128, {}, {"k": "x " * 8000})
    with pytest.raises(InvalidParameter):
        call.emit("a", {}, {"k": "x " * 8300})
    assert len(host.sent) == 1


# ---- calls to the host -------------------------------------------------------------------------------


def entered(host: Host, function: Any = double, **fields: Any) -> Call:
    call = host.call(function, {"n": 1}, **fields)
    call.enter()
    return call


def answering(host: Host, reply: Callable[[frames.HostCall], frames.HostReply | None]) -> None:
    """Answers as soon as something is asked."""

    def send(frame: Any) -> None:
        host.sent.append(frame)
        if type(frame) is frames.HostCall and (found := reply(frame)) is not None:
            host.host_calls.resolve(found)

    host.channel.send = send


def test_what_a_host_is_asked_and_answers() -> None:
    host = Host()
    answering(host, lambda asked: frames.HostReply(asked.id, asked.payload))
    call = entered(host)
    assert call.context.call_host_sync("theirs", {"a": 1}) == {"a": 1}
    assert call.context.call_host_sync("theirs") == {}
    assert [(one.id, one.call_id, one.name, one.timeout_us) for one in host.sent] == [
        (1, 7, "theirs", 0),
        (2, 7, "theirs", 0),
    ]
    assert host.waits == [None, None]
    # One that is not waited for any more, or never was.
    host.host_calls.resolve(frames.HostReply(1))
    host.host_calls.resolve(frames.HostReply(99))


def test_nothing_and_an_error_from_the_host() -> None:
    host = Host()
    answering(host, lambda asked: frames.HostReply(asked.id))
    assert entered(host).context.call_host_sync("theirs") is None
    info = failures.to_info(sp.ToolNotFound("no such"))
    answering(host, lambda asked: frames.HostReply(asked.id, None, info))
    with pytest.raises(sp.ToolNotFound, match="no such"):
        entered(host).context.call_host_sync("theirs")


@pytest.mark.parametrize(
    ("of_call", "given", "left"), [(None, 0.02, 0.02), (0.02, None, 0.02), (0.02, 60.0, 0.02), (60.0, 0.02, 0.02)]
)
def test_the_nearer_of_two_ends(of_call: float | None, given: float | None, left: float) -> None:
    host = Host()
    call = entered(host, timeout=of_call)
    begun = time.monotonic()
    with pytest.raises(RequestTimeout) as late:
        call.context.call_host_sync("theirs", timeout=given)
    assert time.monotonic() - begun >= left - 0.01
    assert late.value.details == {"phase": "host_call", "tool": "theirs"}
    asked, cancelled = host.sent
    assert 0 < asked.timeout_us <= left * 1e6
    assert cancelled == frames.HostCancel(asked.id)
    (until,) = host.waits
    assert until is not None and begun < until <= begun + left + 1


def test_a_time_that_is_over_is_a_microsecond() -> None:
    host = Host()
    call = entered(host, timeout=100)
    call.deadline = time.monotonic() - 1
    with pytest.raises(RequestTimeout):
        call.context.call_host_sync("theirs")
    assert host.sent[0].timeout_us == 1


def test_who_drives_the_loop_does_not_wait_otherwise() -> None:
    host = Host()
    host.drives = True
    with pytest.raises(RequestTimeout):
        entered(host, timeout=100).context.call_host_sync("theirs")
    assert host.waits[0] is not None


@pytest.mark.parametrize("stopped", [False, True])
def test_a_cancel_ends_what_waits_for_the_host(stopped: bool) -> None:
    host = Host()
    call, other = entered(host), entered(host)
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            call.context.call_host_sync("theirs")
        except BaseException as exc:
            ended.append(exc)

    thread = threading.Thread(target=ask)
    thread.start()
    assert host.waited.acquire(timeout=10)
    other.cancel()
    assert thread.is_alive()
    call.cancel(stopped=stopped)
    thread.join(10)
    assert type(ended[0]) is sp.RequestCancelled
    # The host ends such calls itself, with the request that they are for.
    assert [type(frame) for frame in host.sent] == [frames.HostCall]
    with pytest.raises(sp.RequestCancelled):
        call.context.call_host_sync("again")
    assert len(host.sent) == 1 and not host.host_calls._pending


@pytest.mark.parametrize(
    ("name", "params", "path"),
    [
        ("a" * 257, None, "name"),
        (3, None, "name"),
        ("a\n", None, "name"),
        ("a", [1], "params"),
        ("a", {"b": object()}, 'params["b"]'),
    ],
)
def test_what_a_host_is_not_asked(name: Any, params: Any, path: str) -> None:
    host = Host()
    with pytest.raises(InvalidParameter) as refused:
        entered(host).context.call_host_sync(name, params)
    assert refused.value.details["path"] == path and not host.sent
    answering(host, lambda asked: frames.HostReply(asked.id))
    entered(host).context.call_host_sync("a" * 256)


def test_who_can_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    with pytest.raises(WouldDeadlock, match="inline"):
        entered(host, inline=True).context.call_host_sync("theirs")
    monkeypatch.setattr(host_calls._forks, "forked", True)
    with pytest.raises(ConnectionLost, match="has forked") as refused:
        entered(host).context.call_host_sync("theirs")
    assert not refused.value.retryable and not host.sent
    for method in (WithoutLoop().portal, lambda: WithoutLoop().ask(None, None)):  # type: ignore[arg-type]
        with pytest.raises(RuntimeError):
            method()
    assert WithoutLoop().lag() == 0


@pytest.mark.anyio
async def test_asking_on_an_event_loop() -> None:
    host = Host()
    answering(host, lambda asked: frames.HostReply(asked.id, asked.payload) if asked.name == "echo" else None)
    call = entered(host)
    assert await call.context.call_host("echo", {"a": 1}) == {"a": 1}
    with pytest.raises(RequestTimeout):
        await call.context.call_host("never", timeout=0.01)
    assert [type(frame) for frame in host.sent[1:]] == [frames.HostCall, frames.HostCancel]
    with anyio.move_on_after(0.01) as scope:
        await call.context.call_host("never")
    assert scope.cancelled_caught and type(host.sent[-1]) is frames.HostCancel
    async with anyio.create_task_group() as nursery:

        async def ask() -> None:
            with pytest.raises(sp.RequestCancelled):
                await call.context.call_host("never")

        nursery.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        call.cancel()


# ---- runners -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: SyncRunner(2), MainThreadRunner], ids=["threads", "main thread"])
def test_the_life_of_a_runner(make: Callable[[], Any]) -> None:
    """Setup, ready, the calls that were put before the end, teardown."""
    runner = make()
    host, order = Host(), []

    def note(n: int) -> None:
        order.append(n)

    def ready() -> None:
        order.append("ready")
        for n in range(3):
            runner.submit(host.call(note, {"n": n}))
        runner.stop()

    if isinstance(runner, MainThreadRunner):
        # Its loop never waits here.
        runner.shared.step = runner.shared.look  # type: ignore[method-assign]
    runner.main(lambda: order.append("before"), ready, lambda: order.append("after"))
    if isinstance(runner, MainThreadRunner):
        runner.shared.close()
    assert order[:2] == ["before", "ready"] and order[-1] == "after"
    assert sorted(order[2:-1]) == [0, 1, 2]
    assert len(host.sent) == 3


class MainThread(MainThreadRunner):
    """Runs calls on a clock of its own, and notes what is done between them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 100.0
        self.done: list[Any] = []
        self.calls: list[Call] = []
        monkeypatch.setattr(main_thread.time, "monotonic", lambda: self.now)
        self.flush = lambda: self.done.append("flush")
        for name in ("step", "look", "leave", "come_back"):
            setattr(self.shared, name, lambda name=name: self.done.append(name))

    def all(self, *calls: tuple[float, bool]) -> list[Any]:
        """What is done for calls that arrived together, each as its time in milliseconds and whether it is inline."""
        host = Host()
        for took, inline in calls:

            def tool(took: float = took) -> None:
                self.done.append(took)
                self.now += took / 1000

            call = host.call(tool, inline=inline)
            call.tool.took = took / 1000
            self.submit(call)
            self.calls.append(call)
        self.stop()
        self._work()
        self.shared.close()
        return self.done


def test_short_calls_are_answered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    made = MainThread(monkeypatch)
    found = made.all((0.1, False), (0.2, False), (0.1, True))
    assert found == ["step", "leave", 0.1, "come_back", "leave", 0.2, "come_back", 0.1, "flush"]
    assert [call.tool.took for call in made.calls] == pytest.approx([0.0001, 0.0002, 0.0001])


def test_no_answer_waits_for_a_long_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that took long the last time, or enough short ones: half a millisecond in all."""
    assert MainThread(monkeypatch).all((0.1, True), (0.45, True), (0.1, True)) == [
        "step", 0.1, "flush", "look", 0.45, "flush", "look", 0.1, "flush",
    ]  # fmt: skip
    assert MainThread(monkeypatch).all(*[(0.125, True)] * 6) == [
        "step", 0.125, 0.125, 0.125, 0.125, "flush", "look", 0.125, 0.125, "flush",
    ]  # fmt: skip

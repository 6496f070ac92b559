"""What the main thread does with calls and its loop, step by step: the loop is a record of what it was asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from snakepit_trio.wire import codec, frames
from snakepit_trio.worker import main_thread
from snakepit_trio.worker.adapter import ToolOptions
from snakepit_trio.worker.call import Call, Channel
from snakepit_trio.worker.host_calls import HostCalls
from snakepit_trio.worker.main_thread import MainThreadRunner
from snakepit_trio.worker.runners import Runner, SyncRunner
from snakepit_trio.worker.toolbox import Tool


def nothing() -> None: ...


class Loop:
    """Stands for the shared loop: a script of what arrives, and a record of what was asked of it."""

    def __init__(self, on_turn: Callable[[], None], on_relief: Callable[[], None]) -> None:
        self.did: list[str] = []
        self.arrivals: list[Callable[[], object]] = []
        self.looks: list[Callable[[], object]] = []

    def step(self) -> None:
        self.did.append("step")
        self.arrivals.pop(0)()

    def look(self) -> None:
        self.did.append("look")
        if self.looks:
            self.looks.pop(0)()

    def leave(self) -> None:
        self.did.append("leave")

    def come_back(self) -> None:
        self.did.append("back")


class Main:
    """A runner on that loop and a clock of the test's; each tool takes the time that it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(main_thread, "SharedLoop", Loop)
        monkeypatch.setattr(main_thread, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.now = 0.0
        self.channel = Channel(
            send=lambda frame: None, wait=lambda condition, until: False, begin=lambda number: None, lend=lambda payload: payload,
            host_calls=HostCalls(pytest.fail, lambda condition, until: False), prefix="", worker_id="w", limit=1000,
            unserializable="error",
        )  # fmt: skip
        self.runner = MainThreadRunner()
        self.loop: Any = self.runner.shared
        self.did: list[str] = self.loop.did
        self.runner.flush = lambda: self.did.append("flush")

    def call(self, name: str, takes: float, took: float, *, inline: bool = False) -> Any:
        """A call of a tool that takes so many seconds now, and has taken so many."""

        def tool() -> None:
            self.did.append(name)
            self.now += takes

        frame = frames.Call(len(self.did) + 1, payload=codec.encode({}))
        call = Call(frame, Tool(tool, ToolOptions(name, inline=inline)), self.channel, None)
        call.tool.took = took
        return call

    def run(self, *arrivals: list[Any]) -> list[str]:
        """What happens when these arrive, one list in each iteration of the loop, and then the end."""
        self.loop.arrivals = [lambda calls=calls: [self.runner.submit(call) for call in calls] for calls in arrivals]
        self.loop.arrivals.append(self.runner.stop)
        self.runner.main(nothing, nothing, lambda: self.did.append("after"))
        assert self.did[-5:] == ["step", "flush", "leave", "after", "back"]
        return self.did[:-5]


@pytest.mark.parametrize(
    ("first", "next_took"),
    # The last one has taken its time; the next one may; nobody knows how long the next one takes.
    [(0.0006, 0.0001), (0.0001, 0.0005), (0.0, float("inf"))],
)
def test_an_answer_does_not_wait_for_a_long_tool(
    monkeypatch: pytest.MonkeyPatch, first: float, next_took: float
) -> None:
    main = Main(monkeypatch)
    did = main.run([main.call("a", first, 0.0), main.call("b", 0.0, next_took)])
    assert did == ["step", "leave", "a", "back", "flush", "look", "leave", "b", "back", "flush"]


def test_news_between_two_calls_may_be_that_the_second_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    main = Main(monkeypatch)
    second = main.call("b", 0.0, float("inf"))
    main.loop.looks = [second.claim]
    assert "b" not in main.run([main.call("a", 0.0, 0.0), second])


def test_calls_that_arrive_between_two_run_before_the_loop_waits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    main = Main(monkeypatch)
    main.loop.looks = [lambda: main.runner.submit(main.call("c", 0.0, 0.0))]
    did = main.run([main.call("a", 0.0, 0.0), main.call("b", 0.0, float("inf"))])
    assert [what for what in did if what in "abc" or what == "step"] == ["step", "a", "b", "c"]


def test_for_an_inline_tool_the_thread_keeps_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    main = Main(monkeypatch)
    assert main.run([main.call("a", 0.0, 0.0, inline=True)], []) == ["step", "a", "flush", "step", "flush"]


def test_calls_that_came_before_the_stop_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    main = Main(monkeypatch)
    call = main.call("a", 0.0, 0.0)

    def both() -> None:
        main.runner.submit(call)
        main.runner.stop()

    main.loop.arrivals = [both]
    main.runner.main(nothing, nothing, nothing)
    assert main.did == ["step", "leave", "a", "back", "flush", "leave", "back"]


def test_the_loop_is_the_owners_again_whatever_teardown_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    main = Main(monkeypatch)
    main.loop.arrivals = [main.runner.stop]

    def fails() -> None:
        raise OSError("x")

    with pytest.raises(OSError):
        main.runner.main(nothing, nothing, fails)
    assert main.did == ["step", "flush", "leave", "back"]


@pytest.mark.parametrize("make", [lambda: SyncRunner(1), MainThreadRunner])
def test_a_setup_that_fails_is_not_torn_down_and_a_worker_that_can_not_listen_is(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Runner]
) -> None:
    monkeypatch.setattr(main_thread, "SharedLoop", Loop)
    happened: list[str] = []

    def fails() -> None:
        raise OSError("x")

    with pytest.raises(OSError):
        make().main(fails, lambda: happened.append("ready"), lambda: happened.append("after"))
    assert happened == []
    with pytest.raises(OSError):
        make().main(lambda: happened.append("before"), fails, lambda: happened.append("after"))
    assert happened == ["before", "after"]


def test_threads_run_as_many_calls_at_once_as_there_are_and_end_with_what_was_put(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main, runner = Main(monkeypatch), SyncRunner(2)
    together = threading.Barrier(2)
    met: list[bool] = []

    def ready() -> None:
        for _ in range(4):
            call = main.call("a", 0.0, 0.0)
            call.tool.function = lambda: met.append(together.wait(10) < 2)
            runner.submit(call)
        runner.stop()

    runner.main(nothing, ready, nothing)
    assert met == [True] * 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("snakepit-tool")]

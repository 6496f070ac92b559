"""The loop that a worker's main thread drives between calls, and a second thread beside them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from snakepit_trio.worker import shared_loop
from snakepit_trio.worker.shared_loop import SharedLoop


class Loop:
    """A shared loop that this thread owns, begun, with a coroutine that ends when it is told to."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.turned, self.relieved = threading.Event(), threading.Event()
        self.shared = SharedLoop(lambda: self.note("turn", self.turned), lambda: self.note("relief", self.relieved))
        self.ready = False

    def note(self, what: str, event: threading.Event) -> None:
        self.told.append(what)
        event.set()

    async def main(self) -> None:
        self.end = asyncio.Event()
        self.ready = True
        await self.end.wait()

    def soon(self, event: threading.Event) -> None:
        self.shared.loop.call_soon_threadsafe(event.set)


@contextmanager
def begun() -> Iterator[Loop]:
    made = Loop()
    made.shared.start(made.main(), lambda: made.ready)
    try:
        yield made
    finally:
        made.end.set()
        made.shared.close()
    assert made.shared.loop.is_closed() and not made.shared._relief.is_alive()


@contextmanager
def user_code(made: Loop) -> Iterator[None]:
    made.shared.leave()
    try:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        yield
    finally:
        made.shared.come_back()


def from_elsewhere(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(10)
    return found[0]


def test_a_failure_before_the_start_is_raised() -> None:
    made = Loop()

    async def fail() -> None:
        raise LookupError("at once")

    with pytest.raises(LookupError, match="at once"):
        made.shared.start(fail(), lambda: False)
    made.shared.close()


def test_a_failure_at_the_end_is_raised() -> None:
    made = Loop()

    async def fail() -> None:
        await made.main()
        raise LookupError("late")

    made.shared.start(fail(), lambda: made.ready)
    made.end.set()
    with pytest.raises(LookupError, match="late"):
        made.shared.close()
    assert made.shared.loop.is_closed()


def test_one_that_was_never_begun_is_closed() -> None:
    made = Loop()
    made.shared.close()
    assert made.shared.loop.is_closed()


def test_between_calls_the_owner_drives_it() -> None:
    with begun() as made:
        ran: list[int] = []
        made.shared.loop.call_soon(lambda: ran.append(threading.get_ident()))
        made.shared.step()
        assert ran == [threading.get_ident()] and asyncio.get_running_loop() is made.shared.loop
        made.shared.look()
        assert made.shared.is_owner() and from_elsewhere(made.shared.is_owner) is False
        assert not made.shared.in_user_code and not made.told


def test_beside_a_long_call_another_thread_does() -> None:
    with begun() as made:
        for _ in range(2):
            seen, threads = threading.Event(), list[Any]()
            begun_at = time.monotonic()
            with user_code(made):
                made.shared.loop.call_soon_threadsafe(
                    lambda seen=seen, threads=threads: (
                        threads.append((threading.current_thread().name, made.shared.in_user_code)),
                        seen.set(),
                    )
                )
                assert seen.wait(10)
                assert time.monotonic() - begun_at < 5
            assert threads == [("snakepit-io", True)]
            assert not made.shared.in_user_code
        # What the tools have to say is sent first, and late calls are looked after.
        assert made.told == ["turn", "relief"] * 2


def test_beside_short_calls_nobody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_loop, "PATIENCE", 60.0)
    with begun() as made:
        for _ in range(100):
            with user_code(made):
                pass
        assert not made.told


def test_what_another_thread_sends_during_a_call_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_loop, "PATIENCE", 60.0)
    with begun() as made:
        seen = threading.Event()
        with user_code(made):
            from_elsewhere(lambda: made.shared.poke(seen.set))
            assert seen.wait(10)
            assert made.told == ["turn", "relief"]
            # The owner's own callback goes to the thread that drives it now.
            again = threading.Event()
            made.shared.poke(again.set)
            assert again.wait(10)
        made.end.set()
        # The relief thread waits for its patience; this ends it.
        made.shared._signals.put(False)


def test_what_the_owner_sends_outside_and_inside_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_loop, "PATIENCE", 60.0)
    with begun() as made:
        ran: list[str] = []
        made.shared.poke(lambda: ran.append("outside"))
        made.shared.look()
        assert ran == ["outside"]
        with user_code(made):
            # It waits until the call is over, when all that is to be said is sent.
            made.shared.poke(lambda: ran.append("inside"))
        made.shared.look()
        assert ran == ["outside"]


def test_a_turn_in_the_middle_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_loop, "PATIENCE", 60.0)
    with begun() as made:
        ran: list[int] = []
        with user_code(made):
            made.shared.loop.call_soon(lambda: ran.append(threading.get_ident()))
            made.shared.turn()
            assert ran == [threading.get_ident()] and made.told == ["turn"]
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            # While another drives it there is none to take.
            made.shared._baton.acquire()
            made.shared.turn()
            made.shared._baton.release()
            assert made.told == ["turn"]


@pytest.mark.parametrize("inside", [False, True])
def test_a_call_that_waits_drives_it_itself(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also within an event loop of the tool's own, which is as it was afterwards."""
    monkeypatch.setattr(shared_loop, "PATIENCE", 60.0)
    with begun() as made:
        ran: list[bool] = []

        def wait() -> None:
            made.shared.loop.call_soon_threadsafe(lambda: ran.append(made.shared.in_user_code))
            made.shared.wait(lambda: bool(ran), None)
            assert ran == [True] and not made.shared.in_user_code
            begun_at = made.shared.loop.time()
            made.shared.wait(lambda: False, time.monotonic() + 0.02)
            assert made.shared.loop.time() - begun_at >= 0.019

        async def main() -> None:
            loop = asyncio.get_running_loop()
            wait()
            assert asyncio.get_running_loop() is loop

        with user_code(made):
            asyncio.run(main()) if inside else wait()
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
        assert made.told == ["turn", "relief"] * 2


def test_a_condition_that_holds_already_is_not_waited_for() -> None:
    with begun() as made, user_code(made):
        made.shared.wait(lambda: True, None)
        made.shared.wait(lambda: False, time.monotonic() - 1)


def test_python_in_development_mode_is_so_for_user_code_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    # asyncio's findings would be logged from here.
    with asyncio.Runner() as runner:
        assert runner.get_loop().get_debug()
    shared = SharedLoop(lambda: None, lambda: None)
    assert not shared.loop.get_debug()
    shared._runner.close()

"""The tasks in which a worker's async tools run, on both event loops."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from snakepit_trio.worker.tasks import Tasks, open_tasks

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
#: The event loop of the tools.
on_both = pytest.mark.parametrize("backend", ["trio", "asyncio"])


def run(backend: str, test: Callable[[Tasks], Awaitable[None]]) -> None:
    """Run a test where there are tasks, each with what was set here."""
    context = contextvars.copy_context()
    context.run(VARIABLE.set, "of setup")

    async def main() -> None:
        with anyio.fail_after(10):
            async with open_tasks(backend, context) as tasks:
                await test(tasks)

    anyio.run(main, backend=backend)


@on_both
def test_each_has_a_copy_of_what_setup_has_left(backend: str) -> None:
    seen: list[str] = []

    async def look() -> None:
        seen.append(VARIABLE.get())
        VARIABLE.set("mine")

    async def test(tasks: Tasks) -> None:
        tasks.start(look)
        tasks.start(look)
        await anyio.wait_all_tasks_blocked()
        assert VARIABLE.get() == "unset" and not tasks.ending

    run(backend, test)
    assert seen == ["of setup", "of setup"]


@on_both
def test_the_block_ends_with_the_last_of_them(backend: str) -> None:
    ended: list[int] = []
    go = [None]

    async def wait(n: int, event: anyio.Event) -> None:
        await event.wait()
        ended.append(n)

    async def test(tasks: Tasks) -> None:
        event = anyio.Event()
        for n in range(3):
            tasks.start(wait, n, event)
        await anyio.wait_all_tasks_blocked()
        assert not ended
        event.set()
        go.clear()

    run(backend, test)
    assert sorted(ended) == [0, 1, 2] and not go


@on_both
@pytest.mark.parametrize(("timeout", "late"), [(None, False), (0.02, True), (60.0, False)])
def test_a_scope_with_and_without_an_end(backend: str, timeout: float | None, late: bool) -> None:
    found: list[Any] = []

    async def call(tasks: Tasks, go_on: anyio.Event) -> None:
        begun = anyio.current_time()
        with tasks.scope(timeout) as scope:
            await go_on.wait()
        found.extend([scope.cancel_called, anyio.current_time() - begun])

    async def test(tasks: Tasks) -> None:
        go_on = anyio.Event()
        tasks.start(call, tasks, go_on)
        await anyio.sleep(0.05)
        assert bool(found) is late
        go_on.set()

    run(backend, test)
    assert found[0] is late
    assert found[1] >= 0.019


@on_both
def test_a_cancelled_scope_ends_what_is_in_it_and_nothing_after_it(backend: str) -> None:
    order: list[str] = []

    async def call(scopes: list[Any], tasks: Tasks) -> None:
        with tasks.scope(None) as scope:
            scopes.append(scope)
            try:
                await anyio.sleep_forever()
            finally:
                order.append("left")
        assert scope.cancel_called
        await anyio.sleep(0.001)
        order.append("after")
        with tasks.scope(None) as second:
            await anyio.sleep(0.001)
        assert not second.cancel_called
        order.append("again")

    async def test(tasks: Tasks) -> None:
        scopes: list[Any] = []
        tasks.start(call, scopes, tasks)
        await anyio.wait_all_tasks_blocked()
        assert not scopes[0].cancel_called
        scopes[0].cancel()
        await anyio.wait_all_tasks_blocked()

    run(backend, test)
    assert order == ["left", "after", "again"]


@on_both
def test_what_is_awaited_in_a_clean_up_is_as_on_that_loop(backend: str) -> None:
    """Trio cancels each wait, asyncio one."""
    waited: list[str] = []

    async def call(scopes: list[Any], tasks: Tasks) -> None:
        with tasks.scope(None) as scope:
            scopes.append(scope)
            try:
                await anyio.sleep_forever()
            finally:
                await anyio.sleep(0.001)
                waited.append("cleaned")
        waited.append("ended")

    async def test(tasks: Tasks) -> None:
        scopes: list[Any] = []
        tasks.start(call, scopes, tasks)
        await anyio.wait_all_tasks_blocked()
        scopes[0].cancel()

    run(backend, test)
    assert waited == (["ended"] if backend == "trio" else ["cleaned", "ended"])


def test_a_task_that_cancels_itself_costs_no_other() -> None:
    """On asyncio; on Trio a task has no cancellation of its own."""
    ended: list[str] = []

    async def leave(tasks: Tasks) -> None:
        task = asyncio.current_task()
        assert task is not None
        with tasks.scope(None) as scope:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await anyio.sleep(1)
            assert not scope.cancel_called
        task.cancel()
        await anyio.sleep(1)

    async def stay(event: anyio.Event) -> None:
        await event.wait()
        ended.append("stay")

    async def test(tasks: Tasks) -> None:
        event = anyio.Event()
        tasks.start(leave, tasks)
        tasks.start(stay, event)
        await anyio.wait_all_tasks_blocked()
        assert not tasks.ending
        event.set()

    run("asyncio", test)
    assert ended == ["stay"]


def test_a_nursery_that_a_tool_has_left_open_ends_with_its_task() -> None:
    import trio

    happened: list[str] = []

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            happened.append("child")

    async def test(tasks: Tasks) -> None:
        left, ended = trio.Event(), trio.Event()

        async def leave() -> None:
            nursery = await trio.open_nursery().__aenter__()
            nursery.start_soon(child)
            await trio.testing.wait_all_tasks_blocked()
            left.set()

        async def other() -> None:
            await left.wait()
            await trio.testing.wait_all_tasks_blocked()
            happened.append("other")
            ended.set()

        tasks.start(leave)
        tasks.start(other)
        await ended.wait()

    run("trio", test)
    assert happened == ["child", "other"]


def test_who_may_have_another_task() -> None:
    """The scopes are for tasks of theirs alone: on asyncio they are told by it when they are cancelled."""

    async def test(tasks: Tasks) -> None:
        with pytest.raises(AssertionError), tasks.scope(None):
            pytest.fail("entered")

    run("asyncio", test)


@on_both
@pytest.mark.parametrize("how", ["raised", "cancelled"])
def test_with_the_loop_they_all_end(backend: str, how: str) -> None:
    ended: list[bool] = []

    async def wait(tasks: Tasks) -> None:
        with tasks.scope(None):
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(tasks.ending)

    async def main() -> None:
        with anyio.fail_after(10), anyio.CancelScope() as scope:
            async with open_tasks(backend, contextvars.copy_context()) as tasks:
                for _ in range(3):
                    tasks.start(wait, tasks)
                await anyio.wait_all_tasks_blocked()
                if how == "raised":
                    raise ZeroDivisionError
                scope.cancel()
        assert scope.cancelled_caught

    if how == "cancelled":
        anyio.run(main, backend=backend)
        assert len(ended) == 3
        # On Trio it is a scope around that of the tasks which was cancelled.
        assert all(ended) or backend == "trio"
    else:
        with pytest.raises((ZeroDivisionError, ExceptionGroup)):
            anyio.run(main, backend=backend)
        assert ended == [True] * 3

"""Boundaries: what they stop, what passes, and what is told of it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio import _interrupts
from snakepit_trio._bulkhead import InternalErrors, internal_error, operation
from snakepit_trio.errors import InvalidParameter, SnakepitError
from snakepit_trio.observe.events import EventBus


class Leaves(BaseException):
    """Such as KeyboardInterrupt, which a test must not raise for its runner's sake."""


def test_an_exception_is_stopped_logged_counted_and_told(
    internal_errors: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    bus = EventBus(10)
    errors = InternalErrors(bus.emit)
    ended: list[Exception] = []
    with errors.bulkhead("worker", ended.append, worker_id="w1", pool="p") as boundary:
        raise KeyError("odd")
    assert boundary.failed
    assert [type(error) for error in ended] == [KeyError] == [type(error) for error in internal_errors]
    assert errors.counts == {"worker": 1}
    (event,) = bus.history
    assert event.name == "runtime.internal_error"
    assert event.metadata == {"ended": "worker", "error": "KeyError", "where": "?", "worker_id": "w1", "pool": "p"}
    (record,) = [record for record in caplog.records if record.name == "snakepit_trio.internal"]
    assert record.levelno == logging.ERROR and record.exc_info is not None and record.worker_id == "w1"


def test_what_is_no_exception_passes() -> None:
    errors = InternalErrors()
    with pytest.raises(Leaves):
        with errors.bulkhead("worker"):
            raise Leaves
    assert not errors.counts


def test_of_a_group_the_exceptions_are_stopped_and_the_rest_passes(internal_errors: list[BaseException]) -> None:
    errors = InternalErrors()
    with pytest.raises(BaseExceptionGroup) as caught:
        with errors.bulkhead("worker"):
            raise BaseExceptionGroup("both", [Leaves(), KeyError("odd")])
    assert [type(exc) for exc in caught.value.exceptions] == [Leaves]
    assert errors.counts == {"worker": 1} and len(internal_errors) == 1


def test_what_ends_a_thing_may_fail_too(internal_errors: list[BaseException]) -> None:
    errors = InternalErrors()

    def fail(exc: Exception) -> None:
        raise ValueError("again")

    with errors.bulkhead("worker", fail):
        raise KeyError("odd")
    assert errors.counts == {"worker": 2} and len(internal_errors) == 2


def test_an_event_that_cannot_be_made_is_told_without_end(internal_errors: list[BaseException]) -> None:
    def emit(*args: Any, **options: Any) -> None:
        errors.report(ValueError("in the event"), "observer")
        raise ValueError("the event")

    errors = InternalErrors(emit)
    errors.report(KeyError("odd"), "worker")
    assert errors.counts == {"worker": 1, "observer": 1}


def test_an_observer_is_logged_once_for_each_place(
    internal_errors: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    errors = InternalErrors()
    for _ in range(3):
        with errors.bulkhead("observer"):
            raise KeyError("odd")
    assert errors.counts == {"observer": 3}
    assert len([record for record in caplog.records if record.name == "snakepit_trio.internal"]) == 1


class Odd(Exception):
    """Can't even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_an_exception_that_cannot_be_shown_is_reported(internal_errors: list[BaseException]) -> None:
    errors = InternalErrors(EventBus(10).emit)
    with errors.bulkhead("worker"):
        raise Odd
    assert errors.counts == {"worker": 1}
    assert internal_error(Odd()).details == {"error": "Odd"}


@pytest.mark.anyio
async def test_a_task_ends_alone(internal_errors: list[BaseException]) -> None:
    errors = InternalErrors()
    done = []

    async def fails() -> None:
        raise KeyError("odd")

    async with anyio.create_task_group() as nursery:
        errors.start(nursery, fails, ended="worker", on_error=lambda exc: done.append(exc))
        await anyio.lowlevel.checkpoint()
    assert len(done) == 1 and errors.counts == {"worker": 1}


@pytest.mark.anyio
async def test_a_service_runs_again(internal_errors: list[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snakepit_trio._bulkhead._FIRST_PAUSE", 0.001)
    errors = InternalErrors()
    runs = []

    async def service() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise KeyError("odd")

    async with anyio.create_task_group() as nursery:
        errors.keep(nursery, service)
    assert len(runs) == 3 and errors.counts == {"service": 2}


@pytest.mark.anyio
async def test_a_service_that_does_not_start_says_so_and_one_that_fails_later_ends_alone(
    internal_errors: list[BaseException],
) -> None:
    errors = InternalErrors()

    async def never(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        raise KeyError("before")

    async def later(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        task_status.started()
        raise KeyError("after")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with anyio.create_task_group() as nursery:
            await errors.serve(nursery, never)
    assert caught.group_contains(KeyError, match="before")
    assert not errors.counts
    async with anyio.create_task_group() as nursery:
        await errors.serve(nursery, later)
    assert errors.counts == {"service": 1}


@pytest.mark.anyio
async def test_an_operation_raises_one_kind_of_error(internal_errors: list[BaseException]) -> None:
    class Thing:
        _errors = InternalErrors()

        @operation
        async def run(self, exc: Exception) -> None:
            raise exc

    with pytest.raises(InvalidParameter):
        await Thing().run(InvalidParameter("expected"))
    odd = KeyError("odd")
    with pytest.raises(SnakepitError) as caught:
        await Thing().run(odd)
    assert caught.value.code == "internal" and caught.value.__cause__ is odd
    assert "odd" not in str(caught.value)


@pytest.mark.anyio
async def test_an_interrupt_that_struck_inside_leaves_as_itself(internal_errors: list[BaseException]) -> None:
    class Thing:
        _errors = InternalErrors()

        @operation
        async def fail(self, first: BaseException | None) -> None:
            try:
                if first is not None:
                    raise first
            finally:
                raise RuntimeError("a scope was left in the wrong order")

    @asynccontextmanager
    async def opened(first: BaseException | None) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await Thing.fail.__wrapped__(Thing(), first)  # type: ignore[attr-defined]

    with pytest.raises(KeyboardInterrupt):
        await Thing().fail(KeyboardInterrupt())
    for raised in (None, KeyboardInterrupt(), ValueError()):
        with pytest.raises(KeyboardInterrupt):
            async with Thing._errors.block(opened(KeyboardInterrupt()), "block"):
                if raised is not None:
                    raise raised
    with pytest.raises(KeyboardInterrupt):
        async with Thing._errors.block(opened(None), "block"):
            raise KeyboardInterrupt
    assert not internal_errors
    # One that the application has handled, or handles now, is over.
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(SnakepitError):
            await Thing().fail(None)
        with pytest.raises(SnakepitError):
            async with Thing._errors.block(opened(None), "block"):
                raise ValueError from None
    assert len(internal_errors) == 2


def test_a_connection_that_can_not_be_made_ready_is_an_internal_error(
    monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("made")

    monkeypatch.setattr(_interrupts, "_Managed", fail)
    with pytest.raises(SnakepitError) as caught:
        sp.connect("unix:/somewhere", token="t")
    assert caught.value.code == "internal"
    assert [str(error) for error in internal_errors] == ["made"]


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.anyio
async def test_an_interrupt_that_struck_a_task_of_the_library_is_not_stopped(
    internal_errors: list[BaseException],
) -> None:
    async def broken() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("a scope was left in the wrong order")

    errors = InternalErrors()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with anyio.create_task_group() as nursery:
            errors.keep(nursery, anyio.sleep_forever)
            errors.start(nursery, broken)
    assert caught.group_contains(KeyboardInterrupt)
    assert not internal_errors


@pytest.mark.parametrize("lasts", [0.0, 29.5, 30.5])
def test_a_service_that_keeps_failing_pauses_longer_each_time_up_to_half_a_minute(
    lasts: float, internal_errors: list[BaseException]
) -> None:
    errors = InternalErrors()
    began: list[float] = []

    async def service() -> None:
        began.append(anyio.current_time())
        if len(began) < 14:
            await anyio.sleep(lasts)
            raise KeyError("odd")

    async def main() -> None:
        async with anyio.create_task_group() as nursery:
            errors.keep(nursery, service)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    pauses = [after - before - lasts for before, after in itertools.pairwise(began)]
    # One that went on for longer than the longest pause has recovered.
    doubled = [0.1 * 2**number for number in range(9)] + [30.0] * 4
    assert pauses == pytest.approx([0.1] * 13 if lasts > 30 else doubled)

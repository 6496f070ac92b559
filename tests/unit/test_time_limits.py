"""What an error says when a time limit was spent: the option that decided, and the value that somebody gave it."""

from __future__ import annotations

import pytest

from snakepit_trio._call_options import CallOptions
from snakepit_trio._timeouts import TimeLimit, as_given
from snakepit_trio.policies.options import Timeouts
from snakepit_trio.pool.scheduling.failures import deadline_passed, overdue
from snakepit_trio.pool.scheduling.request import Phase, Request
from snakepit_trio.wire.frames import MSGPACK, Payload

PAYLOAD = Payload(MSGPACK, b"\x80", [])


def request(options: CallOptions, *, stream: bool = False, phase: Phase = Phase.RUNNING) -> Request:
    made = Request(1, "nap", PAYLOAD, options, on_end=lambda: None, deadline=10.0, queue_deadline=5.0)
    made.stream = object() if stream else None  # type: ignore[assignment]
    made.submitted_at, made.phase = 0.0, phase
    made.defaults = Timeouts(300.0, 900.0, 4.5)
    return made


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"), (5, "5"), (300.0, "300"), (0, "0"), (0.001, "0.001"), (1e-05, "0.00001"), (1234567.0, "1234567"),
        (86400 * 365.0, "31536000"), (0.1 + 0.2, "0.3"), (12.3456789, "12.3457"), (1e8, "100000000"),
    ],
)  # fmt: skip
def test_a_value_is_shown_as_it_would_be_written(value: float, text: str) -> None:
    assert as_given(value) == text


def test_the_callers_timeout_is_named_with_its_value() -> None:
    error = deadline_passed(request(CallOptions(timeout=0.5)), 0.502)
    assert str(error) == "'nap' was running when timeout=0.5 was spent"
    assert error.details["option"] == "timeout" and error.details["limit"] == 0.5
    assert error.details["elapsed"] == 0.502


def test_what_has_been_spent_before_changes_nothing_of_it() -> None:
    options = CallOptions(timeout=0.5).within(0.123).within(0.01)
    assert options.timeout == 0.01 and options.asked == 0.5
    assert "timeout=0.5" in str(deadline_passed(request(options), 1.0))


@pytest.mark.parametrize(
    ("stream", "said"), [(False, "the pool's timeout=300"), (True, "the pool's stream_timeout=900")]
)
def test_the_pools_own_limit_is_named_where_the_caller_gave_none(stream: bool, said: str) -> None:
    found = deadline_passed(request(CallOptions().within(3.0), stream=stream, phase=Phase.QUEUED), 300.1)
    assert str(found) == f"'nap' was queued when {said} was spent"


def test_a_wait_that_was_too_long_is_the_queue_timeouts() -> None:
    found = overdue(request(CallOptions(timeout=60), phase=Phase.QUEUED), 5.003)
    assert str(found) == "no worker was free for 'nap' within queue_timeout=4.5"
    assert found.details["option"] == "queue_timeout" and found.details["limit"] == 4.5


def test_no_limit_is_none() -> None:
    assert str(TimeLimit(None)) == "timeout=None"

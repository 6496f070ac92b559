"""How long a slot waits before its next worker, and when too many of its starts have failed."""

from __future__ import annotations

import random
from typing import Any

import pytest

import snakepit_trio as sp
from snakepit_trio.supervision.restarts import Restarts

CRASHED = {"up_for": 0.1, "excused": True, "answered": False}
CRASHED_LATER = {"up_for": 0.1, "excused": True, "answered": True}
NOT_STARTED = {"up_for": None, "excused": False, "answered": False}
FELL_OVER = {"up_for": 0.1, "excused": False, "answered": False}
QUIET_FOR_LONG = {"up_for": 60.0, "excused": False, "answered": False}


class Exact(random.Random):
    """Draws the middle of each range."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def restarts(**options: Any) -> Restarts:
    settings = {"restart_limit": 3, "restart_window": 10.0, "backoff_base": 0.1, "backoff_max": 8.0, **options}
    return Restarts(sp.PoolConfig(adapter="m", **settings), Exact())


@pytest.mark.parametrize("end", [CRASHED, CRASHED_LATER, QUIET_FOR_LONG])
def test_workers_that_could_start_never_make_a_slot_fail(end: dict[str, Any]) -> None:
    made = restarts()
    pauses = [made.note(0.01 * number, **end) for number in range(100)]
    assert not made.exhausted
    assert pauses[0] == 0.0
    # Where no queue_timeout says how long callers may wait.
    assert max(pauses) <= 1.0


@pytest.mark.parametrize("end", [NOT_STARTED, FELL_OVER])
def test_too_many_failed_starts_in_the_window_do(end: dict[str, Any]) -> None:
    made = restarts()
    for number in range(3):
        made.note(float(number), **end)
        assert not made.exhausted
    assert made.note(3.0, **end) == 10.0
    assert made.exhausted


def test_failed_starts_that_are_further_apart_do_not() -> None:
    made = restarts()
    for number in range(20):
        made.note(4.0 * number, **NOT_STARTED)
        assert not made.exhausted


def test_the_pause_grows_while_workers_are_of_no_use() -> None:
    made = restarts(queue_timeout=100.0)
    assert [made.note(0.0, **CRASHED) for _ in range(9)] == [0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0, 8.0]
    # One that has answered a call was of some.
    assert made.note(0.0, **CRASHED_LATER) == 0.1
    assert made.note(0.0, **CRASHED) == 0.2


def test_it_goes_on_growing_when_the_pauses_are_longer_than_the_window() -> None:
    made = restarts(restart_limit=None, restart_window=1.0)
    now, pauses = 0.0, []
    for _ in range(9):
        pauses.append(made.note(now, **NOT_STARTED))
        now += pauses[-1] + 1.5
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0, 8.0]
    assert not made.exhausted


def test_a_short_queue_timeout_keeps_the_pauses_short() -> None:
    made = restarts(queue_timeout=1.0)
    assert max(made.note(0.0, **CRASHED) for _ in range(9)) == 0.1
    # Nobody waits for what can't start.
    assert made.note(0.0, **NOT_STARTED) > 1


def test_a_failed_slot_tries_ever_more_rarely_until_a_worker_is_up() -> None:
    made = restarts(restart_limit=0)
    assert [made.note(1000.0 * number, **NOT_STARTED) for number in range(7)] == [10, 20, 40, 80, 160, 300, 300]
    made.note(8000.0, **CRASHED)
    assert not made.exhausted
    assert made.note(9000.0, **NOT_STARTED) == 10


def test_the_first_restart_of_one_that_was_up_is_immediate() -> None:
    for end in (CRASHED, FELL_OVER, QUIET_FOR_LONG):
        made = restarts()
        assert made.note(0.0, **end) == 0
        assert made.note(5.0, **end) > 0
        assert made.note(16.0, **end) == 0
    assert restarts().note(0.0, **NOT_STARTED) > 0


def test_slots_that_failed_together_do_not_start_together() -> None:
    made = Restarts(sp.PoolConfig(adapter="m", backoff_base=1.0, backoff_max=1.0), random.Random(0))
    pauses = {made.note(0.0, **NOT_STARTED) for _ in range(5)}
    assert len(pauses) == 5
    assert all(0.8 <= pause <= 1.2 for pause in pauses)


def test_a_start_that_says_that_no_other_will_fare_better_is_not_repeated_soon() -> None:
    made = restarts()
    assert made.note(0.0, **NOT_STARTED, hopeless=True) == 10.0
    assert made.exhausted
    # Without a limit a slot never fails, but it is in no hurry either.
    made = restarts(restart_limit=None)
    assert made.note(0.0, **NOT_STARTED, hopeless=True) == 8.0
    assert not made.exhausted

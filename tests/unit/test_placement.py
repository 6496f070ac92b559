"""Which worker has room, and whose line is looked at first."""

from __future__ import annotations

import math

from snakepit_trio.pool.scheduling.placement import _CAREFUL, _RESPECT, PATIENCE, SHORT, Placement
from snakepit_trio.pool.scheduling.request import Phase, Request, Seats
from tests.requests import make_request
from tests.unit.test_suspects import Port


def request(number: int, *, priority: int = 0, at: float = 0.0) -> Request:
    made = make_request(number, "tool", priority=priority)
    made.submitted_at = at
    return made


def lined_up(placement: Placement, number: int, *, began: float, priority: int = 0) -> Seats:
    """A worker that has run a call since a time, with another behind it."""
    seats = Seats(Port(), 1, 4)
    seats.open = True
    placement.admit(seats)
    seats.running[number] = request(number, at=began)
    placement.place(seats, began=began)
    behind = request(number + 1, priority=priority, at=began)
    behind.phase = Phase.QUEUED
    seats.ahead[number + 1] = behind
    placement.joined(seats, behind)
    placement.place(seats)
    return seats


def test_a_long_call_is_not_hidden_behind_one_that_began_later() -> None:
    placement = Placement()
    placement.note("tool", 0.0)
    first, second = lined_up(placement, 1, began=1.0), lined_up(placement, 3, began=2.0)
    assert (list(placement.holders()), placement.hostage_since()) == ([first, second], 1.0)
    # The first goes on to its next call; the second has run for longest from now on.
    first.ahead[9] = request(9)
    placement.place(first, began=5.0)
    assert (list(placement.holders()), placement.hostage_since()) == ([second, first], 2.0)
    # One that begins the last of its line holds nobody up.
    second.ahead.clear()
    placement.place(second, began=6.0)
    assert (list(placement.holders()), placement.hostage_since()) == ([first], 5.0)
    placement.forget(first)
    assert placement.hostage_since() == math.inf


def test_a_tool_is_short_by_the_average_of_its_calls() -> None:
    placement = Placement()
    assert not placement.is_short("tool")
    placement.note("tool", SHORT)
    assert placement.is_short("tool")
    placement.note("tool", 1000.0)
    assert not placement.is_short("tool")
    # However long it was, some short ones make up for it.
    calls = 0
    while not placement.is_short("tool"):
        placement.note("tool", 0.0)
        calls += 1
    assert calls == 4
    placement.beware("tool")
    for _ in range(_CAREFUL - 1):
        placement.note("tool", 0.0)
        assert not placement.is_short("tool")
    placement.note("tool", 0.0)
    assert placement.is_short("tool")


def test_a_line_is_for_its_patience() -> None:
    placement = Placement()
    placement.note("tool", 0.0)
    seats = lined_up(placement, 1, began=1.0)
    late = 1.0 + PATIENCE
    assert placement.line(request(5), late - 1e-6) is seats and placement.has_line(seats, late - 1e-6)
    assert not placement.has_line(seats, late)
    assert placement.line(request(5), late) is None
    # It is out until its next call.
    assert placement.line(request(5), 1.0) is None


def test_whoever_is_urgent_is_respected_for_a_while() -> None:
    placement = Placement()
    placement.note("tool", 0.0)
    lined_up(placement, 1, began=1.0)
    assert not placement.overtaken(request(5), 1.0)
    assert placement.overtaken(request(6, priority=1), 1.0)
    assert placement.may_stand(request(7, priority=1), 1.0)
    assert not placement.may_stand(request(8), 1.0 + _RESPECT - 1e-6)
    assert placement.may_stand(request(8), 1.0 + _RESPECT)
    assert [placement.before(priority) for priority in (-1, 0, 1)] == [1, 1, 0]
    assert placement.oldest_arrival() == 1.0


def test_the_emptiest_comes_first() -> None:
    placement = Placement()
    busy, idle, alone = (Seats(Port(), 2, 0) for _ in range(3))
    for seats in (busy, idle, alone):
        seats.open = True
        placement.admit(seats)
    busy.leaving[1] = request(1)
    alone.alone = True
    for seats in (busy, alone, idle):
        placement.place(seats)
    assert placement.seat() is idle and list(placement.seats()) == [idle, busy]
    busy.running[2] = request(2)
    idle.open = False
    for seats in (busy, idle):
        placement.place(seats)
    assert placement.seat() is None

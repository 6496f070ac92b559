"""What the autoscaler decides, step by step, with a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

import snakepit_trio as sp
from snakepit_trio.pool.fleet.scaling import Autoscaler, Load


def scaler(**options: Any) -> Autoscaler:
    return Autoscaler(**{"minimum": 1, "maximum": 10, "threads": 1, "target_wait": 0.1, "down_after": 10.0, **options})


def load(**values: Any) -> Load:
    return Load(
        **{
            "size": 2, "starting": 0, "in_flight": 0, "queued": 0, "tied": 0, "oldest_wait": 0.0, "service_time": 0.0, **values,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "options", "wanted"),
    [
        ({"in_flight": 2}, {}, 2),
        ({"in_flight": 2, "queued": 5, "oldest_wait": 0.05}, {}, 2),
        ({"in_flight": 2, "queued": 5, "oldest_wait": 0.1}, {}, 3),
        # Twenty calls of 20 ms within 100 ms: four workers more.
        ({"in_flight": 2, "queued": 20, "oldest_wait": 0.1, "service_time": 0.02}, {}, 6),
        ({"in_flight": 2, "queued": 20, "oldest_wait": 0.1, "service_time": 0.02}, {"threads": 2}, 4),
        # Not more than there are requests waiting, nor than may be.
        ({"in_flight": 2, "queued": 3, "oldest_wait": 0.1, "service_time": 9.0}, {}, 5),
        ({"in_flight": 2, "queued": 90, "oldest_wait": 0.1, "service_time": 9.0}, {}, 10),
        # Those that were added are still starting.
        ({"in_flight": 2, "queued": 90, "oldest_wait": 5.0, "starting": 1}, {}, 2),
        # Nobody is there: the first request does not wait for the target.
        ({"size": 0, "queued": 1}, {"minimum": 0}, 1),
        ({"size": 0}, {"minimum": 0}, 0),
    ],
)
def test_up(values: dict[str, Any], options: dict[str, Any], wanted: int) -> None:
    assert scaler(**options).decide(load(**values), 0.0) == wanted


def test_down_only_after_a_whole_span_of_little_load() -> None:
    it = scaler()
    sizes = [it.decide(load(size=5, in_flight=2), float(now)) for now in range(10)]
    assert sizes == [5] * 9 + [2]
    assert it.decide(load(size=2, in_flight=0), 9.5) == 2, "not before the next look"
    # A peak counts for a whole span.
    it.decide(load(size=2, in_flight=2), 10.0)
    sizes = [it.decide(load(size=2), float(now)) for now in range(11, 22)]
    assert sizes == [2] * 9 + [1, 1]


def test_down_to_nothing_and_never_below_the_least() -> None:
    it = scaler(minimum=0)
    assert [it.decide(load(size=1), float(now)) for now in range(10)][-1] == 0
    it = scaler(minimum=3)
    assert [it.decide(load(size=7), float(now)) for now in range(10)][-1] == 3


@pytest.mark.parametrize("kind", ["in_flight", "queued", "tied"])
def test_whatever_is_asked_for_keeps_workers(kind: str) -> None:
    it = scaler()
    # None of it waits for long enough to lead up.
    assert [it.decide(load(size=5, **{kind: 3}), float(now)) for now in range(10)][-1] == 3
    it = scaler(threads=2)
    assert [it.decide(load(size=5, in_flight=1, queued=1, tied=1), float(now)) for now in range(10)][-1] == 2
    it = scaler()
    assert [it.decide(load(size=5, in_flight=1, queued=1, tied=1), float(now)) for now in range(10)][-1] == 3


def test_a_size_that_has_left_its_bounds() -> None:
    assert scaler(minimum=3).decide(load(size=1), 0.0) == 3
    assert scaler(maximum=4).decide(load(size=6), 0.0) == 4


def test_a_step_up_forgets_what_was_seen_before() -> None:
    it = scaler()
    for now in range(9):
        it.decide(load(), float(now))
    assert it.decide(load(in_flight=2, queued=1, oldest_wait=1.0), 8.5) == 3
    assert it.decide(load(size=3), 9.5) == 3


def test_when_to_look_again() -> None:
    it = scaler()
    it.decide(load(), 0.0)
    assert it.next_look(load(), 0.0) == 1.0
    assert it.next_look(load(queued=1, oldest_wait=0.04), 0.5) == pytest.approx(0.56)
    assert it.next_look(load(queued=1, oldest_wait=0.04, starting=1), 0.5) == 1.0
    assert it.next_look(load(size=10, queued=1, oldest_wait=4.0), 0.5) == 1.0
    # Not before the clock can have moved, and not in the past.
    assert it.next_look(load(queued=1, oldest_wait=4.0), 0.5) == pytest.approx(0.501)
    assert it.next_look(load(), 7.0) == pytest.approx(7.001)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"size": 4, "max_size": 3}, "max_size"),
        ({"size": 4, "min_size": 2}, "min_size"),
        ({"size": 4, "min_size": 5, "max_size": 9}, "min_size"),
        ({"max_size": 0}, "max_size"),
    ],
)
def test_sizes_that_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(sp.ConfigError) as caught:
        sp.PoolConfig(adapter="m", **options)
    assert caught.value.details["key"] == key

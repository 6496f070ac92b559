"""Histograms of how long requests took."""

from __future__ import annotations

import math

from snakepit_trio.observe.timings import BUCKETS, RequestTimings


def test_values_fall_into_their_buckets() -> None:
    timings = RequestTimings(10)
    for value in (0.0, 0.0005, 0.0006, 299.0, 1000.0):
        timings.ended("p", "t", "completed", value, value)
    found = timings.waits["p"]
    assert found.counts[0] == 2
    assert found.counts[1] == 1
    assert found.counts[-2:] == [1, 1]
    assert sum(found.counts) == 5
    assert found.sum == timings.durations["p", "t", "completed"].sum
    assert list(BUCKETS) == sorted(BUCKETS)


def test_the_tools_that_are_told_apart_are_bounded() -> None:
    timings = RequestTimings(2)
    for n in range(100):
        timings.ended("p", f"t{n}", "failed", math.nan, 1.0)
        timings.ended("q", "t", "rejected", math.nan, 0.0)
    assert {tool for _, tool, _ in timings.durations} == {"t0", "t1", "other"}
    assert not timings.waits

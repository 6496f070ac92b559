"""Which calls a worker has begun, whatever the order in which it began them; and the file of that table."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio.wire.begun import BegunTable, begun_in, marks_file


@pytest.fixture(scope="module")
def fresh() -> Iterator[BegunTable]:
    marks = BegunTable(marks_file())
    yield marks
    marks.close()


@given(st.lists(st.integers(1, 1500), max_size=40, unique=True))
def test_every_call_that_has_begun_counts_as_begun(fresh: BegunTable, order: list[int]) -> None:
    for place in range(512):
        fresh._ids[place] = 0
    for number, id in enumerate(order, 1):
        fresh.begin(id)
        begun = order[:number]
        table = fresh.table()
        for other in begun:
            assert fresh.begun(other) and begun_in(table, other)
        # What has not begun is known not to have, unless a later one has begun in its place.
        for other in range(1, 1501, 97):
            later = any(b % 512 == other % 512 and b >= other for b in begun)
            assert fresh.begun(other) == begun_in(table, other) == later


def test_calls_that_begin_in_several_threads_at_once() -> None:
    marks = BegunTable(marks_file())
    ids = [range(1 + k * 512, 1 + 200 * 4 * 512, 4 * 512) for k in range(4)]
    ready = threading.Barrier(len(ids))

    def begin(mine: range) -> None:
        ready.wait()
        for id in mine:
            marks.begin(id)
            # All of them have one place.
            assert marks.begun(id)

    threads = [threading.Thread(target=begin, args=(mine,)) for mine in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(marks.begun(id) for mine in ids for id in mine)
    marks.close()


def test_a_file_that_gets_no_room_is_closed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = os.listdir("/proc/self/fd")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError):
            marks_file()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir("/proc/self/fd") == before

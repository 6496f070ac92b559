"""The file of a worker's marks."""

from __future__ import annotations

import os
import resource

import pytest

from snakepit_trio.wire.marks import marks_file


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

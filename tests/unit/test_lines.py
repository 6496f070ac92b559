"""The threads of a worker that run its tools."""

from __future__ import annotations

import threading

import pytest

from snakepit_trio.worker.lines import Threads


def test_threads_that_can_not_all_be_started_end(monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.endswith("-2"):
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        with Threads(4, lambda call: None):
            pytest.fail("it has begun")
    assert threading.active_count() == before

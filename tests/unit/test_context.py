"""What a tool may know of its call."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from snakepit_trio.errors import RequestCancelled
from snakepit_trio.worker.context import ToolContext


def context(**fields: Any) -> ToolContext:
    return ToolContext(SimpleNamespace(**fields))  # type: ignore[arg-type]


def test_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert context(deadline=None).deadline is None
    assert [context(deadline=at).deadline for at in (103.5, 100.0, 42.0)] == [3.5, 0.0, 0.0]


def test_whether_its_caller_is_gone() -> None:
    there, gone = context(cancelled=False), context(cancelled=True)
    assert (there.cancelled, gone.cancelled) == (False, True)
    there.raise_if_cancelled()
    with pytest.raises(RequestCancelled):
        gone.raise_if_cancelled()

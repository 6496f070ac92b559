"""A call's span in its worker: the child of the host's, and no call fails by what OpenTelemetry does."""

from __future__ import annotations

import contextvars
import logging
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from snakepit_trio.worker import tracing
from snakepit_trio.worker.tracing import CallSpan, begin_span

trace = pytest.importorskip("opentelemetry.trace")
CALL = cast("Any", SimpleNamespace(
    metadata={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, request_id="run-1", worker_id="w",
))  # fmt: skip


class Span:
    """Keeps what it is told."""

    def __init__(self, recording: bool = True) -> None:
        self.told: list[Any] = []
        self.recording = recording

    def is_recording(self) -> bool:
        return self.recording

    def set_attribute(self, name: str, value: str) -> None:
        self.told.append((name, value))

    def set_status(self, status: Any, message: str) -> None:
        self.told.append((status.name, message))

    def end(self) -> None:
        self.told.append("end")

    def get_span_context(self) -> Any:
        return trace.INVALID_SPAN_CONTEXT


def begun(span: Span, monkeypatch: pytest.MonkeyPatch) -> tuple[CallSpan | None, list[Any]]:
    asked: list[Any] = []

    def start_span(name: str, parent: Any, *, kind: Any, attributes: Any) -> Span:
        asked.extend([name, trace.get_current_span(parent).get_span_context().trace_id, kind.name, attributes])
        return span

    monkeypatch.setattr(trace, "get_tracer", lambda name: SimpleNamespace(start_span=start_span))
    return contextvars.copy_context().run(begin_span, "add", CALL), asked


def test_where_it_hangs_and_what_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = begun(Span(), monkeypatch)
    assert found is not None
    attributes = {
        "rpc.system.name": "snakepit", "rpc.method": "add", "snakepit.request_id": "run-1", "snakepit.worker_id": "w",
    }  # fmt: skip
    assert asked == ["add", 0x0AF7651916CD43DD8448EB211C80319C, "SERVER", attributes]


@pytest.mark.parametrize(
    ("error", "recording", "told"),
    [
        (None, True, ["end"]),
        (LookupError("secret"), True, [("error.type", "LookupError"), ("ERROR", "said"), "end"]),
        (LookupError("secret"), False, ["end"]),
    ],
)
def test_its_end(error: Any, recording: bool, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    span = Span(recording)
    found, _ = begun(span, monkeypatch)
    assert found is not None
    found.end(error, "said")
    assert [
        (one[0].removeprefix("builtins."), one[1].removeprefix("builtins.")) if type(one) is tuple else one
        for one in span.told
    ] == told


def test_nothing_happens_where_nobody_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert begin_span("add", CALL) is None


def test_what_it_raises_is_logged_and_costs_no_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("theirs")

    span = Span()
    found, _ = begun(span, monkeypatch)
    assert found is not None
    span.end = fail  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, tracing.__name__):
        found.end(None)
        monkeypatch.setattr(trace, "get_tracer", fail)
        assert begin_span("add", CALL) is None
    assert [record.getMessage() for record in caplog.records] == [
        "a call's span could not be ended", "a call's span could not be begun",
    ]  # fmt: skip
    # With its traceback: whoever looks for the fault needs it.
    assert all(record.exc_info and "theirs" in str(record.exc_info[1]) for record in caplog.records)

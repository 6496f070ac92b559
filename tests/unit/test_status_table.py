"""What `snakepit status` shows fits an ordinary terminal: headings and ids stand whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from snakepit_trio.cli.common import terminal
from snakepit_trio.cli.status import _show

WORKER = {
    "id": "11737ca66f07", "slot": 12, "state": "starting", "tainted": False, "pid": 4194304, "in_flight": 1,
    "requests": 123456, "rss": 1000 << 20, "last_heartbeat": None, "reason": "",
}  # fmt: skip
REQUEST = {
    "request_id": "bcb2c3adb4-627107", "tool": "measure", "phase": "running", "age": 0.11, "worker_id": "11737ca66f07",
}  # fmt: skip
STATUS = {
    "run_id": "bcb2c3adb4", "program": "server.py", "pid": 4194304, "uptime": 60.0, "backend": "trio", "rss": 1 << 26,
    "versions": {"python": "3.11.7", "snakepit_trio": "0.1.0"}, "sessions": 1,
    "pools": [{
        "name": "default", "adapter": "a_module_with_a_long.name",
        "stats": {
            "ready": 12, "size": 12, "busy": 12, "queued": 1000, "in_flight": 12, "completed": 123456, "failed": 1234,
            "timed_out": 1, "restarts": 123,
        },
        "latency": {"p50": 0.1234, "p95": 0.5678}, "workers": [WORKER], "requests": [REQUEST],
    }],
}  # fmt: skip


def test_eighty_columns_are_enough() -> None:
    out = io.StringIO()
    _show(Console(file=out, width=80, markup=False, highlight=False), STATUS)
    shown = out.getvalue()
    words = shown.split()
    for word in (
        "pool",
        "adapter",
        "restarts",
        "running",
        "heartbeat",
        "123.4",
        "123456",
        "11737ca66f07",
        "bcb2c3adb4-627107",
    ):
        assert word in words, shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_pipe_folds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal().width == 1000
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal().width == 80
    monkeypatch.setenv("COLUMNS", "120")
    assert terminal().width == 120

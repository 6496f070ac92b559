"""The figures that the command line shows are those of what it has measured."""

from __future__ import annotations

import io
from typing import Any

import anyio
import pytest
from rich.console import Console

from snakepit_trio.cli import bench, diagnose
from snakepit_trio.cli.bench import latency, throughput
from snakepit_trio.cli.measure import how_many
from snakepit_trio.cli.status import _request, _show, count
from snakepit_trio.cli.words import duration, quantile, size
from snakepit_trio.control.operations import _latency, _tasks
from tests.unit.test_status_table import REQUEST, STATUS


def test_spans_of_time() -> None:
    shown = {
        0.0: "0 us", 0.0009994: "999 us", 0.0009995: "1.0 ms", 0.0012: "1.2 ms", 0.99994: "999.9 ms", 0.99995: "1.0 s",
        3.04: "3.0 s", 59.94: "59.9 s", 59.95: "1 min", 300: "5 min", 3569: "59 min", 3570: "1.0 h", 5400: "1.5 h",
        86219: "23.9 h", 86220: "1.0 d", 216000: "2.5 d", -0.0012: "-1.2 ms",
    }  # fmt: skip
    assert {seconds: duration(seconds) for seconds in shown} == shown
    assert duration(None) == "-"


def test_sizes() -> None:
    shown = {
        0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 3 << 29: "1.5 GiB", 1 << 40: "1.0 TiB",
        5 << 50: "5120.0 TiB", -2048: "-2.0 KiB",
    }  # fmt: skip
    assert {number: size(number) for number in shown} == shown
    assert size(None) == "-"
    assert [count(n, "session") for n in (None, 0, 1, 2)] == ["? sessions", "0 sessions", "1 session", "2 sessions"]


def test_quantiles() -> None:
    hundred = [float(n) for n in range(1, 101)]
    assert [quantile(hundred, part) for part in (0.0, 0.5, 0.95, 0.99, 0.999, 1.0)] == [1, 50, 95, 99, 100, 100]
    assert [quantile([1.0, 2.0, 3.0], part) for part in (0.3, 0.4, 0.7)] == [1, 2, 3]
    assert quantile([7.0], 0.5) == quantile([7.0], 0.999) == 7


class Watch:
    """A clock that only calls move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.cpu = 5.0
        self.called = 0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.cpu

    async def call(self, data: bytes) -> bytes:
        self.called += 1
        # Those that are not counted take long, so that it is seen when they are.
        self.now += 9.0 if self.called <= bench._WARM_UP else (self.called - bench._WARM_UP) * 1e-6
        return data


@pytest.mark.anyio
async def test_what_a_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    monkeypatch.setattr(bench, "time", watch)
    found = await latency(watch.call, b"x", 1000)
    assert watch.called == bench._WARM_UP + 1000
    assert found == pytest.approx({"p50_us": 500, "p99_us": 990, "p999_us": 999}, abs=0.01)


@pytest.mark.anyio
async def test_how_many_calls_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    monkeypatch.setattr(bench, "time", watch)
    monkeypatch.setattr(bench, "cpu_of_children", lambda: 3 * watch.cpu)

    async def call(data: bytes) -> bytes:
        await anyio.lowlevel.checkpoint()
        watch.called += 1
        if watch.called > 4 * 5:
            # As if four calls were made at once, and each took a millisecond.
            watch.now += 0.001 / 4
            watch.cpu += 50e-6
        return data

    found = await throughput(call, b"x", 4, 403)
    assert watch.called == 4 * 5 + 400
    assert found == pytest.approx({"calls_per_second": 4000, "host_cpu_us": 50, "worker_cpu_us": 150})


def test_medians_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    one = {"p50_us": 50.0, "p99_us": 90.0, "calls_per_second": 9000.0, "host_cpu_us": 12.34, "worker_cpu_us": 56.78}
    other = {**one, "p50_us": 200.0, "calls_per_second": 3000.0}
    options = {"rounds": 3, "workers": 2, "callers": 64, "payload": 100}
    bench._show({"snakepit_trio": {**one, "chunks_per_second": 123456.0}, "other": other}, options)
    out = capsys.readouterr().out
    assert "0.25x the latency, 3.00x the calls/s" in out
    assert "123456 chunks/s" in out
    shown = ["snakepit_trio", "50", "us", "90", "us", "9000", "12.3", "us", "56.8", "us", "|"]
    assert out.splitlines()[1].split() == shown
    assert "medians of 3 rounds; 2 workers; calls/s with 64 callers; 100 bytes there and back" in out


def test_how_many_workers_fit() -> None:
    each = {"memory": 100, "descriptors": 7, "pids": 3}
    found = how_many(each, {"memory": 999, "descriptors": 70, "pids": 32})
    assert found == {"fits": {"memory": 9, "descriptors": 10, "pids": 10}, "workers": 9, "limited_by": "memory"}
    assert how_many(each, {"memory": None, "descriptors": 13, "pids": 0})["workers"] == 0
    none = how_many(each, {"memory": -5, "descriptors": 7, "pids": 3})
    assert none["fits"] == {"memory": 0, "descriptors": 1, "pids": 1}
    assert how_many(each, dict.fromkeys(each)) == {"fits": {}, "workers": None, "limited_by": None}


def test_a_diagnosis(capsys: pytest.CaptureFixture[str]) -> None:
    scaling = {
        "per_worker": {"memory": 5 << 20, "rss": 30 << 20, "descriptors": 7, "pids": 3},
        "room": {"memory": 1 << 30, "descriptors": None, "pids": 9}, "fits": {"memory": 204, "pids": 3}, "workers": 3,
        "limited_by": "pids", "cores": 8, "first_worker_after": 0.25, "next_worker_after": 0.0125,
    }  # fmt: skip
    calls = {"p50": 0.000123, "p99": 0.0045, "callers": 16, "calls_per_second": 9876.5, "cancel_max": 0.0021}
    diagnose._show({"adapter": "it", "scaling": scaling, "latency": calls})
    shown = capsys.readouterr().out
    for line in (
        "the first was ready after 250.0 ms, each more after 12.5 ms",
        "memory: 5.0 MiB of its own (30.0 MiB with what is shared) each, room for 1.0 GiB: 204 workers",
        "descriptors: 7 each, no limit",
        "pids: 3 each, room for 9: 3 workers",
        "so 3 fit, limited by pids; 8 can run at the same time",
        "one after another: 123 us in the median, 4.5 ms for 99 of 100",
        "16 callers at once: 9876 calls/s",
        "a cancelled scope was left within 2.1 ms",
    ):
        assert f"  {line}\n" in shown


def test_how_long_calls_took_of_late() -> None:
    ended: list[dict[str, Any]] = [
        {"ago": ago, "outcome": "completed", "duration": float(ago), "queue_wait": ago / 2} for ago in range(1, 41)
    ]
    ended += [{"ago": 1, "outcome": "failed", "duration": 99.0, "queue_wait": 99.0}]
    found = _latency(ended, 20.0)
    assert found == {"window": 20.0, "count": 20, "p50": 11.0, "p95": 20.0, "max": 20.0, "wait_p50": 5.5}
    assert _latency(ended, 40.0)["p95"] == 39.0
    assert _latency(ended[:1], 5.0)["p50"] == 1.0
    assert _latency(ended, 0.5) == {"window": 0.5, "count": 0, "p50": None, "p95": None, "max": None, "wait_p50": None}


def test_the_figures_of_a_status() -> None:
    out = io.StringIO()
    _show(Console(file=out, width=200, markup=False, highlight=False), STATUS)
    rows = {words[0]: words for line in out.getvalue().splitlines() if (words := line.split())}
    pool, worker, request = (rows[name] for name in ("default", "11737ca66f07", "bcb2c3adb4-627107"))
    figures = ["12/12", "1000", "12", "123456", "1235", "123", "123.4", "ms", "567.8", "ms"]
    assert pool == ["default", "a_module_with_a_long.name", *figures]
    assert worker == ["11737ca66f07", "default", "12", "starting", "4194304", "1", "123456", "1000.0", "MiB", "-"]
    assert request == ["bcb2c3adb4-627107", "default", "measure", "running", "110.0", "ms", "11737ca66f07"]
    one = {**REQUEST, "age": 2.0, "running_for": None, "time_left": None, "attempt": 1, "session_id": ""}
    assert _request(one) == "request bcb2c3adb4-627107: measure, 2.0 s old"
    more = {**one, "running_for": 1.5, "time_left": 0.5, "attempt": 2, "session_id": "s"}
    assert (
        _request(more)
        == "request bcb2c3adb4-627107: measure, 2.0 s old, running for 1.5 s, 500.0 ms left, attempt 2, session s"
    )


@pytest.mark.anyio
async def test_the_tasks_of_a_tree() -> None:
    """The library's, and what they have started; not those of the application beside it."""

    async def parent(*, task_status: Any) -> None:
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(anyio.sleep_forever, name="of.theirs")
            nursery.start_soon(anyio.sleep_forever, name="snakepit_trio.pool.deadline_task")
            task_status.started()

    async with anyio.create_task_group() as nursery:
        nursery.start_soon(anyio.sleep_forever, name="the application's")
        await nursery.start(parent, name="snakepit_trio.runtime.root")
        found = {task["name"]: task for task in _tasks()}
        nursery.cancel_scope.cancel()
    assert found.keys() == {"of.theirs", "snakepit_trio.pool.deadline_task", "snakepit_trio.runtime.root"}
    root = found["snakepit_trio.runtime.root"]["id"]
    assert found["of.theirs"]["parent"] == found["snakepit_trio.pool.deadline_task"]["parent"] == root

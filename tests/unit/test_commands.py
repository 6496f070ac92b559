"""What the commands say and how they end, without a runtime: of runs, of failures, on a screen."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
import typer
from rich.console import Console

import snakepit_trio as sp
from snakepit_trio.cli import common, runs, screen, status
from snakepit_trio.control import client as control
from snakepit_trio.control.client import ControlError
from snakepit_trio.errors import ConfigError, WorkerCrashed, WorkerStartupError
from snakepit_trio.supervision import runs as listed
from snakepit_trio.supervision.runs import RunEntry
from tests.unit.test_status_table import REQUEST, STATUS, WORKER


def shown(value: Any, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False).print(value)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


# ---- which run is meant ------------------------------------------------------------------------------

DEAD = RunEntry(run_id="dead01", alive=False, pid=7, program="old.py")
ONE = RunEntry(run_id="abc123", alive=True, pid=11, program="one.py", control="/one", started=time.time() - 7200)
TWO = RunEntry(run_id="abd456", alive=True, pid=12, program="two.py", control="/two")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunEntry]:
    """The runs that there are."""
    entries: list[RunEntry] = []
    monkeypatch.setattr(listed, "list_runs", lambda directory: list(entries))
    monkeypatch.setenv("SNAKEPIT_STATE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    return entries


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any, of: Any = runs.choose) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as exited:
        of(*arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    return exited.value.exit_code, captured.err.strip()


def test_the_only_one_is_meant(here: list[RunEntry]) -> None:
    here += [DEAD, ONE]
    assert runs.choose(None, None) is ONE
    here.append(TWO)
    assert runs.choose(None, "abd") is TWO and runs.choose(None, "abc123") is ONE


def test_which_is_not_clear(here: list[RunEntry], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = f"snakepit: no runtime is running (state directory {tmp_path})"
    assert refusal(capsys, None, None) == (1, nothing)
    here += [DEAD]
    assert refusal(capsys, None, None) == (1, nothing)
    assert refusal(capsys, None, "dead") == (1, nothing)
    here += [ONE, TWO]
    several = "snakepit: there are 2 runtimes: abc123 (one.py, pid 11), abd456 (two.py, pid 12); choose one with --run"
    assert refusal(capsys, None, None) == refusal(capsys, None, "ab") == (1, several)
    assert refusal(capsys, None, "x") == (1, f"snakepit: there is no run 'x' in {tmp_path}")


def test_all_that_are_there(here: list[RunEntry], tmp_path: Path) -> None:
    assert runs.find(None) == (tmp_path, [])
    here += [DEAD, ONE, TWO]
    assert runs.find(None) == (tmp_path, [DEAD, ONE, TWO])
    assert runs.find(None, "ab") == (tmp_path, [ONE, TWO])


def test_a_state_directory_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "state"
    place.mkdir(0o700)
    # Anybody may put another in its place.
    tmp_path.chmod(0o777)
    code, words = refusal(capsys, str(place), of=runs.own_state_directory)
    assert code == 1 and words.startswith(f"snakepit: the state directory {place} can't be used: ")
    tmp_path.chmod(0o700)
    assert runs.own_state_directory(str(place)) == place


@pytest.mark.anyio
async def test_each_live_one_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Client:
        async def ask(self, op: str, **options: Any) -> dict[str, Any]:
            asked.append((op, options))
            return {"pools": []}

    @asynccontextmanager
    async def connect(path: str) -> AsyncIterator[Client]:
        if path == "/two":
            raise ControlError("nobody answers", code="unreachable")
        yield Client()

    monkeypatch.setattr(control, "connect", connect)
    found = await runs.look([DEAD, ONE, TWO], tree=True)
    assert [(one.entry, one.status, one.problem, one.state) for one in found] == [
        (DEAD, None, "its host is gone", "stale"),
        (ONE, {"pools": []}, "", "running"),
        (TWO, None, "nobody answers", "silent"),
    ]
    assert asked == [("status", {"timeout": 5.0, "tree": True})]
    await runs.look([ONE])
    assert asked[-1][1]["tree"] is False


# ---- how a run is shown ------------------------------------------------------------------------------


def test_one_that_does_not_answer() -> None:
    def said(entry: RunEntry, problem: str = "") -> str:
        return status._without_answer(runs.Found(entry, None, problem))

    assert said(DEAD) == "run dead01: old.py, pid 7: stale, its host was killed; `snakepit cleanup` clears it away"
    one = attrs.evolve(ONE, started=time.time() - 7200)
    assert said(one, "no\nword") == "run abc123: one.py, pid 11, begun 2.0 h ago: alive, but no word"
    assert said(RunEntry(run_id="x", alive=True), "no") == "run x: unknown program, pid ?: alive, but no"


def test_its_title() -> None:
    assert status._title(STATUS) == (
        "run bcb2c3adb4: server.py, pid 4194304, up 1 min, Python 3.11.7 on trio, snakepit_trio 0.1.0, 64.0 MiB, 1 session"
    )
    assert status._title({**STATUS, "program": ""}).startswith("run bcb2c3adb4: python, pid")


def test_the_state_of_a_worker() -> None:
    assert status.state_of(WORKER) == "starting"
    assert status.state_of({**WORKER, "tainted": True}) == "starting, tainted"


def request(**fields: Any) -> dict[str, Any]:
    return {**REQUEST, "running_for": None, "time_left": None, "attempt": 1, "session_id": "", **fields}


def test_a_tree() -> None:
    workers = [
        WORKER,
        {**WORKER, "id": "spare1", "slot": -1, "pid": 0, "state": "spare", "reason": "kept"},
        {**WORKER, "id": "other1", "slot": 0, "state": "busy"},
    ]
    requests = [
        request(running_for=1.0),
        request(request_id="r2", worker_id="other1", phase="running"),
        request(request_id="r3", worker_id="11737ca66f07", phase="cancelling"),
        request(request_id="r4", worker_id=None, phase="queued"),
    ]
    tasks = [
        {"id": 1, "parent": 9, "name": "snakepit_trio.runtime._root"},
        {"id": 2, "parent": 1, "name": "snakepit_trio.b"},
        {"id": 3, "parent": 1, "name": "a.of.theirs"},
        {"id": 4, "parent": 3, "name": "below"},
    ]
    (pool,) = STATUS["pools"]
    found = shown(
        status._tree({**STATUS, "pools": [{**pool, "workers": workers, "requests": requests}], "tasks": tasks})
    )
    assert found.splitlines()[1:] == [
        "├── pool default (a_module_with_a_long.name): 12 of 12 ready",
        "│   ├── worker 11737ca66f07: slot 12, pid 4194304, starting",
        "│   │   └── request bcb2c3adb4-627107: measure, 110.0 ms old, running for 1.0 s",
        "│   ├── worker spare1: pid -, spare, kept",
        "│   ├── worker other1: slot 0, pid 4194304, busy",
        "│   │   └── request r2: measure, 110.0 ms old",
        "│   └── queue: 1000 waiting",
        "│       ├── request r3: measure, 110.0 ms old",
        "│       └── request r4: measure, 110.0 ms old",
        "└── nurseries: 4 tasks",
        "    └── runtime._root",
        "        ├── a.of.theirs",
        "        │   └── below",
        "        └── b",
    ]
    bare = shown(status._tree({**STATUS, "pools": [{**pool, "workers": [], "requests": []}]}))
    assert "queue" not in bare and "nurseries" not in bare


def test_the_figures_of_workers_and_pools() -> None:
    (pool,) = STATUS["pools"]
    workers = [
        {**WORKER, "last_heartbeat": time.time() - 90, "reason": "why"},
        {**WORKER, "last_heartbeat": time.time() + 90},
    ]
    found = io.StringIO()
    console = Console(file=found, width=200, markup=False, highlight=False)
    status._show(console, {**STATUS, "pools": [{**pool, "workers": [*workers, {**WORKER, "rss": 0, "pid": 0}]}]})
    lines = [line.split() for line in found.getvalue().splitlines() if line.startswith("11737ca66f07")]
    assert [line[-3:] for line in lines[:2]] == [["2", "min", "why"], ["MiB", "0", "us"]]
    assert lines[2] == ["11737ca66f07", "default", "12", "starting", "-", "1", "123456", "-", "-"]


# ---- the screen --------------------------------------------------------------------------------------


def test_bars() -> None:
    assert screen.spark([]) == "" and screen.spark([None, 0.0, None]) == " ▁ "
    assert screen.spark([0, 1, 2, 3, 4, 5, 6, 7, 8]) == "▁▁▂▃▄▅▆▇█"
    assert screen.spark([1, None, 1000]) == "▁ █"


def test_an_event_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    told = {
        "name": "worker.ready",
        "time": 3661.0,
        "measurements": {"size": 2, "after": 0.123456},
        "metadata": {"pool": "a\nb"},
    }
    assert screen._event(told).plain == "01:01:01  worker.ready  size=2  after=0.123  pool=a b"


def test_a_row_of_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(screen.time, "monotonic", lambda: now)
    made = screen.Screen("/nowhere")
    (pool,) = STATUS["pools"]
    first = made._pool_row(pool)
    figures = ("default", "12/12", "12", "1000", "12", "123456", "1235", "123", "0", "123.4 ms", "567.8 ms")
    assert first[:11] == figures
    assert first[11:] == ("█".rjust(16), "█".rjust(16))
    now += 2.0
    stats = {**pool["stats"], "completed": 123456 + 30, "failed": 1234 + 10, "queued": 500}
    second = made._pool_row({**pool, "stats": stats, "latency": {"p50": None, "p95": None}})
    assert second[8:11] == ("20", "-", "-")
    assert second[11:] == ("█ ".rjust(16), "█▄".rjust(16))
    for _ in range(20):
        last = made._pool_row(pool)
    assert last[11] == "█" * 16
    # The other pool's are its own.
    assert made._pool_row({**pool, "name": "other"})[8:12] == ("0", "123.4 ms", "567.8 ms", "█".rjust(16))


# ---- failures ----------------------------------------------------------------------------------------


def test_a_failure_in_words() -> None:
    assert common.describe(LookupError("no")) == "LookupError: no"
    assert common.describe(sp.ToolNotFound("no such")) == "tool_not_found: no such"
    lines = "\n".join(str(n) for n in range(30))
    died = WorkerCrashed("it died", details={"stderr": f"{lines}\n\n"})
    assert common.last_words(died).split("\n") == [str(n) for n in range(10, 30)]
    assert common.describe(died) == f"{died.code}: it died; the last that it wrote:\n{common.last_words(died)}"
    raised = sp.remote(ValueError)("no")
    raised.remote_traceback = "Traceback\n  here\n\n"
    assert common.describe(raised).endswith("no\nTraceback\n  here")
    assert common.last_words(LookupError()) == ""


def test_why_it_could_not_be_started() -> None:
    def said(**details: str) -> str:
        return common.start_failure(WorkerStartupError("no worker: boom", details=details))

    assert said() == "no worker: boom"
    assert said(stderr="boom\n") == "no worker: boom"
    assert said(stderr="\n  first\nlast \n") == "no worker: boom\n  first\nlast"
    assert said(stderr="other", remote_traceback="trace") == "no worker: boom\ntrace"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("size: no"), 2, "size: no"),
        (WorkerStartupError("no worker"), 2, "no worker"),
        (sp.QueueFull("full"), 1, "queue_full: full"),
    ],
)
def test_the_exit_code_of_a_failure(
    error: Exception, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> int:
        raise error

    assert refusal(capsys, main, of=common.run) == (code, f"snakepit: {words}")


def test_the_exit_code_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for code in (0, 1, 5):

        async def main(code: int = code) -> int:
            await anyio.lowlevel.checkpoint()
            return code

        assert refusal(capsys, main, of=common.run) == (code, "")


def test_whoever_read_its_output_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> int:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(typer.Exit) as exited:
        common.run(main)
    assert exited.value.exit_code == 1 and sys.stderr.closed


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_signal_cancels_a_command(
    number: signal.Signals, word: str, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned: list[bool] = []

    async def main() -> int:
        try:
            await anyio.wait_all_tasks_blocked()
            os.kill(os.getpid(), number)
            await anyio.sleep_forever()
        finally:
            cleaned.append(True)
        return 0

    before = signal.getsignal(signal.SIGINT)
    try:
        found = refusal(capsys, main, of=lambda main: common.run(main, backend=backend))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert found == (128 + number, f"snakepit: {word}")
        with pytest.raises(typer.Exit):
            common.run(main, lambda: "3 of 4 are done", backend=backend)
        assert capsys.readouterr().err == "snakepit: 3 of 4 are done\n"
    finally:
        signal.signal(signal.SIGINT, before)
    assert cleaned == [True, True]


def test_json_for_people_and_for_programs() -> None:
    value = {"a": (1, 2), "b": b"x", "c": float("nan"), "größe": {1}}
    assert json.loads(common.to_json(value))["a"] == [1, 2]
    assert "\n" not in common.to_json(value)
    assert "größe" in common.to_json(value, indent=2) and common.to_json({"a": 1}, indent=2) == '{\n  "a": 1\n}'

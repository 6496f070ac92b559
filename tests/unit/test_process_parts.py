"""What surrounds worker processes, without one: pipes, reports, locks, lists of runs, what plain answers mean, whose a line is."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from snakepit_trio.errors import WorkerStartupError
from snakepit_trio.launch import base, descriptors
from snakepit_trio.launch.base import WorkerSpec
from snakepit_trio.launch.command import CommandLauncher
from snakepit_trio.launch.descriptors import make_descriptors
from snakepit_trio.observe.correlation import CURRENT, Correlation, CorrelationFilter
from snakepit_trio.observe.recorder import _plain, _prune
from snakepit_trio.supervision import runs
from snakepit_trio.supervision.answers import error_info, read_response
from snakepit_trio.supervision.identity import Seen
from snakepit_trio.supervision.locks import Locks
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.wire.startup import Report

# ---- launch --------------------------------------------------------------------------------------------


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_pipes_of_a_worker() -> None:
    made = make_descriptors()
    host = (made.lifeline_write, made.report_read, made.stdout_read, made.stderr_read)
    assert made.for_worker == (
        made.lifeline_read, made.report_write, made.marks_file, made.stdout_write, made.stderr_write,
    )  # fmt: skip
    assert len({*host, *made.for_worker}) == 9 and all(map(is_open, (*host, *made.for_worker)))
    assert not made.report_stays and made.marks is not None
    # The host waits for none of its ends by a blocked read; a worker's are as any program expects them.
    assert not any(map(os.get_blocking, host)) and all(map(os.get_blocking, made.for_worker))
    assert not any(map(os.get_inheritable, (*host, *made.for_worker)))
    made.started()
    assert [is_open(fd) for fd in made.for_worker] == [True, False, True, False, False]
    made.close_all()
    made.close_all()
    assert not any(map(is_open, (*host, made.lifeline_read)))


def test_a_report_by_name_stays_open_and_without_marks_there_are_none(tmp_path: Path) -> None:
    made = make_descriptors(marks=False, report=str(tmp_path / "ready"))
    found = (tmp_path / "ready").stat().st_mode
    assert stat.S_ISFIFO(found) and found & 0o777 == 0o600
    assert made.report_stays and made.marks is None and made.marks_file == -1
    assert not os.get_blocking(made.report_read) and os.get_blocking(made.report_write)
    with open(tmp_path / "ready", "w") as pipe:
        pipe.write("here\n")
    assert os.read(made.report_read, 100) == b"here\n"
    made.close_all()
    with pytest.raises(WorkerStartupError, match="no pipes for a worker") as failed:
        make_descriptors(report=str(tmp_path / "ready"))
    assert "exists" in failed.value.details["reason"]


def test_pipes_that_can_not_be_made_leave_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    pipe = descriptors._forks.pipe

    def fail() -> tuple[int, int]:
        if len(made) == 3:
            raise OSError(24, "Too many open files")
        made.append(pipe())
        return made[-1]

    monkeypatch.setattr(descriptors._forks, "pipe", fail)
    with pytest.raises(WorkerStartupError, match="Too many open files"):
        make_descriptors()
    assert not any(is_open(fd) for pair in made for fd in pair)


@pytest.mark.parametrize(
    ("said", "whole", "found"),
    [
        (b"unix:/a", False, None),
        (b"unix:/a", True, "unix:/a"),
        (b"unix:/a\n", False, "unix:/a"),
        (b" unix:/a \nmore", False, "unix:/a"),
        (b"tcp:127.0.0.1:5\n", False, "tcp:127.0.0.1:5"),
        (b"", False, None),
        (b"", True, ""),
        (b"\n", False, ""),
        (b"error: no model \n", False, "no model!"),
        (b"error:\n", False, "!"),
        (b"tcp:10.0.0.1:5\n", False, "reported 'tcp:10.0.0.1:5'; expected unix:PATH or tcp:HOST:PORT with a loopback address!"),
        (b"\xff\n", False, "reported '\\\\xff'; expected unix:PATH or tcp:HOST:PORT with a loopback address!"),
        (
            b"x" * 300 + b"\n", False,
            f"reported {'x' * 200!r}; expected unix:PATH or tcp:HOST:PORT with a loopback address!",
        ),
    ],
)  # fmt: skip
def test_the_line_of_a_command(said: bytes, whole: bool, found: str | None) -> None:
    report = CommandLauncher(["x"], Path("/d"))._read_report(said, whole)
    if found is None:
        assert report is None
    elif found.endswith("!"):
        assert report == Report(code="worker_startup", message=found[:-1])
    else:
        assert report == Report(address=found)


def test_what_a_worker_is_unless_somebody_says_otherwise() -> None:
    spec = WorkerSpec(worker_id="w", run_id="r", pool="p", adapter="a", token="secret")
    told = (spec.threads, spec.worker_backend, spec.host_backend, spec.shm_limit, spec.unserializable, spec.bind)
    assert told == (1, "auto", "trio", 0, "error", "127.0.0.1")
    assert (
        spec.max_payload == 64 << 20 and spec.socket_dir is spec.python is spec.cwd is spec.tls is spec.device is None
    )
    assert dict(spec.env) == dict(spec.own_env) == {}
    assert "secret" not in repr(spec)
    assert base.Launcher.same_machine


# ---- processes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        ("{exe} -P -u -m snakepit_trio.worker --run r1 --worker w", True),
        ("{exe} -m snakepit_trio.launch.template --run r1", True),
        ("{exe} -c snakepit_trio /p snakepit_trio.worker --run r1", True),
        ("{exe} -u -c snakepit_trio /p snakepit_trio.worker --run r1", True),
        ("{exe} -u -c other /p snakepit_trio.worker --run r1", False),
        ("{exe} -u -x snakepit_trio /p snakepit_trio.worker --run r1", False),
        ("{exe} -m snakepit_trio.worker --run r2", False),
        ("{exe} -m snakepit_trio.worker --run", False),
        ("{exe} -m snakepit_trio.worker", False),
        ("{exe} -m snakepit_trio.cli --run r1", False),
        ("{exe} snakepit_trio.worker --run r1", False),
        ("/bin/other -m snakepit_trio.worker --run r1", False),
        ("--run r1", False),
    ],
)
def test_whose_a_command_line_is(words: str, ours: bool) -> None:
    argv = tuple(words.format(exe=sys.executable).split())
    seen = Seen(1, 2, 3, os.path.realpath(sys.executable), argv, frozenset({"A=1", "B=2"}))
    assert seen.is_program_of("r1") is ours
    assert seen.says(A="1") and seen.says(A="1", B="2") and not seen.says(A="1", B="1") and not seen.says(C="")


# ---- runs ----------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_who_lives_and_seized_by_one_other(tmp_path: Path) -> None:
    locks = Locks(tmp_path)
    fd = locks.begin("r1", tmp_path / "d")
    path = tmp_path / "runs" / "r1.lock"
    assert path.stat().st_mode & 0o777 == 0o600 and locks.stands("r1", fd)
    assert locks.seize("r1") is None
    (entry,) = runs.list_runs(tmp_path)
    assert (entry.run_id, entry.alive, entry.pid, entry.run_dir) == ("r1", True, os.getpid(), str(tmp_path / "d"))
    assert entry.control == str(tmp_path / "runs" / "r1.sock") and abs(entry.started - time.time()) < 60
    os.rename(path, tmp_path / "elsewhere")
    assert not locks.stands("r1", fd)
    path.write_text("another's")
    assert not locks.stands("r1", fd)
    os.rename(tmp_path / "elsewhere", path)
    os.close(fd)
    seized = locks.seize("r1")
    assert seized is not None and locks.seize("r1") is None
    os.close(seized)
    (tmp_path / "runs" / "r1.sock").touch()
    locks.remove("r1")
    locks.remove("r1")
    assert list((tmp_path / "runs").iterdir()) == []


def test_lock_files_that_say_little(tmp_path: Path) -> None:
    assert runs.list_runs(tmp_path / "nothing") == []
    folder = tmp_path / "runs"
    folder.mkdir(0o700)
    old = time.time() - 6
    for name, text in (
        ("new", ""), ("old", ""), ("list", "[1]"), ("text", "{"),
        ("odd", json.dumps({"run_id": "x", "alive": True, "pid": "5", "program": "p", "started": 2, "control": 7})),
    ):  # fmt: skip
        (folder / f"{name}.lock").write_text(text)
        (folder / f"{name}.lock").chmod(0o600)
        if name != "new":
            os.utime(folder / f"{name}.lock", (old, old))
    (folder / "other.txt").touch()
    (folder / "first.lock").write_text(json.dumps({"started": 1.5, "pid": 9}))
    (folder / "first.lock").chmod(0o600)
    found = runs.list_runs(tmp_path)
    # One that is empty and new is just beginning.
    assert [entry.run_id for entry in found] == ["list", "odd", "old", "text", "first"]
    by = {entry.run_id: entry for entry in found}
    assert by["odd"] == runs.RunEntry(run_id="odd", alive=False, program="p")
    assert by["list"] == runs.RunEntry(run_id="list", alive=False)
    assert (by["first"].pid, by["first"].started) == (9, 1.5)
    with open(folder / "new.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert [entry.run_id for entry in runs.list_runs(tmp_path) if entry.alive] == ["new"]


# ---- plain answers -------------------------------------------------------------------------------------


def test_the_payload_of_an_answer() -> None:
    message = bytes(v1.ExecuteResponse(payload=v1.Payload(encoding=v1.Encoding.JSON, data=b"1")))
    assert bytes(read_response(message).data) == b"1"
    with pytest.raises(ValueError, match="no payload"):
        read_response(b"")
    with pytest.raises(ValueError, match="no ExecuteResponse"):
        read_response(b"\x0a\xff")


@pytest.mark.parametrize(
    ("status", "code", "types", "retryable"),
    [
        (1, "request_cancelled", ["grpc.CANCELLED"], False),
        (2, "tool_error", ["grpc.UNKNOWN"], False),
        (3, "invalid_parameter", [], False),
        (4, "request_timeout", ["grpc.DEADLINE_EXCEEDED"], False),
        (5, "tool_not_found", [], False),
        (6, "tool_error", ["grpc.ALREADY_EXISTS"], False),
        (7, "tool_error", ["grpc.PERMISSION_DENIED"], False),
        (8, "tool_error", ["grpc.RESOURCE_EXHAUSTED"], False),
        (9, "tool_error", ["grpc.FAILED_PRECONDITION"], False),
        (10, "tool_error", ["grpc.ABORTED"], False),
        (11, "tool_error", ["grpc.OUT_OF_RANGE"], False),
        (12, "streaming_unsupported", [], False),
        (13, "tool_error", ["grpc.INTERNAL"], False),
        (14, "tool_error", ["grpc.UNAVAILABLE"], True),
        (15, "tool_error", ["grpc.DATA_LOSS"], False),
        (16, "authentication_failed", ["grpc.UNAUTHENTICATED"], False),
        (17, "tool_error", ["grpc.status 17"], False),
        (99, "tool_error", ["grpc.status 99"], False),
    ],
)
def test_what_a_status_means(status: int, code: str, types: list[str], retryable: bool) -> None:
    info = error_info(status, "a secret", {}, lambda text: text.replace("secret", "***"))
    assert (info.code, list(info.remote_types), info.retryable) == (code, types, retryable)
    # What the tool says is its own text, all else is the library's.
    assert "a ***" in (
        info.message,
        info.remote_traceback,
        *[str(getattr(info, name)) for name in info.__struct_fields__],
    )
    assert "secret" not in repr(info)


@pytest.mark.parametrize(
    ("message", "types"),
    [
        ("Exception calling application: x\ny", []),
        ("Exception iterating responses: x\ny", []),
        ("Unexpected <class 'ValueError'>: x\ny", ["builtins.ValueError"]),
        ("Unexpected <class 'a.B'>: x\ny", ["a.B"]),
        ("Server method handler threw error x\ny", []),
    ],
)
def test_what_libraries_say_of_exceptions(message: str, types: list[str]) -> None:
    info = error_info(14, message, {}, str)
    assert (info.code, list(info.remote_types), info.retryable) == ("tool_error", types, False)
    assert "x\ny" in [getattr(info, name) for name in info.__struct_fields__]


# ---- observe -------------------------------------------------------------------------------------------


def test_what_a_record_is_marked_with() -> None:
    def marked(**fields: Any) -> tuple[Any, ...]:
        record = logging.makeLogRecord(fields)
        assert CorrelationFilter().filter(record) is True
        return tuple(getattr(record, name) for name in ("request_id", "worker_id", "session_id"))

    assert marked() == ("-", "-", "-")
    token = CURRENT.set(Correlation("r", "w", None))
    try:
        assert marked() == ("r", "w", "-")
        # What has been said already stays.
        assert marked(worker_id="other", session_id="s") == ("r", "other", "s")
    finally:
        CURRENT.reset(token)


def test_only_so_many_dumps_are_kept(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number % 3}-{number}.json").touch()
        os.utime(tmp_path / f"{number % 3}-{number}.json", (1000 + number, 1000 + number))
    (tmp_path / "kept.txt").touch()
    _prune(tmp_path)
    left = sorted(int(path.stem.split("-")[1]) for path in tmp_path.glob("*.json"))
    assert left == list(range(5, 25)) and (tmp_path / "kept.txt").exists()
    _prune(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 20


def test_values_of_a_dump() -> None:
    nan, inf = float("nan"), float("inf")
    given = {1: [nan, inf, 1.5], "a": (True, None, 2), "b": {"x"}, "c": Path("/p"), "d": {"e": frozenset({1})}}
    assert _plain(cast("Any", given)) == {
        "1": [None, None, 1.5], "a": [True, None, 2], "b": ["x"], "c": "/p", "d": {"e": [1]},
    }  # fmt: skip

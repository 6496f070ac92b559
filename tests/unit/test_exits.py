"""How the end of a worker is told, what it printed, and whether a silent one is at work; and what both sides say at its start."""

from __future__ import annotations

import json
import logging
import math
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio.errors import WorkerStartupError
from snakepit_trio.launch.base import ExitStatus
from snakepit_trio.observe.worker_output import WorkerOutput
from snakepit_trio.supervision import logs
from snakepit_trio.supervision.exits import Exit, classify, explain
from snakepit_trio.supervision.logs import Tail, pump
from snakepit_trio.supervision.progress import Progress
from snakepit_trio.wire.addresses import is_loopback, parse_address
from snakepit_trio.wire.startup import Boot, Credentials, Report

KILL = ExitStatus(signal=9)


@pytest.mark.parametrize(
    ("status", "out_of_memory", "reason", "words", "name"),
    [
        (ExitStatus(code=0), False, "exited", "exited with code 0", None),
        (ExitStatus(code=3), True, "exited", "exited with code 3", None),
        (ExitStatus(), False, "exited", "ended; how is not known", None),
        (KILL, False, "killed", "was killed by SIGKILL", "SIGKILL"),
        (KILL, True, "oom_killed", "was killed by the system for lack of memory", "SIGKILL"),
        (ExitStatus(signal=11), True, "segfault", "crashed with a segmentation fault", "SIGSEGV"),
        (ExitStatus(signal=signal.SIGBUS), False, "segfault", "crashed with a bus error", "SIGBUS"),
        (ExitStatus(signal=signal.SIGABRT), False, "aborted", "aborted", "SIGABRT"),
        (ExitStatus(signal=15), False, "signal", "was ended by SIGTERM", "SIGTERM"),
        (ExitStatus(signal=63), False, "signal", "ended by signal 63", "63"),
        (ExitStatus(signal=9, lost="the node"), True, "node_lost", "was lost with its node: the node", None),
    ],
)
def test_how_a_process_has_ended(
    status: ExitStatus, out_of_memory: bool, reason: str, words: str, name: str | None
) -> None:
    assert classify(status, out_of_memory=out_of_memory) == (reason, words, name)


def ended(reason: str, status: ExitStatus | None = KILL, **fields: Any) -> Exit:
    given = {"out_of_memory": False, "killed": False, "stopping": False, "stderr": "", "failure": None, **fields}
    return explain(reason, "seen first", status, **given)


@pytest.mark.parametrize(
    ("reason", "status", "killed", "found", "name"),
    [
        # A connection is lost because the process has ended; unless it was this side that ended it.
        ("connection_lost", KILL, False, "killed", "SIGKILL"), ("connection_lost", KILL, True, "connection_lost", "SIGKILL"),
        ("connection_lost", ExitStatus(signal=11), True, "segfault", "SIGSEGV"),
        ("connection_lost", ExitStatus(code=1), True, "connection_lost", None), ("connection_lost", ExitStatus(code=1), False, "exited", None),
        ("connection_lost", None, True, "connection_lost", None),
        ("heartbeat", KILL, True, "heartbeat", "SIGKILL"), ("heartbeat", ExitStatus(lost="x"), True, "node_lost", None),
        ("connection_lost", ExitStatus(lost="x"), True, "node_lost", None), ("cancel_grace", ExitStatus(lost="x"), True, "cancel_grace", None),
        # One that has said why it can't start was killed for tidiness.
        ("startup", KILL, True, "startup", None), ("startup", ExitStatus(signal=11), False, "startup", "SIGSEGV"),
    ],
)  # fmt: skip
def test_what_was_seen_first_and_how_the_process_ended(
    reason: str, status: ExitStatus | None, killed: bool, found: str, name: str | None
) -> None:
    told = ended(reason, status, killed=killed)
    assert (told.reason, told.signal, told.code) == (found, name, status.code if status else None)
    assert (told.message == "seen first") is (found == reason)


def test_what_is_told_of_an_end() -> None:
    assert [ended(reason, stopping=stopping).expected for reason, stopping in (("stopped", False), ("exited", True), ("exited", False))] == [
        True, True, False,
    ]  # fmt: skip
    long = explain(
        "protocol",
        "\x1b" + "x" * 9000,
        None,
        out_of_memory=False,
        killed=False,
        stopping=False,
        stderr="",
        failure=None,
    )
    assert long.message == "\\x1b" + "x" * 8191
    assert ended("exited", ExitStatus(code=0)).details() == {"reason": "exited", "exit_code": 0}
    assert ended("connection_lost", stderr="last").details() == {
        "reason": "killed",
        "signal": "SIGKILL",
        "stderr": "last",
    }
    failure = WorkerStartupError(
        "no", details={"remote_types": ["builtins.ValueError", "x\n\x1b"], "remote_traceback": "t\x1b"}
    )
    told = ended("startup", failure=failure, killed=True)
    assert (told.remote_types, told.remote_traceback, told.differs) == (
        ("builtins.ValueError", "x\n\\x1b"),
        "t\\x1b",
        False,
    )
    assert told.details() == {"reason": "startup", "remote_type": "ValueError", "remote_traceback": "t\\x1b"}


def test_whether_another_one_would_start() -> None:
    config, other = "snakepit_trio.errors.ConfigError", "builtins.ValueError"
    found = [
        Exit(reason=reason, message="", remote_types=(kind,), differs=differs).hopeless
        for reason, kind, differs in (
            ("startup", config, False), ("startup", other, False), ("startup", other, True), ("exited", config, True),
        )
    ]  # fmt: skip
    assert found == [True, False, True, False]


# ---- what it printed -----------------------------------------------------------------------------------


def test_the_last_that_it_printed() -> None:
    tail = Tail(lines=3, size=8)
    for line in ("a", "b", "c", "d"):
        tail.add(line)
    assert str(tail) == "b\nc\nd"
    tail.add("12345678")
    assert str(tail) == "12345678"


@pytest.mark.anyio
async def test_lines_however_they_arrive(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LONGEST", 10)

    async def printed(*pieces: bytes) -> list[str]:
        left: Iterator[bytes] = iter((*pieces, b""))

        async def receive() -> bytes:
            return next(left)

        tail = Tail()
        caplog.clear()
        with caplog.at_level(logging.INFO, "snakepit_trio.worker"):
            await pump(
                cast("Any", SimpleNamespace(receive=receive)),
                WorkerOutput("logging", "w", {"stream": "stderr", "worker_id": "w"}),
                tail=tail,
                redact=str.upper,
                levels=True,
            )
        said = [record.getMessage() for record in caplog.records]
        assert all((record.stream, record.worker_id) == ("stderr", "w") for record in caplog.records)  # type: ignore[attr-defined]
        assert str(tail) == "\n".join(said)
        return said

    assert await printed() == []
    assert await printed(b"a\nb", b"c\r\n", b"\n", b"d") == ["A", "BC", "", "D"]
    # A progress bar draws its line again and again.
    assert await printed(b"\r 1%", b"\r 2%\r", b" 3%\r", b"\n\r\r\n") == [" 1%", " 2%", " 3%", ""]
    assert await printed(b"a\r") == ["A"]
    assert await printed(b"\xff\x1b\n") == ["\\XFF\\X1B"]
    assert await printed(b"x" * 10, b"y" * 11) == ["X" * 10, "Y" * 10, "Y"]
    assert await printed(b"x" * 25 + b"\n") == ["X" * 25]
    assert await printed(b"<4>w\n<3>\n<9>") == ["W", "", "<9>"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "INFO"]
    assert await printed(b"x" * 25) == ["X" * 10, "X" * 10, "X" * 5]


@given(st.lists(st.text("ab\r\n", max_size=6).map(str.encode), max_size=6))
def test_lines_are_the_same_wherever_they_are_cut(pieces: list[bytes]) -> None:
    found, rest = [], b""
    for piece in pieces:
        *lines, rest = logs._split(rest + piece)
        found += lines
    assert [*found, rest] == logs._split(b"".join(pieces))


# ---- whether it is at work -----------------------------------------------------------------------------


def test_a_process_that_uses_its_cpu_is_at_work() -> None:
    async def main() -> None:
        used: list[Any] = []

        async def cpu_time() -> float | None:
            if used[0] == "never":
                await trio.sleep_forever()
            found: float | None = used.pop(0)
            return found

        progress = Progress(cast("Any", SimpleNamespace(cpu_time=cpu_time)), 1.0)
        begun = anyio.current_time()
        found = []
        # A twentieth of one core; what can't be told is no sign of work, and neither is the first look after it.
        for value in (5.0, 5.125, 5.125, 5.15625, 5.25, None, 9.0, 9.25):
            used.append(value)
            found.append(await progress.look() - begun)
            await trio.sleep(2.0)
        assert found == [-math.inf, 0.0, -math.inf, -math.inf, -math.inf, -math.inf, -math.inf, 12.0]
        used.append(9.5)
        assert await progress.look() - begun == 14.0
        used.append(9.6)
        # No time has passed.
        assert await progress.look() == -math.inf
        used.append("never")
        assert await progress.look() == -math.inf
        assert anyio.current_time() - begun == 17.0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# ---- what is said at its start -------------------------------------------------------------------------


def test_a_report_says_only_what_there_is() -> None:
    assert json.loads(Report(address="unix:/s", pid=7).encode()) == {"address": "unix:/s", "pid": 7}
    full = Report(
        address="a", pid=1, code="c", message="m\udcff", remote_types=["t"], remote_traceback="r", helpers=[(1, 2)]
    )
    assert Report.decode(full.encode()) == full
    assert Report.decode(b"{}") == Report()
    for bad in (b"", b"[]", b'{"pid": "x"}', b"[" * 100_000, b'{"helpers": [[1]]}'):
        with pytest.raises(ValueError, match=r"no Report message|Expecting"):
            Report.decode(bad)


def test_what_a_worker_is_to_be() -> None:
    least = {
        "worker_id": "w", "run_id": "r", "pool": "p", "adapter": "a", "token": "t", "socket_dir": None, "threads": 1,
        "worker_backend": "auto", "host_backend": "trio", "max_payload": 1,
    }  # fmt: skip
    boot = Boot.decode(json.dumps(least).encode())
    assert (boot.shm_limit, boot.unserializable, boot.bind, boot.tls, boot.env, boot.path) == (
        0,
        "error",
        "127.0.0.1",
        None,
        {},
        [],
    )
    boot.tls, boot.env = Credentials("c", "k", "a"), {"A": "\udcff"}
    assert Boot.decode(boot.encode()) == boot and repr(boot.tls) == "<Credentials>"
    for missing in least:
        with pytest.raises(ValueError, match="no Boot message"):
            Boot.decode(json.dumps({key: value for key, value in least.items() if key != missing}).encode())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("unix:/a:b", "/a:b"), ("tcp:h:1", ("h", 1)), ("tcp:[::1]:80", ("::1", 80)), ("tcp:::1:80", ("::1", 80)), ("unix:", None), ("tcp:", None),
        ("tcp::80", None), ("tcp:h", None), ("tcp:h:", None), ("tcp:h:x", None), ("tcp:h:-1", None), ("tcp:h:\u0663", None), ("tcp:h:\u00b2", None),
        ("http://h:1", None), ("", None), ("h:1", None),
    ],
)  # fmt: skip
def test_addresses(text: str, found: Any) -> None:
    if found is None:
        with pytest.raises(ValueError, match="not an address"):
            parse_address(text)
    else:
        assert parse_address(text) == found


def test_which_hosts_are_this_machine_alone() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com", "", "localhost.example.com")))

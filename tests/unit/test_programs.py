"""The programs of this package as functions: what they are told on their command lines, and what they do first."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from typer.testing import CliRunner

from snakepit_trio.cli import build, checks, doctor
from snakepit_trio.cli.tools import _signature, type_words
from snakepit_trio.launch import template
from snakepit_trio.worker import __main__ as program
from snakepit_trio.worker import prelude

WORKER = {"--run": "r", "--worker": "w", "--lifeline": "3", "--report": "4", "--marks": "5"}


def worker(monkeypatch: pytest.MonkeyPatch, options: dict[str, str]) -> int:
    monkeypatch.setattr(sys, "argv", ["program", *(word for pair in options.items() for word in pair)])
    return program.main()


def test_a_worker_needs_all_that_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from snakepit_trio.worker import boot

    steps: list[Any] = []
    monkeypatch.setattr(program.faulthandler, "enable", lambda: steps.append("faulthandler"))
    monkeypatch.setattr(program, "read_boot", lambda fd: steps.append(fd) or b'{"path": ["p"]}')
    monkeypatch.setattr(program, "follow", lambda path: steps.append(path))
    monkeypatch.setattr(boot, "run_worker", lambda *args: steps.append(args) or 7)
    assert worker(monkeypatch, WORKER) == 7
    assert steps == ["faulthandler", 3, ["p"], (b'{"path": ["p"]}', 3, 4, 5)]
    for option in WORKER:
        with pytest.raises(SystemExit) as refused:
            worker(monkeypatch, {name: value for name, value in WORKER.items() if name != option})
        assert refused.value.code == 2 and f"required: {option}" in capsys.readouterr().err
    for option in ("--lifeline", "--report", "--marks"):
        with pytest.raises(SystemExit):
            worker(monkeypatch, {**WORKER, option: "x"})
    assert len(steps) == 4


def test_a_template_needs_all_that_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--run": "r", "--lifeline": "3", "--channel": "4"}
    for option in options:
        words = [word for name, value in options.items() if name != option for word in (name, value)]
        monkeypatch.setattr(sys, "argv", ["program", *words])
        with pytest.raises(SystemExit) as refused:
            template.main()
        assert refused.value.code == 2 and f"required: {option}" in capsys.readouterr().err


def test_a_boot_message_and_not_a_byte_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prelude, "_LONGEST", 10)
    for body in (b"", b"x", b"x" * 10):
        read, write = os.pipe()
        os.write(write, len(body).to_bytes(4, "big") + body + b"more")
        assert prelude.read_boot(read) == body and os.read(read, 100) == b"more"
        os.close(read)
        os.close(write)
    for data, error in ((b"\0\0\0\x0b", ValueError), (b"\0\0\0", EOFError), (b"\0\0\0\2x", EOFError), (b"", EOFError)):
        read, write = os.pipe()
        os.write(write, data)
        os.close(write)
        with pytest.raises(error):
            prelude.read_boot(read)
        os.close(read)


@pytest.mark.parametrize(
    ("host", "own", "found"),
    [
        ("abc", "abc", "abc"),
        ("abc", "xyz", "abcxyz"),
        ("abc", "xby", "axbcy"),
        ("abc", "xay", "xabcy"),
        ("abc", "cx", "abcx"),
        ("aab", "bxx", "abx"),
        ("", "ab", "ab"),
        ("ab", "", "ab"),
        # What was before the first that both have stays before that one, whatever else both have.
        ("abc", "xcyb", "abxcy"),
    ],
)
def test_the_hosts_path_and_ones_own(host: str, own: str, found: str) -> None:
    assert "".join(prelude.joined(host, own)) == found


def test_questions_of_a_template_however_they_arrive() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here:
        channel = template._Channel(there.detach())
        read, write = os.pipe()
        both = b"".join(len(body).to_bytes(4, "big") + body for body in (b'{"a": 1}', b'{"b": 2}'))
        socket.send_fds(here, [both[:3]], [read, write])
        here.sendall(both[3:17])
        first = channel.receive()
        assert first is not None and first[0] == {"a": 1} and len(first[1]) == 2
        here.sendall(both[17:])
        assert channel.receive() == ({"b": 2}, [])
        channel.send({"c": 3}, (read,))
        data, fds, _, _ = socket.recv_fds(here, 100, 8)
        assert int.from_bytes(data[:4], "big") == len(data) - 4 and json.loads(data[4:]) == {"c": 3} and len(fds) == 1
        channel.send({})
        assert here.recv(100) == b"\0\0\0\2{}"
        here.shutdown(socket.SHUT_WR)
        assert channel.receive() is None
        channel.socket.close()
        for fd in (read, write, *first[1], *fds):
            os.close(fd)


def test_how_a_template_tells_an_end() -> None:
    for end, told in (("exit 0", {"code": 0}), ("exit 3", {"code": 3}), ("kill -9 $$", {"signal": 9})):
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", end], os.environ)
        assert template._reap(pid) == told
        assert template._reap(pid) == {}


# ---- doctor --------------------------------------------------------------------------------------------


def checked(monkeypatch: pytest.MonkeyPatch, *statuses: str) -> Any:
    found = [checks.Check(f"c{n}", status, "m\x1b", "do it" if n else "") for n, status in enumerate(statuses)]
    monkeypatch.setattr(checks, "run_checks", lambda place: iter(found))
    runner = CliRunner()
    return runner.invoke(build(), ["doctor"]), runner.invoke(build(), ["doctor", "--json"])


@pytest.mark.parametrize(
    ("statuses", "failed", "warned"),
    [
        (("ok", "ok"), 0, "0 warnings"),
        (("ok", "warn"), 0, "1 warning"),
        (("warn", "warn"), 0, "2 warnings"),
        (("ok", "fail"), 1, "0 warnings"),
        (("fail", "warn", "fail"), 2, "1 warning"),
    ],
)
def test_what_a_doctor_has_found(
    monkeypatch: pytest.MonkeyPatch, statuses: tuple[str, ...], failed: int, warned: str
) -> None:
    text, data = checked(monkeypatch, *statuses)
    assert text.exit_code == data.exit_code == (1 if failed else 0)
    lines = text.output.splitlines()
    assert lines[-1] == f"{len(statuses)} checks: {failed} failed, {warned}"
    assert lines[0] == f"{doctor._MARKS[statuses[0]]}  c0: " + lines[0].partition("c0: ")[2]
    assert [line for line in lines if line.startswith("      ->")] == ["      -> do it"] * (len(statuses) - 1)
    assert "\x1b" not in text.output
    told = json.loads(data.output)
    assert told == {
        "ok": failed == 0, "failed": failed, "warnings": int(warned[0]),
        "checks": told["checks"],
    }  # fmt: skip
    assert [check["status"] for check in told["checks"]] == list(statuses)


def test_an_adapter_is_one_check_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "run_checks", lambda place: iter(()))
    monkeypatch.setattr(doctor, "_adapter", lambda name: checks.Check("adapter", checks.FAIL, name, "mend it"))
    result = CliRunner().invoke(build(), ["doctor", "a"])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "FAIL  adapter: a", "      -> mend it", "1 checks: 1 failed, 0 warnings",
    ]  # fmt: skip
    told = json.loads(CliRunner().invoke(build(), ["doctor", "a", "--json"]).output)
    assert (told["ok"], told["failed"], told["warnings"]) == (False, 1, 0) and len(told["checks"]) == 1


# ---- top, tools ----------------------------------------------------------------------------------------


def test_a_screen_before_its_first_look() -> None:
    screen = pytest.importorskip("snakepit_trio.cli.screen")
    made = screen.Screen("/s")
    assert (made.looks, made._interval) == (0, 1.0)
    assert screen.Screen("/s", interval=0.1)._interval == 0.1


def test_types_in_words() -> None:
    for schema, words in (
        ({"type": "integer"}, "integer"), ({}, "any"), ({"type": "array"}, "array"), ({"type": "array", "items": {}}, "array"),
        ({"type": "array", "items": {"type": "string"}}, "array of string"), ({"$ref": "#/$defs/Point"}, "Point"),
        ({"anyOf": [{"type": "null"}, {"type": "number"}]}, "null | number"), ({"type": "array", "items": True}, "array"),
    ):  # fmt: skip
        assert type_words(cast("Any", schema)) == words
    schema = {"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}
    assert _signature(schema) == "a: integer, b?: any" and _signature({}) == ""


# ---- cleanup -------------------------------------------------------------------------------------------


def test_what_was_cleared_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from snakepit_trio.supervision import leftovers
    from snakepit_trio.supervision.leftovers import Swept

    found = [Swept(run_id="a", pids=(3, 4), run_dir="/d"), Swept(run_id="b", pids=(), run_dir=None)]
    called: list[str] = []
    monkeypatch.setattr(leftovers, "clear", lambda place: called.append("clear") or found)
    monkeypatch.setattr(leftovers, "look", lambda place: called.append("look") or found)
    command = ["cleanup", "--state-dir", str(tmp_path)]
    runner = CliRunner()
    text, dry = runner.invoke(build(), command), runner.invoke(build(), [*command, "--dry-run"])
    assert called == ["clear", "look"] and text.exit_code == dry.exit_code == 0
    assert text.output.splitlines() == [
        "run a: ended process 3, 4; directory /d", "run b: no process was alive; directory gone already",
    ]  # fmt: skip
    assert dry.output.splitlines()[0] == "run a: would end process 3, 4; directory /d"
    told = json.loads(runner.invoke(build(), [*command, "--json"]).output)
    assert told["dry_run"] is False and told["runs"][0]["pids"] == [3, 4]
    found.clear()
    assert runner.invoke(build(), command).output.startswith("nothing was left behind")
    monkeypatch.setattr(leftovers, "clear", lambda place: (_ for _ in ()).throw(OSError("full")))
    failed = runner.invoke(build(), command)
    assert failed.exit_code == 1 and isinstance(failed.exception, SystemExit | typer.Exit)

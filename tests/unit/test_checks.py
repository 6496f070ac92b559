"""What `snakepit doctor` finds, where the system is as a test says; and what `snakepit map` makes of its options."""

from __future__ import annotations

import importlib.metadata
import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from snakepit_trio import _platform
from snakepit_trio.cli import checks
from snakepit_trio.cli import map as mapping

MIB = 1 << 20
LONGEST = _platform.SOCKET_PATH_MAX


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("1.2", "", True), ("1.2", ">=1.2", True), ("1.10", ">=1.9", True), ("1.2", ">=1.3", False), ("1.2", "<1.2", False),
        ("1.1.9", "<1.2", True), ("1.2", "~=1.2", True), ("1.1", "~=1.2", False), ("2.0", ">=1,<2", False),
        ("1.5", "(>=1, <2)", True), ("0.10.3", ">=0.10,<0.11", True), ("1.2rc1", ">=1.1", True), ("1.2.dev3", ">=1.2", True),
        ("1.2", "!=1.2", True), ("1.2", "garbage", True),
    ],
)  # fmt: skip
def test_versions(version: str, wanted: str, fits: bool) -> None:
    assert checks._fits(version, wanted) is fits


def packages(monkeypatch: pytest.MonkeyPatch, required: list[str] | None, found: dict[str, str]) -> Any:
    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError
        return found[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return checks._packages()


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["b>=1", "a", 'c>=2; extra == "x"', 'd[e]<3; extra == "x"', "???"]
    well = packages(monkeypatch, required, {"a": "1.0", "b": "1.5", "d": "2"})
    assert (well.status, well.message) == (checks.OK, "a 1.0, b 1.5; of the extras: d 2")
    bare = packages(monkeypatch, required, {"a": "1.0", "b": "1.5"})
    assert (bare.status, bare.message) == (checks.OK, "a 1.0, b 1.5")
    wrong = packages(monkeypatch, required, {"b": "0.9", "d": "3.0"})
    assert (wrong.status, wrong.remedy) == (checks.FAIL, "pip install --upgrade snakepit-trio")
    assert wrong.message == "b 0.9 (wanted >=1); a is missing (wanted ); d 3.0 (wanted <3)"
    assert packages(monkeypatch, None, {}).status == checks.OK


@pytest.mark.parametrize(
    ("available", "level"), [(256 * MIB, checks.OK), (256 * MIB - 1, checks.WARN), (8 << 30, checks.OK)]
)
def test_memory(available: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(available=available, usable=16 << 30)
    cpu = SimpleNamespace(quota=1.5, usable=2, logical=8)
    monkeypatch.setattr(checks.hardware, "detect", lambda: SimpleNamespace(memory=memory, cpu=cpu))
    found = checks._memory()
    assert (found.status, found.message) == (level, f"{available / MIB:.0f} MiB available of 16384")
    assert checks._cpu().message == "2 of 8 hardware threads may be used, a quota of 1.5"
    cpu.quota = None
    assert checks._cpu().message == "2 of 8 hardware threads may be used"


@pytest.mark.parametrize(
    ("soft", "level", "shown"),
    [
        (10 + 7 * 32, checks.OK, "about 32 workers"), (10 + 7 * 32 - 1, checks.WARN, "about 31 workers"),
        (10 + 7 * 2, checks.WARN, "about 2 workers"), (10 + 7 * 2 - 1, checks.FAIL, "about 1 workers"), (3, checks.FAIL, "about 0 workers"),
    ],
)  # fmt: skip
def test_descriptors(soft: int, level: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, resource.RLIM_INFINITY))
    monkeypatch.setattr(checks.psutil, "Process", lambda: SimpleNamespace(num_fds=lambda: 10))
    found = checks._descriptors()
    assert found.status == level
    assert found.message == f"{soft} open files (at most any number of): room for {shown}"


@pytest.mark.parametrize(
    ("room", "level", "shown"),
    [
        (64, checks.OK, 32),
        (63, checks.WARN, 31),
        (4, checks.WARN, 2),
        (3, checks.FAIL, 1),
        (-5, checks.FAIL, 0),
        (None, checks.OK, None),
    ],
)
def test_processes(room: int | None, level: str, shown: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "pid_room", lambda: room)
    found = checks._pids()
    words = "no limit" if shown is None else f"room for {room} more processes and threads: about {shown} workers"
    assert (found.status, found.message) == (level, words)


def test_the_least_room_for_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit, now in (("a", "100", "40"), ("b", "max", "99"), ("c", "50", "8")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pids.max").write_text(f"{limit}\n")
        (tmp_path / name / "pids.current").write_text(f"{now}\n")
    folders = [tmp_path / name for name in ("a", "b", "missing")]
    monkeypatch.setattr(checks.hardware, "control_groups", lambda: folders)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert checks.pid_room() == 60
    folders.append(tmp_path / "c")
    assert checks.pid_room() == 42
    # A limit of this user's: not root's.
    ours, others = (
        SimpleNamespace(uids=lambda n=n: SimpleNamespace(real=n), num_threads=lambda n=n: 3) for n in (7, 8)
    )
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10, 10))
    monkeypatch.setattr(os, "getuid", lambda: 7)
    monkeypatch.setattr(checks.psutil, "process_iter", lambda: [ours, others, ours])
    for euid, room in ((7, 4), (0, 42)):
        monkeypatch.setattr(os, "geteuid", lambda euid=euid: euid)
        assert checks.pid_room() == room


def test_a_state_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    made = checks._state_directory(str(tmp_path / "a" / "b"))
    assert (made.status, made.message) == (checks.OK, f"{tmp_path}/a/b will be made by the first run")
    assert checks._state_directory(str(tmp_path)).message == f"{tmp_path} is private"
    tmp_path.chmod(0o750)
    opened = checks._state_directory(str(tmp_path))
    assert (opened.status, opened.message) == (checks.WARN, f"{tmp_path} is open to others (750)")


def test_the_length_of_a_sockets_path() -> None:
    for length, words in (
        (LONGEST, f"paths of {LONGEST} bytes; {LONGEST} are allowed"),
        (LONGEST + 1, f"made in the run's own directory: {LONGEST + 1} of {LONGEST}"),
    ):
        found = checks._control_sockets(Path("/" + "x" * (length - len("//runs/0123456789.sock"))))
        assert found.status == checks.OK and found.message.startswith(words)


def test_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [SimpleNamespace(run_id=name, alive=alive) for name, alive in (("a", True), ("b", False), ("c", False))]
    monkeypatch.setattr(checks, "list_runs", lambda directory: entries)
    found = checks._runs(Path("/"))
    assert (found.status, found.message, found.remedy) == (checks.WARN, "1 running; stale: b, c", "snakepit cleanup")
    del entries[1:]
    assert (checks._runs(Path("/")).status, checks._runs(Path("/")).message) == (checks.OK, "1 running, none stale")


def test_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(wall: tuple[float, float], steady: tuple[float, float], resolution: float = 1e-9) -> Any:
        walls, steadies = iter(wall), iter(steady)
        clock = SimpleNamespace(
            time=lambda: next(walls), monotonic=lambda: next(steadies), sleep=lambda seconds: None, ctime=str,
            get_clock_info=lambda name: SimpleNamespace(resolution=resolution),
        )  # fmt: skip
        monkeypatch.setattr(checks, "time", clock)
        return checks._clock()

    now = 1_700_000_000.0
    assert said((now, now + 0.05), (5.0, 5.05)).status == checks.OK
    for wall, steady, resolution in (
        ((now, now + 0.0625), (5.0, 5.05), 1e-9), ((now, now + 0.04), (5.0, 5.0625), 1e-9), ((now, now), (5.0, 5.0), 0.01),
    ):  # fmt: skip
        found = said(wall, steady, resolution)
        assert found.status == checks.WARN and "it jumps by" in found.message
    past = said((now - 1, now - 1), (5.0, 5.0))
    assert past.status == checks.WARN and "the wall clock says" in past.message


# ---- map -----------------------------------------------------------------------------------------------

SCHEMA: dict[str, Any] = {
    "properties": {
        "text": {"type": "string"}, "n": {"type": "integer"}, "any": {}, "either": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "number": {"anyOf": [{"type": "null"}, {"type": "number"}]}, "kind": {"enum": ["a", "b"]}, "level": {"enum": [1, 2]},
        "place": {"$ref": "#/$defs/Place"}, "name": {"$ref": "#/$defs/Name"}, "several": {"type": ["integer", "string"]},
    },
    "$defs": {"Place": {"type": "object"}, "Name": {"type": "string"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("text", "1", "1"), ("n", "1", 1), ("any", "1", "1"), ("none", "1", "1"), ("either", "null", "null"), ("number", "1.5", 1.5),
        ("kind", "a", "a"), ("level", "2", 2), ("place", '{"x": 1}', {"x": 1}), ("name", "{", "{"), ("several", "1", "1"),
    ],
)  # fmt: skip
def test_a_parameter_is_text_where_the_tool_takes_text(name: str, text: str, value: Any) -> None:
    assert mapping._read(name, text, SCHEMA) == value


def test_a_parameter_that_is_no_json() -> None:
    with pytest.raises(ValueError, match=r"^n: expected int.* as JSON, got 'x'$"):
        mapping._read("n", "x", SCHEMA)
    for length, shown in ((100, "x" * 100), (101, "x" * 97 + "...")):
        with pytest.raises(ValueError, match=f"got '{shown}'$"):
            mapping._read("n", "x" * length, SCHEMA)


def test_options_of_map(capsys: pytest.CaptureFixture[str]) -> None:
    assert mapping._templates(["a={path}", "b=c=d", "e="]) == {"a": "{path}", "b": "c=d", "e": ""}
    assert mapping._only_parameter({"properties": {"a": {}}}, "t") == {"a": "{path}"}
    assert mapping._only_parameter({"properties": {"a": {}, "b": {}}, "required": ["b"]}, "t") == {"b": "{path}"}
    mapping._check_constants({"n": "1", "text": "x", "m": "{path}"}, SCHEMA)
    for refused, words in (
        (lambda: mapping._templates(["a"]), "--param 'a': expected NAME=TEMPLATE"),
        (lambda: mapping._templates(["=a"]), "--param '=a': expected NAME=TEMPLATE"),
        (lambda: mapping._only_parameter({"required": ["a", "b"]}, "t"), "'t' takes a, b: say with --param"),
        (lambda: mapping._only_parameter({}, "t"), "'t' takes nothing"),
        (lambda: mapping._check_constants({"n": "x"}, SCHEMA), "--param n=x: n: expected int"),
        (lambda: list(mapping._files(["/does/not/exist"], "*")), "no such file: /does/not/exist"),
    ):
        with pytest.raises(typer.Exit) as exited:
            refused()
        assert exited.value.exit_code == 2 and words in capsys.readouterr().err


def test_the_files_of_map(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md", "below/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{{path}} of {name}")
    (tmp_path / "e.txt").mkdir()
    found = list(mapping._files([str(tmp_path), str(tmp_path / "c.md")], "*.txt"))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.txt", "b.txt", "below/d.txt", "c.md"]
    values = dict(
        mapping._from_files(found[:1], {"a": "{path}!", "b": "{stem}{suffix}={name}", "c": "{text}", "d": "{other}"})
    )
    path = str(tmp_path / "a.txt")
    # What a file says is not read as a template again.
    assert values == {path: {"a": f"{path}!", "b": "a.txt=a.txt", "c": "{path} of a.txt", "d": "{other}"}}
    assert dict(mapping._from_files(found[:1], {"a": "{name}"})) == {path: {"a": "a.txt"}}

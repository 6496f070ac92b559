"""The checks of ``snakepit doctor``: one function each. They change nothing, and use only the standard library and psutil."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import psutil

from snakepit_trio import _platform, hardware
from snakepit_trio.errors import ConfigError
from snakepit_trio.supervision.runs import LONGEST_SOCKET_PATH, list_runs
from snakepit_trio.supervision.state_directory import find_fault, state_directory

__all__ = ["FAIL", "OK", "WARN", "Check", "pid_room", "run_checks"]

OK, WARN, FAIL = "ok", "warn", "fail"
#: Descriptors in the host per worker, and process ids (threads count) per worker, as measured by `snakepit diagnose`.
_FDS_PER_WORKER, _PIDS_PER_WORKER = 7, 2
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(;.*)?")
_MIB = 1 << 20


@attrs.frozen
class Check:
    """One result of a check.

    Attributes:
        name: The subject.
        status: ``"ok"``, ``"warn"`` or ``"fail"``.
        message: The finding.
        remedy: Advice; ``""`` if nothing needs to be done.
    """

    name: str
    status: str
    message: str
    remedy: str = ""


def run_checks(state_dir: str | None) -> Iterator[Check]:
    """Run all checks of the machine and of the state directory in order; None means the user's state directory."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("packages", _packages),
        ("cpu", _cpu),
        ("memory", _memory),
        ("platform", _platform_form),
        ("fork", _fork),
        ("lifeline", _lifeline),
        ("descriptors", _descriptors),
        ("pids", _pids),
        ("shared memory", _shared_memory),
        ("sockets", _sockets),
        ("state directory", lambda: _state_directory(state_dir)),
        ("control sockets", lambda: _control_sockets(state_directory(state_dir))),
        ("runs", lambda: _runs(state_directory(state_dir))),
        ("clock", _clock),
    ]
    for name, check in checks:
        try:
            yield check()
        except Exception as exc:
            yield Check(name, WARN, f"could not be checked: {type(exc).__name__}: {exc}")


def _python() -> Check:
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    if sys.version_info >= (3, 14):
        return Check("python", WARN, f"{found}; newer than what was tested", "use Python 3.11 to 3.13")
    if platform.python_implementation() != "CPython":
        return Check("python", WARN, f"{found}; only CPython was tested", "use CPython")
    return Check("python", OK, found)


def _packages() -> Check:
    try:
        required = importlib.metadata.requires("snakepit-trio") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", WARN, "snakepit-trio is not installed as a package", "pip install snakepit-trio")
    wrong: list[str] = []
    found: list[str] = []
    extras: list[str] = []
    for line in required:
        match = _REQUIREMENT.fullmatch(line)
        if match is None:
            continue
        name, wanted, condition = match[1], match[2], match[3] or ""
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if "extra ==" not in condition:
                wrong.append(f"{name} is missing (wanted {wanted})")
            continue
        if not _fits(version, wanted):
            wrong.append(f"{name} {version} (wanted {wanted})")
        (extras if "extra ==" in condition else found).append(f"{name} {version}")
    if wrong:
        return Check("packages", FAIL, "; ".join(wrong), "pip install --upgrade snakepit-trio")
    more = f"; of the extras: {', '.join(sorted(extras))}" if extras else ""
    return Check("packages", OK, ", ".join(sorted(found)) + more)


def _fits(version: str, wanted: str) -> bool:
    mine = _numbers(version)
    for part in filter(None, re.split(r"[,\s]+", wanted.strip("() "))):
        bound = re.fullmatch(r"(>=|<=|==|!=|<|>|~=)(.+)", part)
        if bound is None:
            continue
        operator, theirs = bound[1], _numbers(bound[2])
        if (operator in (">=", "~=") and mine < theirs) or (operator == "<" and mine >= theirs):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = []
    for part in version.split("."):
        digits = re.match(r"\d+", part)
        if digits is None:
            break
        found.append(int(digits[0]))
    return tuple(found)


def _cpu() -> Check:
    cpu = hardware.detect().cpu
    quota = "" if cpu.quota is None else f", a quota of {cpu.quota:g}"
    return Check("cpu", OK, f"{cpu.usable} of {cpu.logical} hardware threads may be used{quota}")


def _memory() -> Check:
    memory = hardware.detect().memory
    found = f"{memory.available / _MIB:.0f} MiB available of {memory.usable / _MIB:.0f}"
    if memory.available < 256 * _MIB:
        return Check("memory", WARN, found, "a worker takes 20 MiB and more; free some, or raise the container's limit")
    return Check("memory", OK, found)


def _platform_form() -> Check:
    missing = _platform.what_is_missing()
    if missing is not None:
        return Check(
            "platform", FAIL, f"the {_platform.FORM} form is used: {missing}", "a system or an interpreter that has it"
        )
    if _platform.FORM == "linux":
        return Check("platform", OK, "the Linux form is used: pidfds, memfds, signals on hang-up")
    if sys.platform == "linux":
        return Check("platform", OK, f"the portable form is used, as {_platform.VARIABLE}=1 asks")
    return Check(
        "platform",
        WARN,
        "the portable form is used: this system is not Linux",
        "run the tests here; nobody has done so",
    )


def _fork() -> Check:
    if not hasattr(os, "fork"):
        return Check("fork", WARN, "this system can't fork: workers are new interpreters", "start_method='spawn'")
    return Check("fork", OK, "the fork server can be used")


def _lifeline() -> Check:
    """Arm a lifeline for a child process, as for a worker, cut it, and check that the kernel ends the child."""
    if _platform.FORM != "linux":
        return Check("lifeline", OK, "a thread in each worker watches for the host's end")
    read, write = os.pipe()
    child = None
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(read,),
            start_new_session=True,
        )
        _platform.arm_lifeline(read, child.pid)
        begun = time.monotonic()
        os.close(write)
        write = -1
        child.wait(timeout=2)
        took = time.monotonic() - begun
    except OSError as exc:
        return Check(
            "lifeline", FAIL, f"the kernel does not watch pipes here: {exc}", "a kernel or sandbox that allows F_SETSIG"
        )
    except subprocess.TimeoutExpired:
        return Check(
            "lifeline", FAIL, "a child outlived its lifeline", "workers of a killed host will have to be swept"
        )
    finally:
        for fd in (read, write):
            if fd >= 0:
                os.close(fd)
        if child is not None:
            child.kill()
            child.wait()
    if child.returncode != -signal.SIGKILL:
        return Check("lifeline", FAIL, f"the child ended with {child.returncode}", "a kernel that allows F_SETSIG")
    return Check("lifeline", OK, f"the kernel ended a child {took * 1000:.1f} ms after its lifeline was cut")


def _descriptors() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = max(0, soft - psutil.Process().num_fds()) // _FDS_PER_WORKER
    found = f"{_limit(soft)} open files (at most {_limit(hard)}): room for about {room} workers"
    if soft != resource.RLIM_INFINITY and room < 32:
        return Check("descriptors", FAIL if room < 2 else WARN, found, "ulimit -n 4096")
    return Check("descriptors", OK, found)


def _limit(value: int) -> str:
    return "any number of" if value == resource.RLIM_INFINITY else str(value)


def pid_room() -> int | None:
    """Return how many more processes and threads may exist, or None if there is no limit."""
    room = []
    for folder in hardware.control_groups():
        try:
            limit, now = (folder / "pids.max").read_text().strip(), (folder / "pids.current").read_text()
        except OSError:
            continue
        if limit != "max":
            room.append(int(limit) - int(now))
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.geteuid():
        mine = 0
        for process in psutil.process_iter():
            try:
                if process.uids().real == os.getuid():
                    mine += process.num_threads()
            except psutil.Error:
                continue
        room.append(soft - mine)
    most = _platform.most_processes()
    if most is not None:
        room.append(most - len(psutil.pids()))
    return min(room, default=None)


def _pids() -> Check:
    room = pid_room()
    if room is None:
        return Check("pids", OK, "no limit")
    found = f"room for {room} more processes and threads: about {max(0, room) // _PIDS_PER_WORKER} workers"
    if room < 32 * _PIDS_PER_WORKER:
        return Check("pids", FAIL if room < 2 * _PIDS_PER_WORKER else WARN, found, "raise pids.max or ulimit -u")
    return Check("pids", OK, found)


def _shared_memory() -> Check:
    from snakepit_trio.wire.memory import make_file

    if not _platform.has_shared_files():
        return Check("shared memory", WARN, "there is none: large values travel inline", "a 64-bit system")
    try:
        os.close(make_file())
    except OSError as exc:
        fix = "allow memfd_create, and files of any size (ulimit -f); large values travel inline until then"
        return Check("shared memory", WARN, f"not to be had: {exc}", fix)
    if _platform.FORM != "linux":
        return Check("shared memory", OK, f"large values go through files in {tempfile.gettempdir()} that have no path")
    return Check("shared memory", OK, "large values go through memory without a name, not through /dev/shm")


def _sockets() -> Check:
    with tempfile.TemporaryDirectory(prefix="snakepit-doctor-") as place:
        path = os.path.join(place, "s")
        fits = len(os.fsencode(place)) + 32 <= LONGEST_SOCKET_PATH
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            if fits:
                listener.bind(path)
                listener.listen(1)
                client.connect(path)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        pass
    if not fits:
        return Check(
            "sockets", WARN, f"paths in {tempfile.gettempdir()} are too long for Unix sockets; /tmp is used",
            "set TMPDIR to something shorter",
        )  # fmt: skip
    return Check("sockets", OK, f"Unix sockets in {tempfile.gettempdir()}, TCP on the loopback address")


def _state_directory(state_dir: str | None) -> Check:
    name, remedy = "state directory", "set SNAKEPIT_STATE_DIR to a directory of your own"
    try:
        directory = state_directory(state_dir)
    except ConfigError as exc:
        return Check(name, FAIL, str(exc.details["reason"]), "set HOME, XDG_STATE_HOME or SNAKEPIT_STATE_DIR")
    fault = find_fault(directory)
    if fault is not None:
        return Check(name, FAIL, fault, remedy)
    if not directory.exists():
        above = directory
        while not above.exists():
            above = above.parent
        if os.access(above, os.W_OK | os.X_OK):
            return Check(name, OK, f"{directory} will be made by the first run")
        return Check(name, FAIL, f"{directory} can't be made in {above}", remedy)
    if not os.access(directory, os.W_OK | os.X_OK):
        return Check(name, FAIL, f"{directory} can't be written", f"chmod 700 {directory}")
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & 0o077:
        return Check(name, WARN, f"{directory} is open to others ({mode:o})", f"chmod 700 {directory}")
    foreign = [path for path in [*directory.glob("registry.sqlite3*"), *directory.glob("runs/*")] if _is_foreign(path)]
    if foreign:
        return Check(name, FAIL, f"{foreign[0]} belongs to user {foreign[0].lstat().st_uid}", f"remove {foreign[0]}")
    return Check(name, OK, f"{directory} is private")


def _is_foreign(path: Path) -> bool:
    return path.lstat().st_uid != os.geteuid()


def _control_sockets(directory: Path) -> Check:
    path = os.path.abspath(directory / "runs" / "0123456789.sock")
    length = len(os.fsencode(path))
    if length > LONGEST_SOCKET_PATH:
        return Check(
            "control sockets",
            OK,
            f"made in the run's own directory: {length} of {LONGEST_SOCKET_PATH} bytes is too long",
        )
    return Check("control sockets", OK, f"paths of {length} bytes; {LONGEST_SOCKET_PATH} are allowed")


def _runs(directory: Path) -> Check:
    entries = list_runs(directory)
    stale = [entry.run_id for entry in entries if not entry.alive]
    alive = len(entries) - len(stale)
    if stale:
        return Check("runs", WARN, f"{alive} running; stale: {', '.join(stale)}", "snakepit cleanup")
    return Check("runs", OK, f"{alive} running, none stale")


def _clock() -> Check:
    wall, steady = time.time(), time.monotonic()
    time.sleep(0.05)
    drift = abs((time.time() - wall) - (time.monotonic() - steady))
    resolution = time.get_clock_info("monotonic").resolution
    if wall < 1_700_000_000:
        return Check(
            "clock", WARN, f"the wall clock says {time.ctime(wall)}", "set the time; certificates will be refused"
        )
    if drift > 0.01 or resolution > 0.001:
        return Check(
            "clock", WARN, f"it jumps by {drift * 1000:.1f} ms or is coarse ({resolution:g} s)", "run a time service"
        )
    return Check("clock", OK, f"steady, resolution {resolution:g} s")

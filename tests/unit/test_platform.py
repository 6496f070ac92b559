"""The platform seam: what both of its forms promise, what each gives alone, and that nobody goes around it."""

from __future__ import annotations

import ast
import ctypes
import inspect
import io
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

import snakepit_trio
from snakepit_trio import _platform
from snakepit_trio._platform import Identity, Peer, portable

if sys.platform != "linux":
    pytest.skip("both forms are only where there is Linux's", allow_module_level=True)

from snakepit_trio._platform import linux

SLEEP = "import time; print(flush=True); time.sleep(600)"
NOBODY = 2**22 + 1


@pytest.fixture(params=["linux", "portable"])
def form(request: pytest.FixtureRequest) -> Any:
    return {"linux": linux, "portable": portable}[request.param]


@contextmanager
def child(code: str = SLEEP, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said a line, reaped at the end."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
    )
    try:
        assert process.stdout is not None
        process.said = process.stdout.readline()  # type: ignore[attr-defined]
        yield process
    finally:
        process.kill()
        process.communicate()


def test_both_forms_give_the_same_names() -> None:
    assert linux.__all__ == portable.__all__
    assert sorted([*linux.__all__, "FORM", "VARIABLE", "Identity", "Peer", "ProcessFacts"]) == sorted(_platform.__all__)
    chosen = {"linux": linux, "portable": portable}[_platform.FORM]
    for name in linux.__all__:
        one, other = getattr(linux, name), getattr(portable, name)
        assert getattr(_platform, name) is getattr(chosen, name)
        if inspect.isclass(one):
            public = [key for key in vars(one) if not key.startswith("_")]
            assert public == [key for key in vars(other) if not key.startswith("_")]
            pairs = [(getattr(one, key), getattr(other, key)) for key in public]
            pairs = [pair for pair in pairs if callable(pair[0])]
        else:
            pairs = [(one, other)] if callable(one) else []
        for first, second in pairs:
            assert inspect.signature(first) == inspect.signature(second), name
            assert first.__doc__ and second.__doc__
            assert inspect.iscoroutinefunction(first) == inspect.iscoroutinefunction(second)


@pytest.mark.parametrize(("value", "expected"), [("1", "portable"), ("0", "linux"), ("", "linux"), (None, "linux")])
def test_which_form_a_process_uses(value: str | None, expected: str) -> None:
    environment = {name: text for name, text in os.environ.items() if name != _platform.VARIABLE}
    if value is not None:
        environment[_platform.VARIABLE] = value
    # Read once: what the variable becomes later changes nothing. And psutil comes with neither form.
    code = (
        "import os, sys; from snakepit_trio import _platform as p; os.environ['SNAKEPIT_PORTABLE'] = '2'\n"
        "import importlib; print(p.FORM, p.ProcessHandle.__module__, 'psutil' in sys.modules, 'anyio' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == [expected, f"snakepit_trio._platform.{expected}", "False", "False"]


# ---- processes that can be waited for and signalled ------------------------------------------------------


@pytest.mark.anyio
async def test_a_child_is_held_until_it_is_reaped(form: Any) -> None:
    assert form.what_is_missing() is None
    with child() as process:
        held = form.open_child(process.pid)
        try:
            assert held.pid == process.pid and str(process.pid) in repr(held)
            assert not held.ended() and not held.ended(0.02)
            with anyio.move_on_after(0.02) as scope:
                await held.wait()
            assert scope.cancelled_caught
            held.send_signal(signal.SIGTERM)
            with anyio.fail_after(10):
                await held.wait()
            assert held.ended()
            # It is there still, and nobody has taken its exit status.
            held.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGTERM
            assert held.ended()
        finally:
            held.close()
            held.close()


@pytest.mark.anyio
async def test_the_exit_code_of_a_child_is_its_parents(form: Any) -> None:
    with child("print(flush=True); input(); raise SystemExit(7)") as process:
        held = form.open_child(process.pid)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        with anyio.fail_after(10):
            await held.wait()
        assert process.wait() == 7
        held.close()


@pytest.mark.anyio
async def test_letting_go_of_a_child_that_lives_leaves_nothing(form: Any) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with child() as process:
        pipes = {str(pipe.fileno()) for pipe in (process.stdin, process.stdout) if pipe is not None}
        held = form.open_child(process.pid)
        held.close()
        process.kill()
        process.wait()
        for thread in threading.enumerate():
            if thread.name == f"snakepit-child-{process.pid}":
                thread.join(10)
        assert set(os.listdir("/proc/self/fd")) - pipes == before


@pytest.mark.anyio
async def test_a_process_of_another_parent(form: Any) -> None:
    code = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait(); "
        "print(flush=True); input()"
    )
    with child(code) as parent:
        pid = int(parent.said)  # type: ignore[attr-defined]
        held = form.open_process(pid)
        assert not held.ended()
        held.send_signal(signal.SIGKILL)
        with anyio.fail_after(10):
            await held.wait()
        assert held.ended() and held.ended(10)
        assert parent.stdout is not None
        parent.stdout.readline()  # Its parent has reaped it.
        with pytest.raises(ProcessLookupError):
            held.send_signal(signal.SIGKILL)
        assert held.ended()
        held.close()
    with pytest.raises(OSError):
        form.open_process(NOBODY)
    with pytest.raises((OSError, OverflowError)):
        form.open_process(2**80)
    with pytest.raises((OSError, ValueError)):
        form.open_process(-1)


#: Forks twice, as a template does, and tells of each child; reaps both when it is told to.
FORKS = """
import os, signal, socket, sys
from snakepit_trio import _platform
channel = socket.socket(fileno=int(sys.argv[1]))
children = []
for _ in range(2):
    pid, held = _platform.fork_watched()
    if pid == 0:
        channel.close()
        if os.fork() == 0:  # It outlives the child, and must not be taken for it.
            os.closerange(0, 3)
            signal.sigtimedwait([signal.SIGUSR1], 5)
            os._exit(0)
        signal.pause()
    socket.send_fds(channel, [b"%d\\n" % pid], [held])
    os.close(held)
    children.append(pid)
channel.recv(1)
for pid in children:
    channel.send(b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
channel.recv(1)
"""


@pytest.mark.anyio
async def test_what_another_process_forks(form: Any) -> None:
    name = form.__name__.rpartition(".")[2]
    ours, theirs = socket.socketpair()
    environment = {**os.environ, _platform.VARIABLE: "1" if name == "portable" else "0"}
    template = subprocess.Popen(
        [sys.executable, "-c", FORKS, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment,
        start_new_session=True,
    )  # fmt: skip
    theirs.close()
    try:
        held = []
        for _ in range(2):
            data, fds = form.receive_descriptors(ours, 100, 4)
            assert len(fds) == 1 and not os.get_inheritable(fds[0])
            held.append(form.open_forked(int(data), fds[0]))
        first, second = held
        assert not first.ended() and not second.ended()
        first.send_signal(signal.SIGKILL)
        with anyio.fail_after(10):
            await first.wait()
        assert first.ended() and not second.ended()
        second.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            await second.wait()
        ours.send(b"x")
        codes = b""
        while codes.count(b"\n") < 2:
            codes += ours.recv(100)
        assert codes.split() == [b"-9", b"-15"]
        with pytest.raises(ProcessLookupError):
            first.send_signal(signal.SIGKILL)
        for one in held:
            one.close()
    finally:
        ours.close()
        os.killpg(template.pid, signal.SIGKILL)
        template.wait()


def test_a_fork_that_is_refused_leaves_no_descriptor(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "no more processes")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(BlockingIOError):
        form.fork_watched()
    assert os.listdir("/proc/self/fd") == before


def test_a_child_without_waitid_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "waitid")
    with pytest.raises(OSError, match=r"from 3\.13 on"):
        portable.open_child(1)
    assert "waitid" in str(portable.what_is_missing())


def test_a_system_without_pidfds_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert linux.what_is_missing() == "pidfd_open does not work here: Operation not permitted"
    monkeypatch.delattr(os, "pidfd_open")
    assert "5.3" in str(linux.what_is_missing())


# ---- facts of processes ----------------------------------------------------------------------------------


def test_this_process_and_its_family(form: Any) -> None:
    me = os.getpid()
    mine = form.start_time(me)
    assert mine is not None and mine > 0 and form.start_time(NOBODY) is None
    assert form.is_same(Identity(me, mine)) and not form.is_same(Identity(me, mine - 1000))
    assert not form.is_same(Identity(NOBODY, mine))
    # It tells when it is there: at the moment of an exec a process has no environment yet.
    env = {"A": "1", "BA": "2"}
    with child("import os; print(flush=True); input()", env=env, start_new_session=True) as process:
        pid = process.pid
        started = form.start_time(pid)
        assert form.was_given(pid, "A=1") and not form.was_given(pid, "A=2")
        assert not form.was_given(pid, "A=") and not form.was_given(NOBODY, "A=1")
        assert [one for one in form.descendants(me) if one.pid == pid] == [(pid, started)]
        assert form.in_sessions({pid}, "A=1") == [(pid, started)]
        assert (
            form.in_sessions({pid}, "A=2") == form.in_sessions(set(), "A=1") == form.in_sessions({NOBODY}, "A=1") == []
        )
        (facts,) = [facts for facts in form.own_processes() if facts.pid == pid]
        assert (facts.started, facts.group) == (started, pid)
        assert facts.program == os.path.realpath(sys.executable) and facts.argv[0] == sys.executable
        assert facts.argv[1:3] == ("-S", "-c") and facts.environment >= {"A=1", "BA=2"}
        assert not {me, os.getppid()} & {facts.pid for facts in form.own_processes()}
        process.kill()
        # Until it is reaped it is dead, and counts no more.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert pid not in [one.pid for one in form.descendants(me)]
        assert form.in_sessions({pid}, "A=1") == []
        assert form.is_same(Identity(pid, started))
        process.wait()
        assert not form.is_same(Identity(pid, started))


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_cpu_time_of_a_process_with_all_its_threads(form: Any) -> None:
    burn(0.05)
    before, found, after = time.process_time(), form.cpu_time(os.getpid()), time.process_time()
    # psutil counts by the clock tick.
    assert found is not None and before - 0.03 <= found <= after + 0.03
    assert form.cpu_time(NOBODY) is None and form.cpu_time_of_family(NOBODY) is None


def test_the_cpu_time_and_the_memory_of_a_family(form: Any) -> None:
    code = (
        "import time\nwhile time.process_time() < 0.15: pass\nkept = bytearray(b'x') * 50_000_000\n"
        "print(flush=True)\ninput()"
    )
    with child(code) as process:
        alone, both = form.cpu_time(os.getpid()), form.cpu_time_of_family(os.getpid())
        theirs = form.cpu_time_of_family(process.pid)
        assert alone is not None and both is not None and theirs is not None
        assert theirs >= 0.1 and both >= alone + 0.1
        assert 50_000_000 < form.resident_memory(process.pid) < 100_000_000
        assert form.resident_memory(os.getpid()) > form.resident_memory(process.pid) + 5_000_000
        process.kill()
        process.wait()
        assert form.cpu_time(process.pid) is None and form.cpu_time_of_family(process.pid) is None
        assert form.resident_memory(process.pid) == 0


def test_a_worker_without_psutil_knows_little_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    me = os.getpid()
    assert portable.start_time(me) is portable.cpu_time(me) is portable.cpu_time_of_family(me) is None
    assert portable.descendants(me) == portable.in_sessions({1}, "A=1") == [] and not portable.was_given(me, "A=1")
    assert portable.resident_memory(me) == 0 and not portable.is_same(Identity(me, 1))
    assert portable.thread_count() == threading.active_count()


# ---- facts of this process and of the system -------------------------------------------------------------


def test_facts_of_this_process_and_its_system(form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = form.thread_count()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert form.thread_count() == count + 1
    stop.set()
    thread.join()
    before = form.open_descriptors()
    with open(tmp_path / "file", "w") as file:
        now = form.open_descriptors()
        assert file.fileno() in now and before.get(file.fileno()) != now[file.fileno()]
        assert {0, 1, 2} <= set(now)
    assert form.boot_id() == form.boot_id() != ""
    assert 0 in form.root_users() and form.oom_kills() >= 0
    assert form.most_processes() is None or form.most_processes() > 1000
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("PWD", str(gone))
    gone.rmdir()
    assert form.deleted_directory() == str(gone)
    assert 90 < form.SOCKET_PATH_MAX < 108


# ---- lifelines -------------------------------------------------------------------------------------------

WATCHES = """
import os, subprocess, sys, time
from snakepit_trio import _platform
def die():
    os.killpg(os.getpgrp(), 9)
watch = _platform.LifelineWatch(int(sys.argv[1]), die)
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
if sys.argv[2] == "close":
    assert watch.stop_for_forks() is (_platform.FORM == "portable")
    watch.close()
    assert _platform.FORM == "linux" or _platform.thread_count() == 1
    child.kill()
    child.wait()
else:
    time.sleep(600)
"""


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["cut", "close"])
async def test_a_lifeline_ends_a_group(form: Any, end: str) -> None:
    read, write = os.pipe()
    name = form.__name__.rpartition(".")[2]
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHES, str(read), end], stdout=subprocess.PIPE, pass_fds=[read], start_new_session=True,
        env={**os.environ, _platform.VARIABLE: "1" if name == "portable" else "0"},
    )  # fmt: skip
    try:
        form.arm_lifeline(read, process.pid)
        os.close(read)
        assert process.stdout is not None
        said = process.stdout.readline()
        if end == "close":
            assert process.wait(10) == 0
            return
        grandchild = linux.open_process(int(said))
        os.close(write)
        write = -1
        with anyio.fail_after(10):
            await grandchild.wait()
        grandchild.close()
        assert process.wait(10) == -signal.SIGKILL
    finally:
        if write >= 0:
            os.close(write)
        process.kill()
        process.communicate()


# ---- files in memory -------------------------------------------------------------------------------------


def test_a_file_that_processes_share(form: Any) -> None:
    size = 1 << 40
    assert form.has_shared_files()
    fd = form.make_shared_file("snakepit-test", size)
    try:
        facts = os.fstat(fd)
        assert facts.st_size == size and facts.st_nlink == 0 and facts.st_blocks == 0 and not os.get_inheritable(fd)
        form.reserve_space(fd, 1 << 30, 3 << 20)
        assert os.fstat(fd).st_blocks * 512 >= 3 << 20
        code = "import os, sys; print(os.pwrite(int(sys.argv[1]), b'hello', 1 << 30))"
        subprocess.run([sys.executable, "-S", "-c", code, str(fd)], pass_fds=[fd], check=True, capture_output=True)
        with mmap.mmap(fd, 1 << 20, offset=1 << 30) as memory:
            assert memory[:6] == b"hello\0"
            address = ctypes.addressof(kept := ctypes.c_char.from_buffer(memory))
            form.populate_pages(address, 1 << 20)
            form.collapse_pages(address, 1 << 20)
            assert memory[:5] == b"hello"
            form.discard_pages(address, 1 << 20)
            assert memory[:5] in (b"hello", bytes(5))
            del kept
        form.punch_hole(fd, 1 << 30, 3 << 20)
        assert os.fstat(fd).st_size == size
        other = form.open_shared_file(os.getpid(), fd, "snakepit-test")
        assert (other is not None) is form.OFFERS_FILES
        if other is not None:
            assert os.fstat(other).st_ino == facts.st_ino and not os.get_inheritable(other)
            os.close(other)
        assert form.open_shared_file(os.getpid(), fd, "other") is form.open_shared_file(os.getpid(), 0, "other") is None
        assert form.open_shared_file(NOBODY, fd, "snakepit-test") is None
    finally:
        os.close(fd)


def test_only_linux_has_files_that_nobody_makes_shorter() -> None:
    sealed, other = linux.make_shared_file("a", 1 << 20), portable.make_shared_file("a", 1 << 20)
    with pytest.raises(PermissionError):
        os.ftruncate(sealed, 0)
    os.ftruncate(other, 0)
    os.close(sealed)
    os.close(other)


def test_a_file_without_a_path(form: Any) -> None:
    before = set(os.listdir("/proc/self/fd"))
    fd = form.make_private_file("snakepit-test")
    assert os.fstat(fd).st_size == 0 and not os.get_inheritable(fd) and os.fstat(fd).st_nlink == 0
    os.write(fd, b"x")
    os.close(fd)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_file_that_is_too_large_leaves_no_descriptor(form: Any) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        form.make_shared_file("snakepit-test", -1)
    assert set(os.listdir("/proc/self/fd")) == before


# ---- sockets ---------------------------------------------------------------------------------------------


def test_who_has_connected(form: Any) -> None:
    one, two = socket.socketpair()
    with one, two:
        found = form.peer_of(one)
        assert found == (Peer(os.getpid(), os.geteuid(), os.getegid()) if form is linux else None)
    if form is linux:
        with pytest.raises(OSError):
            form.peer_of(one)


def test_who_has_connected_where_the_system_tells_only_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def getpeereid(fd: int, user: Any, group: Any) -> int:
        if fd < 0:
            ctypes.set_errno(9)
            return -1
        user._obj.value, group._obj.value = 1000, 2**32 - 2
        return 0

    monkeypatch.setattr(portable.ctypes, "CDLL", lambda *args, **options: SimpleNamespace(getpeereid=getpeereid))
    one, two = socket.socketpair()
    with one, two:
        assert portable.peer_of(one) == Peer(None, 1000, 2**32 - 2)
    with pytest.raises(OSError, match="descriptor"):
        portable.peer_of(one)


@pytest.mark.parametrize("blocking", [True, False])
def test_descriptors_that_come_over_a_socket(form: Any, blocking: bool) -> None:
    one, two = socket.socketpair()
    with one, two, open(os.devnull) as file:
        two.setblocking(blocking)
        socket.send_fds(one, [b"text"], [file.fileno(), one.fileno()])
        data, fds = form.receive_descriptors(two, 100, 4)
        assert data == b"text" and len(fds) == 2 and not any(map(os.get_inheritable, fds))
        assert os.fstat(fds[0]).st_rdev == os.fstat(file.fileno()).st_rdev
        for fd in fds:
            os.close(fd)
        if not blocking:
            with pytest.raises(BlockingIOError):
                form.receive_descriptors(two, 100, 4)


# ---- Linux's form, on a system that a test makes up ------------------------------------------------------


def test_processes_of_sessions_are_those_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = {
        "11": b"S 1 2 50", "12": b"Z 1 2 50", "13": b"S 1 2 51", "14": b"S 1 2 50", "15": b"",
    }  # fmt: skip
    monkeypatch.setattr(linux.os, "listdir", lambda path: [*stats, "self", "16"])

    def stat_of(pid: int) -> list[bytes]:
        if str(pid) not in stats:
            raise FileNotFoundError
        fields = stats[str(pid)].split()
        return [*fields, *[b"0"] * 15, b"%d" % (pid * 100)] if fields else fields

    monkeypatch.setattr(linux, "_stat_of", stat_of)
    monkeypatch.setattr(linux, "was_given", lambda pid, variable: pid != 14 and variable == "A=1")
    assert linux.in_sessions({50}, "A=1") == [(11, 1100)]
    assert linux.in_sessions({50, 51}, "A=1") == [(11, 1100), (13, 1300)]
    assert linux.in_sessions(set(), "A=1") == linux.in_sessions({50}, "B=1") == []


class Family:
    """A system with processes of its own: the children of each by its id, and of each the pages that it holds."""

    def __init__(self, children: dict[str, str], pages: int = 3) -> None:
        self.children = children
        self.pages = pages

    def listdir(self, path: str) -> list[str]:
        _, _, pid, tasks = path.split("/")
        assert tasks == "task"
        if pid not in self.children:
            raise FileNotFoundError
        return [pid, f"{pid}1"]

    def open(self, path: str, mode: str = "r") -> Any:
        pid, kind = path.split("/")[2], path.split("/")[-1]
        if pid not in self.children:
            raise FileNotFoundError
        if kind == "statm":
            return io.BytesIO(b"999 %d 5 5 5 5 5" % self.pages)
        # All of them are the first thread's.
        return io.StringIO(self.children[pid] if path.split("/")[4] == pid else "")


def test_the_members_of_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Family({"1": "2 3", "2": "4", "3": "", "4": ""})
    monkeypatch.setattr(linux.os, "listdir", there.listdir)
    monkeypatch.setattr(linux, "open", there.open, raising=False)
    assert list(linux._family(1)) == [1, 2, 3, 4]
    assert linux.resident_memory(1) == 4 * 3 * os.sysconf("SC_PAGE_SIZE")
    # One that ends in between counts for nothing, and keeps nobody else from being counted.
    del there.children["2"]
    assert list(linux._family(1)) == [1, 2, 3]
    assert linux.resident_memory(1) == 2 * 3 * os.sysconf("SC_PAGE_SIZE")
    assert linux.resident_memory(9) == 0
    # Of a large family the rest is not looked for: no descendants of the one with whom it became large.
    there.children = {str(n): str(n + 1) for n in range(1, 1000)}
    assert len(list(linux._family(1))) == 201
    there.children = {"1": " ".join(str(n) for n in range(2, 201)), **{str(n): "" for n in range(2, 201)}}
    assert len(list(linux._family(1))) == 200


# ---- the fence -------------------------------------------------------------------------------------------

PACKAGE = Path(snakepit_trio.__file__).parent
#: What only the seam may name, as an attribute or an imported name.
NAMES = {
    "pidfd_open", "pidfd_send_signal", "P_PIDFD", "memfd_create", "MFD_CLOEXEC", "MFD_ALLOW_SEALING", "F_ADD_SEALS", "F_SETSIG",
    "F_SETOWN", "O_ASYNC", "SO_PEERCRED", "SO_PASSCRED", "LOCAL_PEERCRED", "getpeereid", "prctl", "epoll", "kqueue",
    "eventfd", "MSG_CMSG_CLOEXEC", "posix_fallocate", "fallocate", "madvise", "MADV_REMOVE", "waitid", "accept4", "inotify_init",
    "clock_gettime", "O_TMPFILE", "O_PATH", "setns", "unshare",
}  # fmt: skip
#: Files in which the words mean something else, and why.
ALLOWED = {
    "wire/generated/snakepit/v1/__init__.py": "made of the protocol's comments",
}


def trespasses(source: str) -> list[str]:
    """What a module uses that is the seam's, with its line."""
    found = []
    tree = ast.parse(source)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            found.append(f"{node.lineno}: {node.attr}")
        elif isinstance(node, ast.alias) and node.name in NAMES:
            found.append(f"{node.lineno}: {node.name}")
        elif isinstance(node, ast.Name | ast.arg) and re.search(
            "pidfd|memfd", getattr(node, "id", "") or getattr(node, "arg", "")
        ):
            found.append(f"{node.lineno}: a name of {ast.unparse(node)}")
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in prose
            and (re.search(r"(^|[\s'\"])/proc(/|$)|/memfd:", node.value) or node.value in NAMES)
        ):
            found.append(f"{node.lineno}: {node.value!r}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.pidfd_open(1)", "from os import memfd_create", "open('/proc/self/stat')", "open(f'/proc/{1}/fd')",
        "getattr(os, 'waitid')", "hasattr(os, 'pidfd_open')", "def hold(pidfd): ...", "sock.getsockopt(1, socket.SO_PEERCRED)",
        "import select\nselect.epoll()", "ctypes.CDLL(None).prctl(36)", "fcntl.fcntl(1, fcntl.F_SETSIG, 9)",
        "run('import os; open(\"/proc/1\")')", "pidfd: int = 3",
    ],
)  # fmt: skip
def test_a_trespass_is_seen(source: str) -> None:
    assert trespasses(source)


def test_nobody_goes_around_the_seam() -> None:
    assert trespasses('"""A text about /proc/self and os.pidfd_open."""\n# /proc\nx = "a process"') == []
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if not name.startswith("_platform/") and (seen := trespasses(path.read_text())):
            found[name] = seen
    assert found.keys() == ALLOWED.keys(), found

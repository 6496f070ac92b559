"""What a child keeps that this process forks, and where it ends."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snakepit_trio import _forks


def in_child(check: Callable[[], object]) -> str:
    """What a fork of this process makes of a check, as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, repr(check()).encode())
        except BaseException as exc:
            os.write(write, f"{type(exc).__name__}: {exc}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        said = file.read().decode()
    assert os.waitpid(pid, 0) == (pid, 0)
    return said


def leads_to(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


@contextmanager
def living_child() -> Iterator[None]:
    """A fork of this process that lives as long as the block."""
    read, write = os.pipe()
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.write(ready_write, b"x")
        os.read(read, 1)
        os._exit(0)
    try:
        os.read(ready_read, 1)
        yield
    finally:
        for fd in (read, write, ready_read, ready_write):
            os.close(fd)
        os.waitpid(pid, 0)


def hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def test_a_pipe_hangs_up_with_this_process_and_not_with_its_forks() -> None:
    read, write = _forks.pipe()
    other_read, other_write = os.pipe()
    with living_child():
        _forks.close(write)
        os.close(other_write)
        assert hung_up(read)
        assert not hung_up(other_read)
    _forks.close(read)
    os.close(other_read)


def test_numbers_stay_taken_in_the_child_and_nothing_reaches_the_parents() -> None:
    ours, theirs = _forks.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as file:
        _forks.keep(file.fileno())
        fcntl.flock(file, fcntl.LOCK_EX)

        def misuse() -> list[str]:
            found = [leads_to(fd) for fd in (ours.fileno(), theirs.fileno(), file.fileno())]
            fcntl.flock(file, fcntl.LOCK_UN)
            try:
                ours.shutdown(socket.SHUT_RDWR)
            except OSError:
                found.append("refused")
            ours.close()
            return found

        assert in_child(misuse) == repr(["/dev/null"] * 3 + ["refused"])
        ours.sendall(b"still connected")
        assert theirs.recv(100) == b"still connected"
        other = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


@pytest.mark.parametrize("close", [os.close, _forks.close])
def test_a_number_that_leads_elsewhere_by_now_is_left_alone(close: Callable[[int], None]) -> None:
    """Whoever has closed the descriptor: an event loop closes its sockets itself."""
    kept, other = _forks.pipe()
    another = os.open("/dev/zero", os.O_RDONLY)
    close(kept)
    os.dup2(another, kept)
    try:
        assert in_child(lambda: leads_to(kept)) == "'/dev/zero'"
    finally:
        os.close(kept)
        os.close(another)
        _forks.close(other)


def test_a_child_that_has_no_descriptor_left() -> None:
    """The first that is let go of makes room; where there is not even /dev/null, all are closed."""
    import resource

    read, write = _forks.pipe()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filled: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
        with pytest.raises(OSError):
            while True:
                filled.append(os.dup(0))
        os.close(filled.pop())
        os.close(filled.pop())
        assert in_child(lambda: [leads_to(read), leads_to(write)]) == repr(["/dev/null"] * 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in filled:
            os.close(fd)
    original = os.devnull
    os.devnull = "/nowhere/null"
    try:
        assert "Bad file descriptor" in in_child(lambda: os.fstat(read))
        assert "Bad file descriptor" in in_child(lambda: os.fstat(write))
    finally:
        os.devnull = original
    _forks.close(read)
    _forks.close(write)


def test_a_fork_of_another_thread_waits_until_what_is_made_is_kept() -> None:
    found: list[str] = []
    forking = threading.Thread(target=lambda: found.append(in_child(lambda: leads_to(fd))))
    with _forks.unforked():
        fd = os.open("/dev/zero", os.O_RDONLY)
        forking.start()
        forking.join(0.1)
        assert forking.is_alive()
        _forks.keep(fd)
    forking.join()
    assert found == ["'/dev/null'"]
    _forks.close(fd)


class Told:
    def __init__(self) -> None:
        self.by = 0

    def told(self) -> None:
        self.by = os.getpid()


def test_methods_are_called_in_the_child_while_their_object_lives() -> None:
    told, other = Told(), Told()
    _forks.at_fork(told.told)
    _forks.at_fork(other.told)
    del other
    assert in_child(lambda: told.by == os.getpid()) == "True"
    assert told.by == 0


@pytest.mark.parametrize(
    ("leave", "code", "words"),
    [
        (lambda: None, 0, ""),
        (lambda: sys.exit(), 0, ""),
        (lambda: sys.exit(3), 3, ""),
        (lambda: sys.exit("no such thing"), 1, "no such thing\n"),
        (lambda: 1 / 0, 1, "ZeroDivisionError"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt), 1, "KeyboardInterrupt"),
    ],
)
def test_a_child_that_comes_out_of_a_block_ends_there(
    leave: Callable[[], object], code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    me = os.getpid()
    with _forks.contained():
        pid = os.fork()
        if pid == 0:
            leave()
    assert os.getpid() == me
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert words in capfd.readouterr().err


def test_the_parent_comes_out_as_it_would() -> None:
    with pytest.raises(ZeroDivisionError), _forks.contained():
        _ = 1 / 0


def test_descriptors_do_not_take_the_places_of_standard_streams(tmp_path: Path) -> None:
    """In a process that has none."""

    def made() -> list[int]:
        for fd in (0, 1, 2):
            os.close(fd)
        first, second = _forks.socketpair()
        return [
            *_forks.pipe(),
            first.fileno(),
            second.fileno(),
            *(fd for fd in range(3) if Path(f"/proc/self/fd/{fd}").exists()),
        ]

    numbers = eval(in_child(made))
    assert len(numbers) == 4, "nothing was left below"
    assert min(numbers) > 2


def test_a_socketpair_blocks_whatever_the_default_is(monkeypatch: pytest.MonkeyPatch) -> None:
    socket.setdefaulttimeout(5)
    try:
        for end in _forks.socketpair():
            with end:
                assert end.gettimeout() is None
                assert os.get_blocking(end.fileno())
    finally:
        socket.setdefaulttimeout(None)
